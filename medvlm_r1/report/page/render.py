"""``report.html``: one file that needs no network, for a single run or for a comparison.

Styles and scripts are written by hand and stand in the page: ``page.css`` and ``traces.css``; the trace
browser in ``report/traces/``.
"""

import json
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from medvlm_r1.report.comparison import MEAN, OUTSIDE, Comparison, Difference, compare
from medvlm_r1.report.figures import curve_panels, dot_panels, series
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.matrix.assemble import matrices_among
from medvlm_r1.report.matrix.tables import change_table, heat_map_svg, matrix_table
from medvlm_r1.report.page import examples
from medvlm_r1.report.page.audit import AuditSection, section
from medvlm_r1.report.page.verdicts import traces_link, verdicts
from medvlm_r1.report.run_folder import Run, flatten, method_title, rl_beside_sft
from medvlm_r1.report.tables.controls import control_table
from medvlm_r1.report.tables.table import (
    Table,
    accuracy_table,
    difference_table,
    p_text,
    percent,
    set_name,
    span,
)
from medvlm_r1.report.traces.pack import answer_set_name, pack_traces
from medvlm_r1.runs.durable import write_whole

STYLES = ("page/page.css", "traces/traces.css")
SCRIPTS = tuple(f"traces/{name}.js" for name in ("read", "search", "list", "show", "traces"))
_SHOWN_APART = ("name", "experiment", "method", "seed", "steps", "command", "trained_on")


def write_run_report(run_folder: Path) -> Path:
    """Write ``report.html`` into one finished run's folder, and return its path."""
    return write_comparison_report([run_folder], run_folder)


def write_comparison_report(folders: Sequence[Path], out: Path, baseline: str | None = None) -> Path:
    """Compare runs and write ``out/report.html``.

    Args:
        folders: run folders, or folders of run folders.
        out: folder to write into.
        baseline: see :func:`medvlm_r1.report.comparison.compare`.
    """
    command = ["python", "-m", "medvlm_r1.compare", *map(str, folders)]
    command += ["--baseline", baseline] if baseline else []
    command += [] if [Path(f) for f in folders] == [Path(out)] else ["--out", str(out)]
    return write_page(compare(folders, baseline), Path(out), shlex.join(command))


