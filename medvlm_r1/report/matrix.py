"""The generalisation matrix: trained on each of several domains, tested on all of them (Med-R1).

A line is what a model was trained on, a column what it was tested on. Cells of the diagonal are in domain:
there a text prior of the training questions may answer as well, so they are kept apart from the others.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medvlm_r1.evaluate.controls import PRIOR
from medvlm_r1.evaluate.statistics import Interval, holm, over_seeds, seeds_difference
from medvlm_r1.report.audit import marks
from medvlm_r1.report.comparison import LEVEL
from medvlm_r1.report.controls import difference, rate
from medvlm_r1.report.fairness import settings
from medvlm_r1.report.rows import Row, check_same_questions, group, paired
from medvlm_r1.report.run_folder import METHODS, Run, RunFolderError, find_runs

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Cell:
    """One training domain on one test set.

    Attributes:
        accuracy: strict, with its interval.
        in_domain: whether the model was trained on the test set's domain.
        marks: of what the audit found that touches the number (a leak, a shortcut).
        prior: accuracy of the text prior fitted on the training questions; ``None`` where it was not asked.
        gain: accuracy minus that prior, paired; ``None`` likewise.
    """

    accuracy: Interval
    in_domain: bool
    marks: str = ""
    prior: float | None = None
    gain: Interval | None = None


@dataclass(frozen=True)
class Matrix:
    """One method under one prompt, trained on each domain.

    Attributes:
        label: method, and prompt where matrices of several prompts stand side by side.
        lines: training domain -> its runs; :data:`UNTRAINED` holds zero-shot runs.
        test_sets: the columns.
    """

    label: str
    lines: dict[str, Row]
    test_sets: list[str]

    @cached_property
    def cells(self) -> dict[str, dict[str, Cell]]:
        """Training domain -> test set -> cell."""
        return {
            domain: {test: self._cell(domain, row, test) for test in self.test_sets}
            for domain, row in self.lines.items()
        }

    @cached_property
    def in_domain(self) -> Interval | None:
        """Mean of the diagonal, each test set weighing the same."""
        return self._mean(self._outcomes(inside=True))

    @cached_property
    def outside(self) -> Interval | None:
        """Mean off the diagonal: of each test set over the lines not trained on it, then over test sets.

        Lines are no draw of anything, questions and seeds are: the lines' outcomes on one question are
        averaged first, because they share its difficulty.
        """
        return self._mean(self._outcomes(inside=False))

    @cached_property
    def lost_outside(self) -> tuple[Interval, float] | None:
        """Mean of the diagonal minus mean of the rest on the same questions, and its p."""
        both = [self._outcomes(inside) for inside in (True, False)]
        shared = [test for test in self.test_sets if all(test in outcomes for outcomes in both)]
        if not shared:
            return None
        return seeds_difference(
            *([part[t] for t in shared] for part in both), [self.groups(t) for t in shared]
        )

    def groups(self, test_set: str) -> list:
        """Image group of each question of a column."""
        return next(iter(self.lines.values())).groups(test_set)

    @property
    def trained(self) -> dict[str, Row]:
        """The lines that were trained on something."""
        return {domain: row for domain, row in self.lines.items() if domain != UNTRAINED}

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds that every trained line has: means over lines are of these."""
        return sorted(set.intersection(*(set(row.seeds) for row in self.trained.values())))

    def outcomes_outside(self, domains: Collection[str]) -> dict[str, np.ndarray]:
        """Test set -> ``[seeds, questions]``, mean over those lines of ``domains`` not trained on it."""
        return self._outcomes(inside=False, domains=domains)

    def _cell(self, domain: str, row: Row, test: str) -> Cell:
        found = marks(row.runs, [test])
        if domain == UNTRAINED:  # no questions that it could know the priors of
            return Cell(row.rate([test]), False, found)
        prior = rate(row, test, PRIOR)
        gain = difference(row, test, PRIOR)
        return Cell(row.rate([test]), domain == test, found, prior and prior.value, gain)

    def _outcomes(self, inside: bool, domains: Collection[str] | None = None) -> dict[str, np.ndarray]:
        found = {
            test: [
                row.outcomes(test)[[row.seeds.index(seed) for seed in self.seeds]]
                for domain, row in self.trained.items()
                if (domain == test) == inside and (domains is None or domain in domains)
            ]
            for test in self.test_sets
        }
        return {test: np.mean(lines, axis=0) for test, lines in found.items() if lines}

    def _mean(self, outcomes: dict[str, np.ndarray]) -> Interval | None:
        return over_seeds(list(outcomes.values()), [self.groups(t) for t in outcomes]) if outcomes else None

    def as_dict(self) -> dict:
        """Plain types for ``matrix.json``; fractions throughout."""
        means = {"in_domain": self.in_domain, "out_of_domain": self.outside}
        lost = self.lost_outside
        return {
            "label": self.label,
            "runs": {domain: [str(run.folder) for run in row.runs] for domain, row in self.lines.items()},
            "cells": {d: {t: asdict(cell) for t, cell in line.items()} for d, line in self.cells.items()},
            "mean": {name: mean.as_dict() for name, mean in means.items() if mean},
            "lost_outside": lost and {**lost[0].as_dict(), "p": lost[1]},
        }


