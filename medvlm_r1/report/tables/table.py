"""Tables for the console, Markdown and the page. Numbers are in percent with one decimal."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from medvlm_r1.evaluate.statistics import Interval
from medvlm_r1.report.comparison import MEAN, OUTSIDE, Comparison, Tested
from medvlm_r1.report.fairness import Fairness, Setting
from medvlm_r1.report.groups import FEW_SEEDS, RunGroup
from medvlm_r1.report.page.audit import LEAK, SHORTCUT, best_shortcuts, leaked_shares, marks

SHORT = {"mri": "MRI", "ct": "CT", "xray": "X-ray", "oct": "OCT", MEAN: "Mean", OUTSIDE: "Out of domain"}


_LABELS = 24  # columns of a console that row labels get at most, where numbers need the rest
_SPACE = 2  # columns between two numbers


@dataclass(frozen=True)
class Cell:
    """One table cell."""

    text: str
    note: str = ""  # interval or remarks, separated by ``; ``, in small print
    bold: bool = False  # an adjusted test supports the number
    muted: bool = False  # in the first cell of a row: the whole row is of secondary interest


@dataclass(frozen=True)
class Table:
    """A titled table; the first column has labels, the others align right."""

    title: str
    heads: list[Cell]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def set_name(test_set: str) -> str:
    """``xray`` -> ``X-ray``, ``mri_plain`` -> ``MRI plain``; an unknown name with spaces for underscores."""
    first, *rest = test_set.split("_")
    return " ".join([SHORT.get(first, first.capitalize()), *map(str.lower, rest)])


def percent(value: float, signed: bool = False) -> str:
    """A fraction in percent with one decimal; ``signed`` writes a plus sign, as for a difference."""
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return text.replace("-", "\N{MINUS SIGN}") if text not in ("-0.0", "+0.0") else "0.0"


def span(interval: Interval, signed: bool = False) -> str:
    """The interval's ends in percent: ``33.3-44.3`` with an en dash, or ``-2.7 to +8.3`` for a difference."""
    between = " to " if signed else "\N{EN DASH}"
    return f"{percent(interval.low, signed)}{between}{percent(interval.high, signed)}"


def p_text(p: float) -> str:
    """``= 0.012``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def accuracy_table(c: Comparison) -> Table:
    """One row per run group, then chance.

    A second zero-shot row parses answers leniently; a further row of a group is by the released evaluation
    code of its prompt's paper, or has pass@n, if its runs have that.
    """
    heads = [Cell("Method")]
    for scope, sets in c.scopes.items():
        n = c.accuracy[c.groups[0].label][scope].n
        where = f"{len(sets)} sets" if len(sets) > 1 else "in domain" if scope in c.in_domain else ""
        heads.append(Cell(set_name(scope), "; ".join(filter(None, [where, f"n = {n}"]))))
    heads += [Cell("Well-formed", "think, answer"), Cell("Answered", "answer tags")]

    rows = []
    best = {scope: c.best(scope) for scope in c.scopes}
    overall = list(c.scopes)[-1]
    for group in c.groups:
        label = group.label
        seeds = f"{len(group.runs)} seeds" if len(group.runs) > 1 else f"seed {group.seeds[0]}"
        touched = {scope: marks(group.runs, sets) for scope, sets in c.scopes.items()}
        rates = [rate_cell(i, touched[s], best[s] == label) for s, i in c.accuracy[label].items()]
        formats = [rate_cell(table[label][overall]) for table in (c.well_formed, c.answered)]
        rows.append([Cell(label, f"{group.experiment}; {seeds}"), *rates, *formats])
        if group.method == "zero_shot":
            rates = [rate_cell(i, touched[s]) for s, i in c.lenient[label].items()]
            rows.append([Cell(label, "parsed leniently", muted=True), *rates, Cell(""), Cell("")])
        if released := c.released.get(label):
            rates = [rate_cell(i, touched[s]) for s, i in released.items()]
            rows.append([Cell(label, "by the paper's released code", muted=True), *rates, Cell(""), Cell("")])
        if oracle := c.pass_at_n.get(label):
            sizes = {entry["n"] for run in group.runs for entry in run.metrics["samples"].values()}
            n = "/".join(map(str, sorted(sizes)))
            rates = [rate_cell(i) for i in oracle.values()]
            note = f"pass@{n}: one of {n} is right; a bound, no method"
            rows.append([Cell(label, note, muted=True), *rates, Cell(""), Cell("")])
    guess = [Cell(percent(c.chance[scope])) for scope in c.scopes]
    rows.append([Cell("Chance", "guessing an option", muted=True), *guess, Cell(""), Cell("")])

    used = sorted({i.method for row in c.accuracy.values() for i in row.values()})
    notes = [f"Accuracy in percent with 95 % intervals ({', '.join(used)}); n is questions per seed."]
    if len(c.groups) > 1:
        notes.append("Bold: better than every other row of its column after Holm's adjustment.")
        points = percent(max(c.detectable_difference(t) for t in c.test_sets))
        power = f"show {points} points or more per test set at 80 % power"
        notes.append(f"Two unpaired runs of this size {power}.")
    notes += mark_notes(c.groups)
    return Table("Accuracy", heads, rows, notes)


def rate_cell(i: Interval, mark: str = "", bold: bool = False) -> Cell:
    """A rate in percent with its interval."""
    return Cell(percent(i.value) + mark, span(i), bold)


def mark_notes(groups: Iterable[RunGroup]) -> list[str]:
    """Footnotes of the marks; none if no leak and no shortcut touches the numbers."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    shares = leaked_shares(runs)
    leaks = [f"{percent(share)} % of the {set_name(name)} questions" for name, share in shares.items()]
    if leaks:
        notes.append(f"{LEAK} {', '.join(leaks)} show a copy of a training image.")
    shortcuts = [
        f"{rule} alone scores {percent(score.accuracy)} % on {set_name(name)} "
        f"(chance {percent(score.chance)})"
        for name, (rule, score) in best_shortcuts(runs).items()
    ]
    if shortcuts:
        notes.append(f"{SHORTCUT} Without the image, {', '.join(shortcuts)}.")
    return notes


