"""Pairs runs on the same questions: one row per configuration, differences with adjusted tests."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medvlm_r1.evaluate.statistics import Interval, holm, smallest_difference
from medvlm_r1.report.fairness import Fairness, compare_settings
from medvlm_r1.report.groups import RunGroup, check_same_questions, group_difference, group_runs
from medvlm_r1.report.run_folder import Run, RunFolderError, find_runs, rl_beside_sft

MEAN, OUTSIDE = (
    "mean",
    "outside",
)  # over all test sets; over those of other modalities than the training set's
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """``first`` minus ``second`` on the same questions.

    Attributes:
        first: label of the minuend.
        second: label of the subtrahend.
        where: test set, or ``mean`` / ``outside`` for a mean over several.
        interval: the paired difference.
        p: of ``test``, unadjusted.
        adjusted: Holm-adjusted over every difference of the comparison.
        test: ``mcnemar exact`` or ``bootstrap``.
    """

    first: str
    second: str
    where: str
    interval: Interval
    p: float
    adjusted: float
    test: str

    @property
    def supported(self) -> bool:
        """Whether the adjusted test supports a difference."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Comparison:
    """Everything that tables, figures and the page show.

    Attributes:
        groups: runs by configuration, in the order of every table: zero-shot, SFT, GRPO.
        test_sets: in the order of the runs.
        in_domain: test sets of the training modality, as far as it is known and the same for all.
        baseline: label of the row from which differences are taken; ``None`` without one.
        differences: all tests of the family.
        fairness: SFT beside GRPO.
        unfinished: folders without a summary.
    """

    groups: list[RunGroup]
    test_sets: list[str]
    in_domain: list[str]
    baseline: str | None
    differences: list[Difference]
    fairness: list[Fairness]
    unfinished: list[Path] = field(default_factory=list)

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of all groups, in order."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def scopes(self) -> dict[str, list[str]]:
        """Column -> test sets: each one, then the means that say more than one column does."""
        return _scopes(self.test_sets, self.in_domain)

    @cached_property
    def accuracy(self) -> dict[str, dict[str, Interval]]:
        """Group label -> column -> strict accuracy."""
        return self._rates("correct")

    @cached_property
    def lenient(self) -> dict[str, dict[str, Interval]]:
        """Group label -> column -> accuracy when an answer outside the tags counts too."""
        return self._rates("correct_lenient")

    @cached_property
    def well_formed(self) -> dict[str, dict[str, Interval]]:
        """Group label -> column -> share of texts that are think tags, then answer tags."""
        return self._rates("well_formed")

    @cached_property
    def answered(self) -> dict[str, dict[str, Interval]]:
        """Group label -> column -> share of texts with an answer in answer tags."""
        return self._rates("answered")

    def _rates(self, column: str) -> dict[str, dict[str, Interval]]:
        return {r.label: {s: r.rate(sets, column) for s, sets in self.scopes.items()} for r in self.groups}

    @cached_property
    def chance(self) -> dict[str, float]:
        """Column -> accuracy of guessing among each question's options; an open question has none."""
        options = {t: self.groups[0].runs[0].answers(t)["options"].str.len() for t in self.test_sets}
        guess = {t: float((1 / n).where(n > 0, 0.0).mean()) for t, n in options.items()}
        return {s: float(np.mean([guess[t] for t in sets])) for s, sets in self.scopes.items()}

    def best(self, where: str) -> str | None:
        """The row that its adjusted tests put above every other row of a column; often none."""
        for row in self.groups:
            above = {d.second for d in self.differences if self._won(d, row.label, where, 1)}
            above |= {d.first for d in self.differences if self._won(d, row.label, where, -1)}
            if len(self.groups) > 1 and above == {r.label for r in self.groups} - {row.label}:
                return row.label
        return None

    @staticmethod
    def _won(d: Difference, label: str, where: str, sign: int) -> bool:
        mine = d.first if sign > 0 else d.second
        return d.where == where and mine == label and d.supported and sign * d.interval.value > 0

    def smallest_visible(self, where: str) -> float:
        """Smallest difference that two unpaired runs of this column's size show with 80 % power."""
        rates = [row[where].value for row in self.accuracy.values()]
        near = float(np.clip(np.mean(rates), 0.05, 0.95))
        return smallest_difference(self.accuracy[self.groups[0].label][where].n, near)

    def as_dict(self) -> dict:
        """Plain types for ``comparison.json``; fractions throughout."""
        tables = {
            name: {label: {s: i.as_dict() for s, i in row.items()} for label, row in rates.items()}
            for name, rates in (
                ("accuracy", self.accuracy),
                ("accuracy_lenient", self.lenient),
                ("well_formed", self.well_formed),
                ("answered", self.answered),
            )
        }
        return {
            "rows": [
                {"label": r.label, "method": r.method, "experiment": r.experiment}
                | {"seeds": r.seeds, "runs": [str(run.folder) for run in r.runs]}
                for r in self.groups
            ],
            "test_sets": self.test_sets,
            "in_domain": self.in_domain,
            "columns": self.scopes,
            "baseline": self.baseline,
            "chance": self.chance,
            "smallest_visible_difference": {s: self.smallest_visible(s) for s in self.scopes},
            **tables,
            "differences": [asdict(d) | {"supported": d.supported} for d in self.differences],
            "fairness": [asdict(f) | {"fair": f.fair} for f in self.fairness],
            "unfinished": [str(p) for p in self.unfinished],
        }