def write_page(c: Comparison, out: Path, command: str) -> Path:
    """Render the page of a comparison that was already made.

    Args:
        c: what was compared.
        out: folder to write into; made if missing.
        command: what makes the page again, printed on it.
    """
    environment = Environment(
        loader=PackageLoader("medvlm_r1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "set_name": set_name, "tags": mark_tags, "clock": clock}
    environment.filters["span"] = span
    environment.globals |= {"traces_link": traces_link, "answer_set_name": answer_set_name}
    traced = next((run for row in c.groups for run in row.runs if run.traced_steps), None)
    asked, patterns = examples.questions(c, per_set=2 if len(c.test_sets) < 5 else 1)
    runs = [run for row in c.groups for run in row.runs]
    traces = pack_traces(c)
    page = environment.get_template("page/page.html").render(
        c=c,
        title=title(c),
        headline=headline(c),
        caveat=caveat(c),
        accuracy=accuracy_table(c),
        differences=difference_table(c) if c.differences else None,
        controls=control_table(c),
        matrices=drawn(runs),
        number=series(c.groups),
        dots=dot_panels(c),
        curves=curve_panels(c),
        questions=asked,
        patterns=patterns,
        groups=examples.groups(traced) if traced else [],
        traced=traced,
        alarms=[(run, alarm) for run in runs for alarm in run.alarms],
        runs=runs,
        facts=shared_facts(runs),
        findings={k: flatten(runs[0].metrics.get(k) or {}) for k in ("counters",)},
        audits=distinct_audits([section(run) for run in runs]),
        command=command,
        method_title=method_title,
        verdicts=[(row, verdicts(c, row)) for row in c.groups],
        pairs=pairs(c),
        traces=traces,
        pictures_json=Markup(json.dumps(traces.pictures)),  # base64: nothing in it could end the element
        style=inline(STYLES),
        script=inline(SCRIPTS),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_whole(path, page)
    return path


def inline(names: Sequence[str]) -> Markup:
    """Styles or scripts of this package, one after another, to stand in the page."""
    folder = files("medvlm_r1.report")
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in names))


def drawn(runs: Sequence[Run]) -> list[tuple[Table, Markup | None]]:
    """Matrices that the runs make, each table with its heat map, and what changes between them."""
    found = matrices_among(runs)
    if found is None:
        return []
    changes = [(change_table(found, matrix.label), None) for matrix in found.matrices[1:]]
    return [(matrix_table(matrix), heat_map_svg(matrix)) for matrix in found.matrices] + changes


def pairs(c: Comparison) -> list[tuple[RunGroup, RunGroup]]:
    """Rows between which differences were taken."""
    rows = {row.label: row for row in c.groups}
    return [(rows[a], rows[b]) for a, b in dict.fromkeys((d.first, d.second) for d in c.differences)]


def title(c: Comparison) -> str:
    """``GRPO, SFT and zero-shot on MRI, CT and X-ray``."""
    sets = _and([set_name(t) for t in c.test_sets])
    if len(c.groups) == 1:
        return f"{c.groups[0].label} on {sets}"
    names = [method_title(row.method) for row in reversed(c.groups)]
    names = [name.lower() if name == method_title("zero_shot") else name for name in dict.fromkeys(names)]
    return f"{_and(names)} on {sets}"


def headline(c: Comparison) -> str:
    """The result in plain sentences, with its uncertainty and whether a test supports it."""
    main = next((d for d in c.differences if rl_beside_sft(*_methods(c, d))), None)
    main = main or next(iter(reversed(c.differences)), None)
    caution = " " + _seeds([r for r in c.groups if main is None or r.label in (main.first, main.second)])
    if main is None:
        row = c.groups[0]
        rates = [
            f"{percent(i.value)} % on {set_name(t)} ({span(i)}; chance {percent(c.chance[t])})"
            for t in c.test_sets
            for i in [c.accuracy[row.label][t]]
        ]
        return f"{row.label} answers {_and(rates)} correctly; 95 % intervals in brackets.{caution}"

    found = {d.where: d for d in c.differences if (d.first, d.second) == (main.first, main.second)}
    outside = [t for t in c.test_sets if t not in c.in_domain]
    if c.in_domain and outside:
        far = OUTSIDE if OUTSIDE in found else outside[0]
        where = f"Outside the training domain ({_and([set_name(t) for t in outside])})"
        text = _sentence(c, where, found[far])
        for t in c.in_domain:
            text += " " + _sentence(c, f"In domain ({set_name(t)})", found[t])
    else:
        only = MEAN if MEAN in found else c.test_sets[0]
        place = f"Over the {len(c.test_sets)} test sets" if only == MEAN else f"On {set_name(only)}"
        text = _sentence(c, place, found[only])
    others = sum(_methods(c, d) == _methods(c, main) and d.where == main.where for d in c.differences) - 1
    return text + caution + (f" {others} more such pairs of rows are in the tables." if others else "")


def caveat(c: Comparison) -> str:
    """What a run with the embedded model or data can not show; empty for a real one."""
    run = c.groups[0].runs[0]
    values = flatten(run.config)
    tiny = values.get("model.path") == "embedded"
    phantom = any("phantom" in str(v) for k, v in values.items() if k.startswith("data.") and "_target_" in k)
    parts = ["the embedded model of a few million parameters"] * tiny + ["synthetic phantom images"] * phantom
    if not parts:
        return ""
    start = " Unless it reasons, this model answers at chance, so SFT on bare letters has little to build on."
    return (
        f"Miniature: {_and(parts)}. It shows that the machinery works, and one mechanism at most; "
        f"it is no evidence about medical images, large models or the papers' claim.{start if tiny else ''}"
    )


def distinct_audits(found: Sequence[AuditSection | None]) -> list[AuditSection]:
    """Audits that say different things, each by the first run that has it."""
    return list({a.verdict: a for a in reversed(found) if a}.values())[::-1]


def shared_facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the runs say about themselves: once where they agree, by run where not."""
    own = [{k: v for k, v in flatten(r.facts).items() if k.split(".")[0] not in _SHOWN_APART} for r in runs]
    facts = []
    for key in dict.fromkeys(k for facts_of_run in own for k in facts_of_run):
        values = dict.fromkeys(_plain(f[key]) for f in own if key in f)
        facts.append((key, " / ".join(values)))
    hardware = dict.fromkeys(str(r.timing["hardware"]) for r in runs if "hardware" in r.timing)
    return [*facts, ("hardware", " / ".join(hardware))] if hardware else facts


def mark_tags(text: str) -> Markup:
    """Escaped model text whose think and answer tags are marked; long white space is named, not shown."""
    if not text.strip():
        return Markup('<span class="tag">(nothing but white space)</span>')
    marked = str(escape(text))
    for name in ("think", "answer"):
        for tag in (f"&lt;{name}&gt;", f"&lt;/{name}&gt;"):
            marked = marked.replace(tag, f'<span class="tag">{tag}</span>')
    marked = re.sub(r"\n{4,}", lambda m: f'\n<span class="tag">({len(m[0])} line breaks)</span>\n', marked)
    return Markup(marked)  # escaped above, before anything was added


def clock(seconds: float) -> str:
    """``64.3`` -> ``1 min 04 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _sentence(c: Comparison, where: str, d: Difference) -> str:
    a, b = (percent(c.accuracy[label][d.where].value) for label in (d.first, d.second))
    verdict = "" if d.supported else ", which the test does not support as a difference"
    points, ends = percent(d.interval.value, signed=True), span(d.interval, signed=True)
    test = f"95 % interval {ends}; adjusted p {p_text(d.adjusted)}"
    return (
        f"{where}, {d.first} answers {a} % correctly and {d.second} {b} %: {points} points ({test}){verdict}."
    )


def _seeds(rows: Sequence[RunGroup]) -> str:
    counts = [len(row.runs) for row in rows]
    if max(counts) == 1:
        return "One seed: the spread between seeds is not measured."
    if len(set(counts)) == 1:
        return f"Means over {counts[0]} seeds."
    return "Seeds: " + _and([f"{n} of {row.label}" for row, n in zip(rows, counts, strict=True)]) + "."


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _methods(c: Comparison, d: Difference) -> tuple[str, str]:
    method = {row.label: row.method for row in c.groups}
    return method[d.first], method[d.second]


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