def difference_table(c: Comparison) -> Table:
    """Paired differences in points; bold if the adjusted test supports the difference."""
    heads = [Cell("Difference")] + [Cell(set_name(scope)) for scope in c.scopes]
    rows: dict[tuple[str, str], list[Cell]] = {}
    for d in c.differences:
        cells = rows.setdefault((d.first, d.second), [Cell(f"{d.first} \N{MINUS SIGN} {d.second}")])
        runs = [run for g in c.groups if g.label in (d.first, d.second) for run in g.runs]
        cells.append(difference_cell(d, marks(runs, c.scopes[d.where])))
    tests = " / ".join(sorted({d.test for d in c.differences}))
    notes = [
        f"Points on the same questions, 95 % interval, adjusted p ({tests}, Holm over {len(c.differences)}"
        " tests). Bold: adjusted p below 0.05.",
    ]
    if len(c.runs) > len(c.groups):
        notes.append(FEW_SEEDS)
    notes += mark_notes(c.groups)
    return Table("Differences", heads, list(rows.values()), notes if c.differences else [])


def fairness_lines(f: Fairness) -> list[str]:
    """Lines of text: the settings that differ, the settings that must agree, and the work of training."""
    if not f.known:
        return [f"{f.second} and {f.first} cannot be compared: config.yaml is missing."]

    def both(s: Setting) -> str:
        return f"  {s.key}: {s.second!r} ({f.second}), {s.first!r} ({f.first})"

    none = "" if f.differences else "none"
    return [
        f"Settings outside the method in which {f.second} and {f.first} differ: {none}",
        *map(both, f.differences),
        *(f"  {s.key}: {s.first!r} for both" if s.equal else f"{both(s)}: UNEQUAL" for s in f.same_work),
        *(f"  {s.key}: {s.second} ({f.second}), {s.first} ({f.first})" for s in f.work),
    ]


def table_console() -> Console:
    """A console for tables, 110 columns wide if the output is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=110)


def print_table(table: Table, console: Console) -> None:
    """Print a table; columns that do not fit beside the others follow below, with the same row labels."""
    columns = list(zip(table.heads, *table.rows, strict=True))
    labels, room = min(_width(columns[0]), _LABELS) + 2 * _SPACE, console.width
    blocks: list[list[int]] = [[]]
    taken = labels
    for k, column in enumerate(columns[1:], 1):
        taken += _width(column) + _SPACE
        if taken > room and blocks[-1]:
            blocks.append([])
            taken = labels + _width(column) + _SPACE
        blocks[-1].append(k)
    for number, block in enumerate(blocks, 1):
        heads, *rows = ([row[k] for k in (0, *block)] for row in (table.heads, *table.rows))
        notes = table.notes if number == len(blocks) else []
        console.print(as_rich(Table(table.title if number == 1 else "", heads, rows, notes)))


def as_rich(table: Table) -> RichTable:
    """A table for the console, narrow enough for 80 columns with three test sets."""
    table_out = RichTable(
        title=Text(table.title, style="table.title"),
        caption=Text("\n".join(table.notes), style="table.caption"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for k, column in enumerate(zip(table.heads, *table.rows, strict=True)):
        width = _width(column)
        # a narrow console folds the labels, never the numbers
        style = (
            {"justify": "right", "min_width": width, "no_wrap": True}
            if k
            else {"overflow": "fold", "min_width": min(width, _LABELS)}
        )
        table_out.add_column(_lines(column[0]), **style)
    for row in table.rows:
        table_out.add_row(*map(_lines, row))
    return table_out


def as_markdown(table: Table) -> str:
    """A GitHub table with its notes below."""

    def cell_text(cell: Cell) -> str:
        text = escape_markdown(cell.text)
        note = f" ({escape_markdown(cell.note.replace('; ', ', '))})" if cell.note else ""
        return (f"**{text}**" if cell.bold else text) + note

    lines = ["| " + " | ".join(map(cell_text, row)) + " |" for row in (table.heads, *table.rows)]
    lines.insert(1, "|---" + "|--:" * (len(table.heads) - 1) + "|")
    notes = map(escape_markdown, table.notes)
    return "\n".join([f"### {escape_markdown(table.title)}", "", *lines, "", *notes, ""])


def escape_markdown(text: str) -> str:
    """Escape plain text for one line of Markdown, table cells included; line breaks become spaces."""
    special = r"[\\|\[`*]|<(?=[A-Za-z/!])|&(?=#?\w+;)|\b_|_\b"
    return re.sub(special, r"\\\g<0>", " ".join(text.split()))


def difference_cell(d: Tested, mark: str) -> Cell:
    """A difference in points with its interval and adjusted p; bold if the test supports it."""
    note = f"{span(d.interval, signed=True)}; p {p_text(d.adjusted)}"
    return Cell(percent(d.interval.value, signed=True) + mark, note, d.supported)


def _width(column: Iterable[Cell]) -> int:
    """Characters of the longest line in a column."""
    return max(cell_len(line) for cell in column for line in _lines(cell).plain.split("\n"))


def _lines(cell: Cell) -> Text:
    """Text over notes; a Text object, because a string could contain console markup."""
    return Text("\n".join(filter(None, [cell.text, *cell.note.split("; ")])), "bold" if cell.bold else "")
