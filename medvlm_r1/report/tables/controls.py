"""Tables of the controls: all numbers, and a summary for the console."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.control_metrics import GAINS, interpret_gain
from medvlm_r1.evaluate.controls import BLANK, CONTROLS, CUT, PERMUTED, PRIOR, SWAPPED
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
_DEFINITIONS = {
    PLAIN: "the question as it is",
    BLANK: "grey images",
    SWAPPED: "images of another question of the same modality and type with another gold answer",
    PERMUTED: "options in another order",
    PRIOR: "no model, the option that was gold most often in training",
    CUT: "the response starts with the answer tag",
}


def control_table(c: Comparison) -> Table | None:
    """Accuracies, gains and shares by run group and test set; ``None`` if no control was run."""
    rows = [cells for group in c.groups for cells in _rows(c, group)]
    if not rows:
        return None
    first = Cell("Control") if len(c.groups) == 1 else Cell("Method", "control")
    heads = [first, *(Cell(set_name(t)) for t in c.test_sets)]
    return Table("Controls", heads, rows, [*_notes(c, rows), *mark_notes(c.groups)])


def control_summary(c: Comparison) -> Table | None:
    """One row per run group and test set: accuracy with and without the image, the gain, and its verdict."""
    rows = []
    for group in c.groups:
        for t in c.test_sets:
            if (gain := gain_over(group, t, BLANK)) is None:
                continue
            mark = marks(group.runs, [t])
            numbers = [percent(accuracy_under(group, t, k).value) + mark for k in (PLAIN, BLANK)]
            numbers.append(f"{percent(gain.value, signed=True)}{mark} ({span(gain, signed=True)})")
            name = set_name(t) if len(c.groups) == 1 else f"{group.label}, {set_name(t)}"
            rows.append([Cell(name), *map(Cell, numbers), Cell(interpret_gain(gain))])
    heads = [Cell(head) for head in ("Controls", "Image", "Blank", "Image gain (95 %)", "Verdict")]
    return Table("", heads, rows, mark_notes(c.groups)) if rows else None


def control_numbers(c: Comparison) -> dict[str, dict[str, dict]]:
    """Group label -> test set -> accuracy by control, and gains, in plain types."""

    def plain(intervals: dict[str, Interval | None]) -> dict[str, dict]:
        return {name: interval.as_dict() for name, interval in intervals.items() if interval}

    return {
        g.label: {
            t: {"accuracy": plain({k: accuracy_under(g, t, k) for k in CONTROLS})}
            | plain({key: gain_over(g, t, k) for k, key in GAINS.items()})
            for t in c.test_sets
        }
        for g in c.groups
    }


def accuracy_under(group: RunGroup, test_set: str, control: str) -> Interval | None:
    """Accuracy under a control over the group's seeds; ``None`` if the control was not run."""
    interval = _from_metrics(group, test_set, lambda found: found["rates"].get(control, {}).get("accuracy"))
    if interval and len(group.runs) == 1:
        return interval
    if not (ids := _shared_ids(group, test_set, [control])):
        return None
    outcomes, images = _outcomes(group, test_set, control, ids), _image_groups(group, test_set, ids)
    return proportion(outcomes[0], images) if len(group.runs) == 1 else over_seeds([outcomes], [images])


def gain_over(group: RunGroup, test_set: str, control: str) -> Interval | None:
    """Plain accuracy minus accuracy under a control, on the questions that all seeds answered under both."""
    interval = _from_metrics(group, test_set, lambda controls: controls.get(GAINS[control]))
    if interval and len(group.runs) == 1:
        return interval
    if not (ids := _shared_ids(group, test_set, [PLAIN, control])):
        return None
    a, b = (_outcomes(group, test_set, name, ids) for name in (PLAIN, control))
    return seeds_difference([a], [b], [_image_groups(group, test_set, ids)])[0]


def _rows(c: Comparison, group: RunGroup) -> Iterable[list[Cell]]:
    def across(name: str, cell: Callable[[str], Cell]) -> Iterable[list[Cell]]:
        cells = [cell(t) for t in c.test_sets]
        if any(cell is not NONE for cell in cells):
            yield [Cell(name) if len(c.groups) == 1 else Cell(group.label, name), *cells]

    others = [list(across(control, lambda t, k=control: _rate_cell(group, t, k))) for control in CONTROLS[1:]]
    if not any(others):
        return
    yield from across(PLAIN, lambda t: _rate_cell(group, t, PLAIN))
    for rows in others:
        yield from rows
    for control, key in GAINS.items():
        yield from across(_GAIN_NAMES[key], lambda t, k=control: _gain_cell(group, t, k))
    for key, name in _SHARES.items():
        yield from across(name, lambda t, k=key: _share_cell(group, t, k))