def compare(folders: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read runs, group them by configuration and test their differences.

    Args:
        folders: run folders, or folders of run folders.
        baseline: experiment, method or row label from which differences are taken; by default
            the zero-shot row, if there is one.

    Raises:
        UnpairedError: the runs answered different questions.
        RunFolderError: a folder cannot be read, or the baseline is not among the rows.
    """
    runs, unfinished = find_runs(folders)
    check_same_questions(runs)
    groups = group_runs(runs)
    base = _baseline(groups, baseline)
    first = runs[0]
    trained = [run for run in runs if run.method != "zero_shot"] or runs
    domains = {tuple(run.in_domain) for run in trained if run.in_domain}
    in_domain = list(domains.pop()) if len(domains) == 1 else []  # of several domains no column is everyone's
    pairs = [(row, base) for row in groups if base and row is not base]
    tuned = [(a, b) for a in groups for b in groups if rl_beside_sft(a.method, b.method)]
    pairs += [(a, b) for a, b in tuned if base is not b]
    return Comparison(
        groups=groups,
        test_sets=first.test_sets,
        in_domain=in_domain,
        baseline=base.label if base else None,
        differences=differences(pairs, _scopes(first.test_sets, in_domain)),
        fairness=[compare_settings(*_same_seed(b, a), (b.label, a.label)) for a, b in tuned],
        unfinished=unfinished,
    )


def differences(pairs: Sequence[tuple[RunGroup, RunGroup]], scopes: dict[str, list[str]]) -> list[Difference]:
    """Paired differences of each pair of rows in each column, Holm-adjusted as one family."""
    found = [
        (first.label, second.label, where, *group_difference(first, second, sets))
        for first, second in pairs
        for where, sets in scopes.items()
    ]
    adjusted = holm([f[4] for f in found])
    return [Difference(*f[:5], q, f[5]) for f, q in zip(found, adjusted, strict=True)]


def _baseline(rows: Sequence[RunGroup], wanted: str | None) -> RunGroup | None:
    names = {"zero_shot"} if wanted is None else {wanted}
    found = [r for r in rows if names & {r.label, r.experiment}] or [r for r in rows if r.method in names]
    if not found and wanted is not None:
        raise RunFolderError(f"baseline {wanted!r} is none of {', '.join(r.label for r in rows)}")
    if len(found) > 1 and wanted is not None:
        raise RunFolderError(f"baseline {wanted!r} fits {', '.join(r.label for r in found)}: give one label")
    return found[0] if found else None


def _same_seed(a: RunGroup, b: RunGroup) -> tuple[Run, Run]:
    """A run of each row, of the lowest seed that both have; else the first of each."""
    both = sorted(set(a.seeds) & set(b.seeds))
    pick = [next((r for r in row.runs if both and r.seed == both[0]), row.runs[0]) for row in (a, b)]
    return pick[0], pick[1]


def _scopes(test_sets: list[str], in_domain: list[str]) -> dict[str, list[str]]:
    outside = [t for t in test_sets if t not in in_domain]
    scopes = {t: [t] for t in test_sets}
    if in_domain and len(outside) > 1:
        scopes[OUTSIDE] = outside
    if len(test_sets) > 1:
        scopes[MEAN] = list(test_sets)
    return scopes
