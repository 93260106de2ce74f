"""The tables of a sweep: statuses and costs, every setting, every effect."""

from collections.abc import Sized

from medvlm_r1.report.groups import FEW_SEEDS
from medvlm_r1.report.sweep.joint import JointSweep
from medvlm_r1.report.sweep.summary import Cost, Sweep
from medvlm_r1.report.tables.table import Cell, Table, mark_notes, p_text, percent, rate_cell, set_name, span
from medvlm_r1.runs.status import FAILED, count_statuses, failure_reason

_LONGEST = 32  # characters of a level


def sweep_tables(joint: JointSweep) -> list[Table]:
    """The tables that the sweeps have data for so far."""
    several = len(joint.sweeps) > 1
    tables = [
        settings_table(sweep, f"Settings of {sweep.folder.name}" if several else "Settings")
        for sweep in joint.sweeps
        if sweep.runs
    ]
    tables += [effects_table(joint)] if joint.effects else []
    return [*tables, *([costs_table(joint.costs)] if joint.costs else [])]


def state_lines(joint: JointSweep) -> list[str]:
    """How many runs are in which state, and the failed ones with their reason."""
    lines = []
    for sweep in joint.sweeps:
        name = f"{sweep.folder.name}: " if len(joint.sweeps) > 1 else ""
        failed = [run for run, state in sweep.statuses.items() if state == FAILED]
        lines.append(name + count_statuses(sweep.statuses))
        lines += [f"failed: {run} ({failure_reason(sweep.folder / run)})" for run in failed]
    return lines


def settings_table(sweep: Sweep, title: str) -> Table:
    """One row per combination of levels."""
    tests = sweep.runs[0].test_sets
    heads = [*(Cell(key.rpartition(".")[2]) for key in sweep.factors or ["setting"]), Cell("Seeds")]
    heads.append(Cell("Validation"))
    heads += [Cell(set_name(test)) for test in tests] + [Cell(set_name(sweep.on))] * (sweep.on not in tests)
    columns = [[test] for test in tests] + [sweep.test_sets] * (sweep.on not in tests)
    rows = []
    for levels, group in sweep.cells.items():
        rates = [run.metrics["validation"]["accuracy"] for run in group.runs if "validation" in run.metrics]
        validation = percent(sum(rates) / len(rates)) if rates else ""
        cells = [*(Cell(level or "\N{EN DASH}") for level in levels or ["all"]), Cell(str(len(group.seeds)))]
        cells.append(Cell(validation, bold=levels == sweep.chosen and len(sweep.cells) > 1))
        rows.append([*cells, *(rate_cell(group.rate(column)) for column in columns)])
    notes = ["Accuracy in percent with 95 % intervals, over seeds."]
    if len(sweep.cells) > 1:
        notes.append(
            "Bold: best on validation. Choose a setting by validation accuracy, not by test accuracy."
        )
    return Table(title, heads, rows, notes + mark_notes(sweep.cells.values()))


def effects_table(joint: JointSweep) -> Table:
    """One row per level, without the first level of each factor."""
    effects, smallest = joint.effects, joint.smallest
    heads = [Cell("Factor"), Cell("Level"), Cell("Matched", "settings x seeds"), Cell("Change", "points")]
    heads += [Cell("Adjusted p"), *([Cell("Verdict")] if smallest else [])]
    rows = [
        [
            Cell(effect.factor),
            Cell(f"{shorten(effect.level)} \N{MINUS SIGN} {shorten(effect.reference)}"),
            Cell(f"{effect.settings} x {effect.seeds}"),
            Cell(percent(effect.interval.value, signed=True), span(effect.interval, True), effect.supported),
            Cell(p_text(effect.adjusted).removeprefix("= ")),
            *([Cell(effect.verdict(smallest))] if smallest else []),
        ]
        for effect in effects
    ]
    test_sets = next(sweep.test_sets for sweep in joint.sweeps if sweep.runs)
    where = f"mean over {', '.join(map(set_name, test_sets))}" if len(test_sets) > 1 else ""
    notes = [
        f"Accuracy on {where or set_name(joint.on)}: paired differences on the same questions, all else "
        f"equal; 95 % interval, p of the bootstrap, Holm over {count_tests(rows)}. Bold: p below 0.05.",
    ]
    if smallest:
        planned = f"Planned smallest difference: {100 * smallest:g} points"
        equivalent = "equivalent: no difference is supported, and the interval is within them on both sides"
        notes.append(f"{planned}; {equivalent}; cannot be told: neither.")
        sizes = list(dict.fromkeys(percent(size) for size in (min(joint.detectable), max(joint.detectable))))
        notes.append(f"At 80 % power these tests show {' to '.join(sizes)} points or more.")
    if left := sum(effect.left_out for effect in effects):
        notes.append(f"{left} matched settings are left out: they lack the seeds of the others.")
    fewest = min(effect.seeds for effect in effects)
    if fewest == 1:
        notes.append("One seed: the intervals cover the choice of questions, not the spread between seeds.")
    elif fewest <= 3:
        notes.append(FEW_SEEDS)
    return Table("Effects", heads, rows, notes)


def count_tests(tests: Sized) -> str:
    """The number of tests in words of a sentence."""
    return f"{len(tests)} test{'s' if len(tests) > 1 else ''}"


def shorten(level: str) -> str:
    """A level without the middle of a long value, such as a path."""
    return level if len(level) <= _LONGEST else f"{level[:8]}\N{HORIZONTAL ELLIPSIS}{level[9 - _LONGEST :]}"


def costs_table(costs: dict[str, Cost]) -> Table:
    """One row per kind of hardware."""
    heads = [*map(Cell, ("Hardware", "Runs", "Attempts", "Device hours", "Tokens"))]
    rows = [
        [*map(Cell, (kind, f"{cost.runs}", f"{cost.attempts}", f"{cost.hours:.2f}", f"{cost.tokens:,}"))]
        for kind, cost in costs.items()
    ]
    notes = ["Tokens of finished runs: read, sampled, and in the forward passes of the loss."]
    return Table("Cost", heads, rows, notes)