def _rate_cell(group: RunGroup, test_set: str, control: str) -> Cell:
    interval = accuracy_under(group, test_set, control)
    if interval is None:
        return NONE
    left_out = len(group.runs[0].answers(test_set)) - interval.n
    note = span(interval) + (f"; {left_out} left out" if left_out else "")
    if control != PRIOR:
        tags = np.mean([run.answers(test_set, control)["answered"].mean() for run in group.runs])
        note += f"; {percent(tags)} in tags" if tags < 1 else ""
    return Cell(percent(interval.value) + marks(group.runs, [test_set]), note)


def _gain_cell(group: RunGroup, test_set: str, control: str) -> Cell:
    gain = gain_over(group, test_set, control)
    if gain is None:
        return NONE
    note = span(gain, signed=True) + (f"; {interpret_gain(gain)}" if control == BLANK else "")
    return Cell(percent(gain.value, signed=True) + marks(group.runs, [test_set]), note)


def _share_cell(group: RunGroup, test_set: str, key: str) -> Cell:
    share = _from_metrics(group, test_set, lambda controls: controls.get(key))
    if share is None:
        return NONE
    seeds = len(group.runs)
    note = f"mean of {seeds} seeds" if seeds > 1 else f"{span(share)}; of {share.n}"
    return Cell(percent(share.value) + marks(group.runs, [test_set]), note)


def _from_metrics(group: RunGroup, test_set: str, pick: Callable[[dict], dict | None]) -> Interval | None:
    """A number from ``metrics.json``: the mean over seeds, with the interval of the first seed.

    For a single run this saves a second bootstrap.
    """
    controls = [run.metrics.get("controls", {}).get(test_set) for run in group.runs]
    intervals = [Interval(**plain) for numbers in controls if numbers and (plain := pick(numbers))]
    if len(intervals) < len(group.runs):
        return None
    return replace(intervals[0], value=sum(interval.value for interval in intervals) / len(intervals))


def _shared_ids(group: RunGroup, test_set: str, controls: Iterable[str]) -> list[str]:
    """Ids of the questions that every run of the group answered under all of the controls."""
    tables = [(run, control) for run in group.runs for control in controls]
    if not all(run.has_answers(test_set, control) for run, control in tables):
        return []
    return sorted(set.intersection(*(set(run.answers(test_set, control).index) for run, control in tables)))


def _outcomes(group: RunGroup, test_set: str, control: str, ids: list[str]) -> list:
    """``[seeds, questions]`` of right (1) and wrong (0)."""
    return [run.answers(test_set, control).loc[ids, "correct"].astype(float).tolist() for run in group.runs]


def _image_groups(group: RunGroup, test_set: str, ids: list[str]) -> list[str]:
    return group.runs[0].answers(test_set).loc[ids, "image_group"].tolist()


def _notes(c: Comparison, rows: list[list[Cell]]) -> list[str]:
    """Definitions of controls and of words in small print; a sentence for each control that was not run."""
    run = [k for k in CONTROLS if any(r.has_answers(t, k) for r in c.runs for t in c.test_sets)]
    definitions = " ".join(f"{name}: {_DEFINITIONS[name]}." for name in run)
    notes = [f"Accuracy in percent under each control, with 95 % intervals. {definitions}"]
    gains = [name for name in run if name in GAINS]
    notes += [f"Gains: points of {PLAIN} above {', '.join(gains)}, on the same questions."] if gains else []
    small = " ".join(cell.note for row in rows for cell in row)
    notes += ["In tags: share of answers in answer tags."] if "in tags" in small else []
    notes += ["Left out: questions that the control does not apply to."] if "left out" in small else []
    reasons = {
        f"{name} was not run: {reason}."
        for run in c.runs
        for numbers in run.metrics.get("controls", {}).values()
        for name, reason in numbers.get("not_run", {}).items()
    }
    return [*notes, *sorted(reasons)]
