"""Audit findings in reports: marks on numbers that a leak or a shortcut touches, and the page's summary."""

from collections.abc import Collection, Sequence

from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.evaluate.audit_warnings import leak_shares, strong_shortcuts
from medvlm_r1.report.methods import UNTRAINED
from medvlm_r1.report.run_folder import Run

LEAK = "\N{DAGGER}"
SHORTCUT = "\N{DOUBLE DAGGER}"


def leaked_shares(runs: Sequence[Run]) -> dict[str, float]:
    """Test set -> largest share of its questions that show a copy of an image one of the runs trained on.

    Zero-shot runs, runs without an audit and runs that dropped those training questions have no leak.
    """
    shares: dict[str, float] = {}
    for run in runs:
        leaks = leak_shares(run.metrics.get("audit") or {}, trained=run.method not in UNTRAINED)
        for name in leaks.keys() & set(run.test_sets):
            shares[name] = max(leaks[name], shares.get(name, 0.0))
    return {name: shares[name] for name in runs[0].test_sets if name in shares}


def best_shortcuts(runs: Sequence[Run]) -> dict[str, tuple[str, Shortcut]]:
    """Test set -> best rule that ignores the image, where the audit of a run has one above chance."""
    rules: dict[str, tuple[str, Shortcut]] = {}
    for run in runs:
        rules |= strong_shortcuts(run.metrics.get("audit") or {})
    return {name: rule for name, rule in rules.items() if name in runs[0].test_sets}


def marks(runs: Sequence[Run], test_sets: Collection[str]) -> str:
    """Marks of a number that the runs scored on the test sets: of a leak, of a shortcut, both or none."""
    leak = not leaked_shares(runs).keys().isdisjoint(test_sets)
    shortcut = not best_shortcuts(runs).keys().isdisjoint(test_sets)
    return LEAK * leak + SHORTCUT * shortcut


def audit_summaries(runs: Sequence[Run]) -> list[dict]:
    """Of the audits whose verdicts differ, each from the first run that has it, what the page prints."""
    first: dict[str, Run] = {}
    for run in runs:
        if "verdict" in (run.metrics.get("audit") or {}):
            first.setdefault(run.metrics["audit"]["verdict"], run)
    return [{"run": run.name, **_summary(run.metrics["audit"])} for run in first.values()]


def _summary(audit: dict) -> dict:
    shortcuts = audit["shortcuts"].values()
    rules = list(next(iter(shortcuts), {}))
    pairs = [pair for leak in audit["leaks"] if leak["source"] == "train" for pair in leak["pairs"]]
    return {
        "verdict": audit["verdict"].replace(" %", "\N{NO-BREAK SPACE}%").split("; "),
        "leaks": audit["leaks"],
        "test_sets": list(audit["shortcuts"]),
        "shortcuts": [(rule, [scores[rule]["accuracy"] for scores in shortcuts]) for rule in rules],
        "chance": [next(iter(scores.values()))["chance"] for scores in shortcuts],
        "pairs": pairs[:20],  # kind, distance and both images
        "faults": audit["faults"],
    }
