"""What a run's audit says about its numbers: marks beside them, and the section of the page."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.evaluate.audit_warnings import leak_shares, strong_shortcuts
from medvlm_r1.report.run_folder import Run

DAGGER = "\N{DAGGER}"  # a leak
GIVEN_AWAY = "\N{DOUBLE DAGGER}"  # a shortcut


def leaked(run: Run) -> dict[str, float]:
    """Test set -> share of its questions that show a copy of an image that this run was trained on.

    Empty for a run that trained on nothing, has no audit, or dropped those training questions.
    """
    found = leak_shares(run.metrics.get("audit") or {}, trained=run.method != "zero_shot")
    return {name: share for name, share in found.items() if name in run.test_sets}


def leaked_over(runs: Sequence[Run]) -> dict[str, float]:
    """The same over several runs: the largest share of each test set."""
    shares: dict[str, float] = {}
    for run in runs:
        for name, share in leaked(run).items():
            shares[name] = max(share, shares.get(name, 0.0))
    return shares


def given_away_over(runs: Sequence[Run]) -> dict[str, tuple[str, Shortcut]]:
    """Test set -> the best rule that sees no picture, where an audit of one of the runs found one."""
    found: dict[str, tuple[str, Shortcut]] = {}
    for run in runs:
        found |= strong_shortcuts(run.metrics.get("audit") or {})
    return {name: shortcut for name, shortcut in found.items() if name in runs[0].test_sets}


def marks(runs: Sequence[Run], test_sets: Collection[str]) -> str:
    """What stands beside a number of these runs that rests on these test sets."""
    leak = not leaked_over(runs).keys().isdisjoint(test_sets)
    shortcut = not given_away_over(runs).keys().isdisjoint(test_sets)
    return DAGGER * leak + GIVEN_AWAY * shortcut


@dataclass(frozen=True)
class AuditSection:
    """What the page shows of one run's audit.

    Attributes:
        run: its name.
        verdict: what sums it up, point by point.
        leaks: from, into, questions, copies, share, kinds in words.
        shortcuts: heads (test sets), and rows of a rule with its accuracy on each set.
        chance: accuracy of guessing, by test set.
        pairs: kind, distance, and the two pictures, of the first copies.
        faults: lines.
    """

    run: str
    verdict: tuple[str, ...]
    leaks: list[tuple[str, str, int, int, float, str]]
    shortcuts: tuple[list[str], list[tuple[str, list[float]]]]
    chance: list[float]
    pairs: list[dict]
    faults: list[str]


def section(run: Run) -> AuditSection | None:
    """The audit of a run; ``None`` where it left none."""
    found = run.metrics.get("audit") or {}
    if "verdict" not in found:
        return None
    leaks = [
        (
            leak["source"],
            leak["target"],
            leak["n"],
            leak["questions"],
            leak["questions"] / leak["n"],
            ", ".join(f"{n} {kind}" for kind, n in leak["kinds"].items()) or "none",
        )
        for leak in found["leaks"]
    ]
    sets = list(found["shortcuts"])
    rules = list(found["shortcuts"][sets[0]]) if sets else []
    rows = [(rule, [found["shortcuts"][name][rule]["accuracy"] for name in sets]) for rule in rules]
    return AuditSection(
        run=run.name,
        verdict=tuple(found["verdict"].replace(" %", "\N{NO-BREAK SPACE}%").split("; ")),
        leaks=leaks,
        shortcuts=(sets, rows),
        chance=[next(iter(found["shortcuts"][name].values()))["chance"] for name in sets],
        pairs=[pair for leak in found["leaks"] if leak["source"] == "train" for pair in leak["pairs"]][:20],
        faults=found["faults"],
    )
