"""Compares runs on the same questions: rates of every run group, paired differences, adjusted tests."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medvlm_r1.evaluate.power import smallest_difference
from medvlm_r1.evaluate.statistics import Interval, holm
from medvlm_r1.report.fairness import Fairness, compare_settings
from medvlm_r1.report.groups import RunGroup, check_same_questions, group_difference, group_runs
from medvlm_r1.report.methods import UNTRAINED, is_rl_and_baseline
from medvlm_r1.report.run_folder import Run, RunFolderError, find_runs

MEAN = "mean"  # scope: mean over all test sets
OUTSIDE = "outside"  # scope: mean over the test sets of other modalities than the training set's
LEVEL = 0.05  # adjusted p below which a test supports a difference


class Tested:
    """A paired difference; ``adjusted`` is its p-value after Holm's adjustment over all of its family."""

    adjusted: float

    @property
    def supported(self) -> bool:
        """Whether the adjusted test supports a difference."""
        return self.adjusted < LEVEL

    def as_dict(self) -> dict:
        """Plain types for JSON; fractions throughout."""
        return asdict(self) | {"supported": self.supported}


@dataclass(frozen=True)
class Difference(Tested):
    """``first`` minus ``second`` (labels of groups) on the same questions."""

    first: str
    second: str
    where: str  # test set, or ``mean`` / ``outside`` for a mean over several
    interval: Interval
    p: float
    adjusted: float
    test: str  # ``mcnemar exact`` or ``bootstrap``


