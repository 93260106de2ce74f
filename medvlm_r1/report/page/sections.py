"""The sections of the page in their order; navigation and body both loop over :data:`SECTIONS`.

Each function returns a :class:`Section` of the comparison, or ``None`` if the runs have no data for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.figures import curve_panels, dot_panels
from medvlm_r1.report.matrix.assemble import matrices_among
from medvlm_r1.report.matrix.tables import change_table, heat_map_svg, matrix_table
from medvlm_r1.report.page import examples
from medvlm_r1.report.page.audit import audit_summaries
from medvlm_r1.report.page.verdicts import find_verdicts
from medvlm_r1.report.run_folder import Run, flatten
from medvlm_r1.report.tables.controls import control_table
from medvlm_r1.report.tables.table import accuracy_table, difference_table
from medvlm_r1.report.traces.pack import pack_traces

_OWN_COLUMNS = ("name", "experiment", "method", "seed", "steps", "command", "trained_on")
_OWN_COLUMNS += (
    "questions_seen",
    "tokens_seen",
    "completion_tokens_seen",
    "completion_tokens_tested",
    "earlier",
)


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    id: str  # anchor, the part of an address behind ``#``
    title: str
    template: str  # path of the partial template, from ``medvlm_r1/report``
    context: dict[str, object]
    label: str = ""  # name in the navigation; the title if empty
    wide: bool = False  # takes the full width of a wide screen


def verdicts(c: Comparison) -> Section:
    """One card per run group: its accuracy and every verdict on it."""
    overall = list(c.scopes)[-1]
    context = {
        "cards": [(group, find_verdicts(c, group)) for group in c.groups],
        "accuracy": c.accuracy,
        "overall": overall,
        "averaged": len(c.scopes[overall]) > 1,
        "chance": c.chance[overall],
    }
    return Section("verdicts", "Verdicts", "page/verdicts.html", context)


def accuracy(c: Comparison) -> Section:
    """A dot plot per test set and mean, and the table of rates."""
    context = {"panels": dot_panels(c), "rates": accuracy_table(c)}
    return Section("accuracy", "Accuracy", "page/accuracy.html", context)


def differences(c: Comparison) -> Section | None:
    """Paired differences, with links to the questions that changed."""
    if not c.differences:
        return None
    groups = {group.label: group for group in c.groups}
    pairs = dict.fromkeys((d.first, d.second) for d in c.differences)
    context = {
        "differences": difference_table(c),
        "pairs": [(groups[first], groups[second]) for first, second in pairs],
        "several_seeds": len(c.runs) > len(c.groups),
    }
    title = "Differences on the same questions"
    return Section("differences", title, "page/differences.html", context, "Differences")


def controls(c: Comparison) -> Section | None:
    """Accuracy under each control, and the gains."""
    table = control_table(c)
    return table and Section("controls", "Controls", "page/controls.html", {"controls": table})


def matrix(c: Comparison) -> Section | None:
    """Generalisation matrices that the runs form: heat maps and tables, then the changes between them."""
    matrices = matrices_among(c.runs)
    if matrices is None:
        return None
    tables = [(matrix_table(m), heat_map_svg(m)) for m in matrices.matrices]
    tables += [(change_table(matrices, m.label), None) for m in matrices.matrices[1:]]
    return Section("matrix", "Matrix", "page/matrix.html", {"matrices": tables})


def fairness(c: Comparison) -> Section | None:
    """Settings of each reinforcement learner and its supervised twin."""
    context = {"fairness": c.fairness}
    return Section("fairness", "Fairness", "page/fairness.html", context) if c.fairness else None


def curves(c: Comparison) -> Section | None:
    """Training curves of every logged metric that has a panel."""
    panels = curve_panels(c)
    context = {"panels": panels, "several_seeds": len(c.runs) > len(c.groups)}
    return Section("curves", "Training", "page/curves.html", context) if panels else None


def traces(c: Comparison) -> Section:
    """The trace browser."""
    context = {"traces": pack_traces(c)}
    return Section("traces", "Every trace", "traces/traces.html", context, "Traces", wide=True)


def questions(c: Comparison) -> Section:
    """Test questions with each group's answer, chosen by rule."""
    chosen, patterns = examples.choose_questions(c, per_set=2 if len(c.test_sets) < 5 else 1)
    context = {"questions": chosen, "patterns": patterns, "labels": [group.label for group in c.groups]}
    return Section("questions", "Questions and answers", "page/questions.html", context, "Questions")


def groups(c: Comparison) -> Section | None:
    """Completions of one prompt with rewards and advantages, at the first and the last traced step."""
    run = next((run for run in c.runs if run.traced_steps), None)
    if run is None:
        return None
    context = {"run": run.name, "groups": examples.choose_completion_groups(run)}
    title = "Inside training: groups of completions"
    return Section("groups", title, "page/groups.html", context, "Inside training")


def audit(c: Comparison) -> Section | None:
    """Leaks, shortcuts and faults of the data."""
    summaries = audit_summaries(c.runs)
    title = "Audit of the data"
    return Section("audit", title, "page/audit.html", {"audits": summaries}, "Audit") if summaries else None


def alarms(c: Comparison) -> Section:
    """Every alarm of every run."""
    raised = [(run, alarm) for run in c.runs for alarm in run.alarms]
    return Section("alarms", "Alarms", "page/alarms.html", {"alarms": raised}, f"Alarms ({len(raised)})")


def provenance(c: Comparison) -> Section:
    """Commands, durations, versions, hardware and counters."""
    context = {
        "runs": c.runs,
        "unfinished": c.unfinished,
        "facts": shared_facts(c.runs),
        "counters": flatten(c.runs[0].metrics.get("counters") or {}),
    }
    return Section("provenance", "Provenance", "page/provenance.html", context)


SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    *(verdicts, accuracy, differences, controls, matrix, fairness, curves),
    *(traces, questions, groups, audit, alarms, provenance),
)


def shared_facts(runs: list[Run]) -> list[tuple[str, str]]:
    """Facts of the runs by name: one value if the runs agree, else all values with slashes between them."""
    own = [{k: v for k, v in flatten(r.facts).items() if k.split(".")[0] not in _OWN_COLUMNS} for r in runs]
    facts = []
    for key in dict.fromkeys(key for facts_of_run in own for key in facts_of_run):
        values = dict.fromkeys(_plain(f[key]) for f in own if key in f)
        facts.append((key, " / ".join(values)))
    hardware = dict.fromkeys(str(run.timing["hardware"]) for run in runs if "hardware" in run.timing)
    return [*facts, ("hardware", " / ".join(hardware))] if hardware else facts


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
