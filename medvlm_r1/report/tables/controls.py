"""What the controls say, in tables: every number of them, and the few that the console shows."""

from collections.abc import Callable, Iterable

import numpy as np

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.control_metrics import GAINS, interpret_gain
from medvlm_r1.evaluate.controls import BLANK, CONTROLS, PRIOR
from medvlm_r1.evaluate.statistics import Interval, over_seeds, proportion, seeds_difference
from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.page.audit import marks
from medvlm_r1.report.tables.table import Cell, Table, mark_notes, percent, set_name, span

NONE = Cell("\N{EN DASH}")
_GAIN_NAMES = {
    "image_gain": "image gain",
    "swap_gain": "swap gain",
    "reasoning_effect": "reasoning effect",
    "prior_gain": "gain over the prior",
}
_SHARES = {
    "order_consistency": "same option in both orders",
    "reasoning_contradicts": "reasoning names another option",
}
_NOTES = (
    "Accuracy in percent under each control, with 95 % intervals. image: as it stands. blank: grey pictures. "
    "swapped: those of another question of the same modality and type with another gold answer. permuted: "
    "options in another order. reasoning-cut: made to answer at once. prior: no model, the option that was "
    "gold most often in training. in tags: share of answers in answer tags, where some are not.",
    "Gains: points that image is above blank, swapped, reasoning-cut and the prior, on the same questions. "
    "Where questions were left out, it says how many.",
)


def control_table(c: Comparison) -> Table | None:
    """Accuracies, gains and shares by row and test set; ``None`` where only plain questions were asked."""
    rows = [cells for row in c.groups for cells in _rows(c, row)]
    if not rows:
        return None
    first = Cell("Control") if len(c.groups) == 1 else Cell("Method", "control")
    heads = [first, *(Cell(set_name(t)) for t in c.test_sets)]
    return Table("Controls", heads, rows, [*_NOTES, *_reasons(c), *mark_notes(c.groups)])


def control_summary(c: Comparison) -> Table | None:
    """A line for each row and test set: with the picture, without it, and what that means."""
    rows = []
    for row in c.groups:
        for t in c.test_sets:
            if (gain := gain_over(row, t, BLANK)) is None:
                continue
            mark = marks(row.runs, [t])
            figures = [percent(accuracy_under(row, t, control).value) + mark for control in (PLAIN, BLANK)]
            figures.append(f"{percent(gain.value, signed=True)}{mark} ({span(gain, signed=True)})")
            name = set_name(t) if len(c.groups) == 1 else f"{row.label}, {set_name(t)}"
            rows.append([Cell(name), *map(Cell, figures), Cell(interpret_gain(gain))])
    heads = [Cell(head) for head in ("Controls", "Image", "Blank", "Image gain (95 %)", "Verdict")]
    return Table("", heads, rows, mark_notes(c.groups)) if rows else None


def control_figures(c: Comparison) -> dict[str, dict[str, dict]]:
    """Group label -> test set -> accuracy by control, and gains, in plain types."""

    def plain(numbers: dict[str, Interval | None]) -> dict[str, dict]:
        return {name: found.as_dict() for name, found in numbers.items() if found}

    return {
        row.label: {
            t: {"accuracy": plain({k: accuracy_under(row, t, k) for k in CONTROLS})}
            | plain({key: gain_over(row, t, k) for k, key in GAINS.items()})
            for t in c.test_sets
        }
        for row in c.groups
    }


def accuracy_under(row: RunGroup, test_set: str, control: str) -> Interval | None:
    """Accuracy over a row's seeds; ``None`` where nothing was asked."""
    found = _noted(row, test_set, lambda found: found["rates"].get(control, {}).get("accuracy"))
    if found and len(row.runs) == 1:
        return found
    if not (asked := _asked(row, test_set, [control])):
        return None
    outcomes, groups = _outcomes(row, test_set, control, asked), _groups(row, test_set, asked)
    if len(row.runs) == 1:
        return proportion(outcomes[0], groups)
    return over_seeds([outcomes], [groups])


def gain_over(row: RunGroup, test_set: str, control: str) -> Interval | None:
    """Plain accuracy less that under a control, on the questions that all seeds were asked under both."""
    found = _noted(row, test_set, lambda found: found.get(GAINS[control]))
    if found and len(row.runs) == 1:
        return found
    if not (asked := _asked(row, test_set, [PLAIN, control])):
        return None
    a, b = (_outcomes(row, test_set, name, asked) for name in (PLAIN, control))
    return seeds_difference([a], [b], [_groups(row, test_set, asked)])[0]