@dataclass(frozen=True)
class Comparison:
    """The data of all tables, figures and the page.

    Attributes:
        groups: in the order of every table: zero-shot, SFT, GRPO.
        in_domain: test sets of the training modality; empty if it is unknown or differs between runs.
        baseline: label of the group that differences are taken from.
        fairness: settings of each reinforcement learner and each baseline that learns from the same questions
            or samples from the same weights.
        unfinished: folders without ``metrics.json``.
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
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def scopes(self) -> dict[str, list[str]]:
        """Scope -> test sets: every test set, then the means over several."""
        return _scopes(self.test_sets, self.in_domain)

    @cached_property
    def accuracy(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> strict accuracy."""
        return self._rates("correct")

    @cached_property
    def lenient(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> accuracy if an answer outside the tags counts too."""
        return self._rates("correct_lenient")

    @cached_property
    def released(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> accuracy by the released evaluation code of the prompt's paper.

        Only groups whose runs scored every question of every test set so (``evaluation.reading=released``).
        """
        scored = {group.label for group in self.groups if all(map(_has_released, group.runs))}
        return self._rates("correct_released", scored)

    @cached_property
    def pass_at_n(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> share of questions with a right answer among the n that were sampled.

        An upper bound of what a choice among them can reach; only groups that sample several.
        """
        sampled = {g.label for g in self.groups if all(run.metrics.get("samples") for run in g.runs)}
        return self._rates("passed", sampled)

    @cached_property
    def well_formed(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> share of responses with think tags followed by answer tags."""
        return self._rates("well_formed")

    @cached_property
    def answered(self) -> dict[str, dict[str, Interval]]:
        """Group label -> scope -> share of responses with an answer in answer tags."""
        return self._rates("answered")

    @property
    def rates(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """The tables of rates by their names in files; the last two only if a group has them."""
        names = ("accuracy", "accuracy_lenient", "well_formed", "answered")
        tables = dict(zip(names, (self.accuracy, self.lenient, self.well_formed, self.answered), strict=True))
        some = {"accuracy_released": self.released, "pass_at_n": self.pass_at_n}
        return tables | {name: table for name, table in some.items() if table}

    def _rates(self, column: str, labels: set[str] | None = None) -> dict[str, dict[str, Interval]]:
        groups = [g for g in self.groups if labels is None or g.label in labels]
        return {g.label: {s: g.rate(sets, column) for s, sets in self.scopes.items()} for g in groups}

    @cached_property
    def chance(self) -> dict[str, float]:
        """Scope -> accuracy of guessing among the options; 0 for an open question."""
        options = {t: self.groups[0].runs[0].answers(t)["options"].str.len() for t in self.test_sets}
        guess = {t: float((1 / n).where(n > 0, 0.0).mean()) for t, n in options.items()}
        return {s: float(np.mean([guess[t] for t in sets])) for s, sets in self.scopes.items()}

    def best(self, where: str) -> str | None:
        """Label of the group that adjusted tests support as better than every other; often ``None``."""
        labels = {group.label for group in self.groups}
        tests = [d for d in self.differences if d.where == where and d.supported]
        won = {(d.first, d.second) for d in tests if d.interval.value > 0}
        won |= {(d.second, d.first) for d in tests if d.interval.value < 0}
        best = (a for a in labels if len(labels) > 1 and all((a, b) in won for b in labels - {a}))
        return next(best, None)

    def detectable_difference(self, where: str) -> float:
        """Smallest difference between two unpaired runs of this size that a test detects with 80 % power."""
        rates = [rates[where].value for rates in self.accuracy.values()]
        near = float(np.clip(np.mean(rates), 0.05, 0.95))
        return smallest_difference(self.accuracy[self.groups[0].label][where].n, near)

    def as_dict(self) -> dict:
        """Plain types for ``comparison.json``; fractions throughout."""
        tables = {
            name: {label: {s: i.as_dict() for s, i in rates.items()} for label, rates in table.items()}
            for name, table in self.rates.items()
        }
        return {
            "rows": [
                {"label": g.label, "method": g.method, "experiment": g.experiment}
                | {"seeds": g.seeds, "runs": [str(run.folder) for run in g.runs]}
                for g in self.groups
            ],
            "test_sets": self.test_sets,
            "in_domain": self.in_domain,
            "columns": self.scopes,
            "baseline": self.baseline,
            "chance": self.chance,
            "smallest_visible_difference": {s: self.detectable_difference(s) for s in self.scopes},
            **tables,
            "differences": [d.as_dict() for d in self.differences],
            "fairness": [asdict(f) | {"fair": f.fair} for f in self.fairness],
            "unfinished": [str(p) for p in self.unfinished],
        }


def compare(folders: Sequence[Path], baseline: str | None = None) -> Comparison:
    """Read runs, group them by configuration and test their differences.

    Args:
        folders: run folders, or folders of run folders.
        baseline: experiment, method or group label that differences are taken from; by default the
            zero-shot group, if there is one.

    Raises:
        UnpairedError: the runs answered different questions.
        RunFolderError: a folder cannot be read, or ``baseline`` names no group.
    """
    runs, unfinished = find_runs(folders)
    check_same_questions(runs)
    groups = group_runs(runs)
    base = _baseline(groups, baseline)
    first = runs[0]
    trained = [run for run in runs if run.method not in UNTRAINED] or runs
    domains = {tuple(run.in_domain) for run in trained if run.in_domain}
    in_domain = list(domains.pop()) if len(domains) == 1 else []
    justified = [(a, b) for a in groups for b in groups if is_rl_and_baseline(a.method, b.method)]
    pairs = [(g, base) for g in groups if base and g is not base and (base, g) not in justified]
    pairs += [(a, b) for a, b in justified if base is not b]
    return Comparison(
        groups=groups,
        test_sets=first.test_sets,
        in_domain=in_domain,
        baseline=base.label if base else None,
        differences=differences(pairs, _scopes(first.test_sets, in_domain)),
        fairness=[compare_settings(*_same_seed(b, a), (b.label, a.label)) for a, b in justified],
        unfinished=unfinished,
    )


def differences(pairs: Sequence[tuple[RunGroup, RunGroup]], scopes: dict[str, list[str]]) -> list[Difference]:
    """Paired differences of each pair of groups in each scope, Holm-adjusted as one family."""
    tests = [
        (first.label, second.label, where, *group_difference(first, second, sets))
        for first, second in pairs
        for where, sets in scopes.items()
    ]
    adjusted = holm([p for *_, p, _ in tests])
    return [Difference(*t[:5], q, t[5]) for t, q in zip(tests, adjusted, strict=True)]


def _baseline(groups: Sequence[RunGroup], name: str | None) -> RunGroup | None:
    wanted = "zero_shot" if name is None else name
    matches = [g for g in groups if wanted in (g.label, g.experiment)]
    matches = matches or [g for g in groups if g.method == wanted]
    if not matches and name is not None:
        raise RunFolderError(f"baseline {name!r} is none of {', '.join(g.label for g in groups)}")
    if len(matches) > 1 and name is not None:
        labels = ", ".join(g.label for g in matches)
        raise RunFolderError(f"baseline {name!r} matches {labels}: give one label")
    return matches[0] if matches else None


def _has_released(run: Run) -> bool:
    """Whether the run scored every test question by the released evaluation code."""
    released = run.metrics.get("accuracy_released", {})
    return all(released.get(name, {}).get("n") == rate["n"] for name, rate in run.metrics["accuracy"].items())


def _same_seed(a: RunGroup, b: RunGroup) -> tuple[Run, Run]:
    """A run of each group, of the lowest seed that both have; else the first run of each."""
    shared = set(a.seeds) & set(b.seeds)
    seeds = (min(shared), min(shared)) if shared else (a.seeds[0], b.seeds[0])
    return tuple(g.runs[g.seeds.index(seed)] for g, seed in zip((a, b), seeds, strict=True))


def _scopes(test_sets: list[str], in_domain: list[str]) -> dict[str, list[str]]:
    outside = [t for t in test_sets if t not in in_domain]
    scopes = {t: [t] for t in test_sets}
    if in_domain and len(outside) > 1:
        scopes[OUTSIDE] = outside
    if len(test_sets) > 1:
        scopes[MEAN] = list(test_sets)
    return scopes