@dataclass(frozen=True)
class Change:
    """A cell of one matrix minus the same of the first; without a domain, the mean off the diagonal."""

    label: str
    domain: str | None
    test_set: str | None
    interval: Interval
    p: float
    test: str
    adjusted: float

    @property
    def supported(self) -> bool:
        """Whether the test, adjusted over all changes, supports a difference."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Matrices:
    """Matrices on the same questions side by side; the first is what the others are compared with."""

    matrices: list[Matrix]
    unfinished: list[Path] = field(default_factory=list)

    @cached_property
    def changes(self) -> list[Change]:
        """Every cell, and the mean off the diagonal, against the first matrix; Holm over all of them."""
        first, *rest = self.matrices
        found = []
        for other in rest:
            domains = self.shared(other)
            for domain in domains:
                for test in first.test_sets:
                    tested = paired(other.lines[domain], first.lines[domain], [test])
                    found.append((other.label, domain, test, *tested))
            a, b = (matrix.outcomes_outside(domains) for matrix in (other, first))
            if a:
                groups = [first.groups(t) for t in a]
                tested = seeds_difference(list(a.values()), list(b.values()), groups)
                found.append((other.label, None, None, *tested, "bootstrap"))
        adjusted = holm([p for *_, p, _ in found])
        return [Change(*parts, q) for parts, q in zip(found, adjusted, strict=True)]

    def shared(self, other: Matrix) -> list[str]:
        """Domains that both the first matrix and ``other`` have lines of."""
        return [domain for domain in self.matrices[0].trained if domain in other.trained]

    def as_dict(self) -> dict:
        """Plain types for ``matrix.json``."""
        return {
            "test_sets": self.matrices[0].test_sets,
            "matrices": [matrix.as_dict() for matrix in self.matrices],
            "changes": [asdict(change) | {"supported": change.supported} for change in self.changes],
            "unfinished": [str(path) for path in self.unfinished],
        }


def assemble(folders: Sequence[Path]) -> Matrices:
    """Read runs that were trained on one domain each, and put them in order; see :func:`arranged`.

    Raises:
        UnpairedError: the runs answered different questions.
        RunFolderError: a folder cannot be read, or the runs make no matrix.
    """
    runs, unfinished = find_runs(folders)
    check_same_questions(runs)
    return Matrices(arranged(runs), unfinished)


def arranged(runs: Sequence[Run]) -> list[Matrix]:
    """One matrix of each method and prompt, from runs on the same questions.

    What a run was trained on is its ``data.domain``.

    Raises:
        RunFolderError: no run names its domain, two configurations of one method and prompt differ in more
            than domain and seed, or they share no seed.
    """
    rows = group([run for run in runs if run.method == "zero_shot" or _domain(run)])
    trained = [row for row in rows if row.method != "zero_shot"]
    if not trained:
        raise RunFolderError(
            "no run says what domain it was trained on: train with data.domain=NAME, once for each domain "
            "(data=phantom_modality, phantom_task, med_r1_modality or med_r1_task)"
        )
    made: dict[tuple[str, str], dict[str, Row]] = {}
    for row in trained:
        lines = made.setdefault(_kind(row), {})
        domain = _domain(row.runs[0])
        if domain in lines:
            raise RunFolderError(
                f"{lines[domain].runs[0].folder} and {row.runs[0].folder} were both trained on {domain} by "
                f"{' under prompt '.join(_kind(row))}, and differ in {_odd(lines[domain], row)}: assemble "
                "them one after the other"
            )
        lines[domain] = row
    for kind, lines in made.items():
        _check_alike(kind, lines)
    untrained = [row for row in rows if row.method == "zero_shot"]
    return [_matrix(kind, made, untrained, runs[0].test_sets) for kind in made]


def matrices_among(runs: Sequence[Run]) -> Matrices | None:
    """The matrices that compared runs make; ``None`` where fewer than two domains were trained on."""
    if len({_domain(run) for run in runs} - {None}) < 2:
        return None
    try:
        return Matrices(arranged(runs))
    except RunFolderError:  # further settings differ: their comparison stands in the other tables
        return None


def _check_alike(kind: tuple[str, str], lines: dict[str, Row]) -> None:
    """All lines must differ in the domain alone, and have a seed in common."""
    (domain, first), *rest = lines.items()
    for other, row in rest:
        if odd := _odd(first, row, {domain, other}):
            raise RunFolderError(
                f"{first.runs[0].folder} and {row.runs[0].folder} were trained on {domain} and {other} by "
                f"{' under prompt '.join(kind)}, and differ in {odd} too: a matrix needs one configuration"
            )
    if not set.intersection(*(set(row.seeds) for row in lines.values())):
        had = "; ".join(f"{name}: {', '.join(map(str, row.seeds))}" for name, row in lines.items())
        raise RunFolderError(f"no seed was run on every domain ({had}): run the missing ones")


def _untrained(line: Row, prompt: str, candidates: Sequence[Row]) -> Row | None:
    """The zero-shot row of a line's prompt and starting weights."""

    def start(row: Row) -> dict:
        flat = settings(row.runs[0])
        return {k: v for k, v in flat.items() if k.startswith("model.") and not k.startswith("model.tuning")}

    fitting = [row for row in candidates if _kind(row)[1] == prompt and start(row) == start(line)]
    if len(fitting) > 1:
        a, b = fitting[:2]
        raise RunFolderError(
            f"{a.runs[0].folder} and {b.runs[0].folder} are both untrained under prompt {prompt}, and differ "
            f"in {_odd(a, b)}: give one of them"
        )
    return fitting[0] if fitting else None