def _rows(c: Comparison, row: RunGroup) -> Iterable[list[Cell]]:
    def across(name: str, cell: Callable[[str], Cell]) -> Iterable[list[Cell]]:
        cells = [cell(t) for t in c.test_sets]
        if any(found is not NONE for found in cells):
            yield [Cell(name) if len(c.groups) == 1 else Cell(row.label, name), *cells]

    others = [list(across(control, lambda t, k=control: _rate_cell(row, t, k))) for control in CONTROLS[1:]]
    if not any(others):
        return
    yield from across(PLAIN, lambda t: _rate_cell(row, t, PLAIN))
    for found in others:
        yield from found
    for control, key in GAINS.items():
        yield from across(_GAIN_NAMES[key], lambda t, k=control: _gain_cell(row, t, k))
    for key, name in _SHARES.items():
        yield from across(name, lambda t, k=key: _share_cell(row, t, k))


def _rate_cell(row: RunGroup, test_set: str, control: str) -> Cell:
    found = accuracy_under(row, test_set, control)
    if found is None:
        return NONE
    left_out = len(row.runs[0].answers(test_set)) - found.n
    note = span(found) + (f"; {left_out} left out" if left_out else "")
    if control != PRIOR:
        tags = np.mean([run.answers(test_set, control)["answered"].mean() for run in row.runs])
        note += f"; {percent(tags)} in tags" if tags < 1 else ""
    return Cell(percent(found.value) + marks(row.runs, [test_set]), note)


def _gain_cell(row: RunGroup, test_set: str, control: str) -> Cell:
    gain = gain_over(row, test_set, control)
    if gain is None:
        return NONE
    note = span(gain, signed=True) + (f"; {interpret_gain(gain)}" if control == BLANK else "")
    return Cell(percent(gain.value, signed=True) + marks(row.runs, [test_set]), note)


def _share_cell(row: RunGroup, test_set: str, key: str) -> Cell:
    found = _noted(row, test_set, lambda controls: controls.get(key))
    if found is None:
        return NONE
    seeds = len(row.runs)
    note = f"mean of {seeds} seeds" if seeds > 1 else f"{span(found)}; of {found.n}"
    return Cell(percent(found.value) + marks(row.runs, [test_set]), note)


def _noted(row: RunGroup, test_set: str, pick: Callable[[dict], dict | None]) -> Interval | None:
    """A number that the runs' own summaries hold: the mean over seeds; the interval is one seed's.

    For a single run it saves drawing again.
    """
    summaries = [run.metrics.get("controls", {}).get(test_set) for run in row.runs]
    found = [Interval(**plain) for summary in summaries if summary and (plain := pick(summary))]
    if len(found) < len(row.runs):
        return None
    value = sum(interval.value for interval in found) / len(found)
    first = found[0]
    return Interval(value, first.low, first.high, first.n, first.method)


def _asked(row: RunGroup, test_set: str, controls: Iterable[str]) -> list[str]:
    """Ids of the questions that every run of a row was asked under all of the controls."""
    tables = [(run, control) for run in row.runs for control in controls]
    if not all(run.has_answers(test_set, control) for run, control in tables):
        return []
    return sorted(set.intersection(*(set(run.answers(test_set, control).index) for run, control in tables)))


def _outcomes(row: RunGroup, test_set: str, control: str, asked: list[str]) -> list:
    """``[seeds, questions]`` of right (1) and wrong (0)."""
    return [run.answers(test_set, control).loc[asked, "correct"].astype(float).tolist() for run in row.runs]


def _groups(row: RunGroup, test_set: str, asked: list[str]) -> list[str]:
    return row.runs[0].answers(test_set).loc[asked, "image_group"].tolist()


def _reasons(c: Comparison) -> list[str]:
    """Why a control that was wanted was not run."""
    found = {
        f"{name} was not run: {reason}."
        for row in c.groups
        for run in row.runs
        for summary in run.metrics.get("controls", {}).values()
        for name, reason in summary.get("not_run", {}).items()
    }
    return sorted(found)
