"""The tables of a sweep: statuses and costs, every setting, every effect."""

from medvlm_r1.report.groups import FEW_SEEDS
from medvlm_r1.report.sweep.summary import Sweep
from medvlm_r1.report.tables.table import Cell, Table, mark_notes, p_text, percent, rate_cell, set_name, span
from medvlm_r1.runs.status import FAILED, count_statuses, failure_reason


def sweep_tables(sweep: Sweep) -> list[Table]:
    """The tables that the sweep has data for so far."""
    tables = [settings_table(sweep)] if sweep.runs else []
    tables += [effects_table(sweep)] if sweep.runs and sweep.effects else []
    return [*tables, *([costs_table(sweep)] if sweep.costs else [])]


def state_lines(sweep: Sweep) -> list[str]:
    """How many runs are in which state, and the failed ones with their reason."""
    failed = [name for name, state in sweep.statuses.items() if state == FAILED]
    reasons = (f"failed: {name} ({failure_reason(sweep.folder / name)})" for name in failed)
    return [count_statuses(sweep.statuses), *reasons]


def settings_table(sweep: Sweep) -> Table:
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
    return Table("Settings", heads, rows, notes + mark_notes(sweep.cells.values()))


def effects_table(sweep: Sweep) -> Table:
    """One row per level, without the first level of each factor."""
    heads = [Cell("Factor"), Cell("Level"), Cell("Matched", "settings x seeds"), Cell("Change", "points")]
    heads.append(Cell("Adjusted p"))
    rows = [
        [
            Cell(effect.factor),
            Cell(f"{effect.level} \N{MINUS SIGN} {effect.reference}"),
            Cell(f"{effect.settings} x {effect.seeds}"),
            Cell(percent(effect.interval.value, signed=True), span(effect.interval, True), effect.supported),
            Cell(p_text(effect.adjusted).removeprefix("= ")),
        ]
        for effect in sweep.effects
    ]
    where = f"mean over {', '.join(map(set_name, sweep.test_sets))}" if len(sweep.test_sets) > 1 else ""
    notes = [
        f"Accuracy on {where or set_name(sweep.on)}: paired differences on the same questions, all else "
        f"equal; 95 % interval, p of the bootstrap, Holm over {len(rows)} tests. Bold: p below 0.05.",
    ]
    if left := sum(effect.left_out for effect in sweep.effects):
        notes.append(f"{left} matched settings are left out: they lack the seeds of the others.")
    fewest = min(effect.seeds for effect in sweep.effects)
    if fewest == 1:
        notes.append("One seed: the intervals cover the choice of questions, not the spread between seeds.")
    elif fewest <= 3:
        notes.append(FEW_SEEDS)
    return Table("Effects", heads, rows, notes)


def costs_table(sweep: Sweep) -> Table:
    """One row per kind of hardware."""
    heads = [*map(Cell, ("Hardware", "Runs", "Attempts", "Device hours", "Tokens"))]
    rows = [
        [*map(Cell, (kind, f"{cost.runs}", f"{cost.attempts}", f"{cost.hours:.2f}", f"{cost.tokens:,}"))]
        for kind, cost in sweep.costs.items()
    ]
    notes = ["Tokens of finished runs: read, sampled, and in the forward passes of the loss."]
    return Table("Cost", heads, rows, notes)