def _matrix(kind: tuple[str, str], made: dict, zero_shot: Sequence[Row], tests: list[str]) -> Matrix:
    method, prompt = kind
    lines = {domain: made[kind][domain] for domain in [*tests, *made[kind]] if domain in made[kind]}
    if untrained := _untrained(next(iter(lines.values())), prompt, zero_shot):
        lines[UNTRAINED] = untrained
    parts = [METHODS[method]] if len({m for m, _ in made}) > 1 or len(made) == 1 else []
    parts += [prompt] if len({p for _, p in made}) > 1 else []
    return Matrix(", ".join(parts), lines, tests)


def _kind(row: Row) -> tuple[str, str]:
    return row.method, str(row.runs[0].config.get("prompt", {}).get("name"))


def _domain(run: Run) -> str | None:
    """The one domain that a run was trained on, if it names one and no more."""
    named = (run.config.get("data") or {}).get("domain")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    return named if isinstance(named, str) else None


def _odd(a: Row, b: Row, domains: Collection[str] = ()) -> str:
    """Keys in which two configurations differ, but for those that say what was trained on."""
    one, other = (settings(row.runs[0]) for row in (a, b))
    said = {repr(value) for name in domains for value in (name, [name])}
    return ", ".join(
        sorted(
            key
            for key in one.keys() | other.keys() - {"experiment"}
            if one.get(key) != other.get(key) and not {repr(one.get(key)), repr(other.get(key))} <= said
        )
    )
