"""The generalisation matrix: trained on each of several domains, tested on all of them (Med-R1).

A line is what a model was trained on, a column what it was tested on. Cells of the diagonal are in domain:
there a text prior of the training questions may answer as well, so they are kept apart from the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medvlm_r1.evaluate.controls import PRIOR
from medvlm_r1.evaluate.statistics import Interval, holm, over_seeds, seeds_difference
from medvlm_r1.report.audit import leaked_over
from medvlm_r1.report.comparison import LEVEL
from medvlm_r1.report.controls import difference, rate
from medvlm_r1.report.fairness import settings
from medvlm_r1.report.rows import Row, check_same_questions, group
from medvlm_r1.report.run_folder import METHODS, Run, RunFolderError, find_runs

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Cell:
    """One training domain on one test set.

    Attributes:
        accuracy: strict, with its interval.
        in_domain: whether the model was trained on the test set's domain.
        leaked: whether training showed pictures of the test set.
        prior: accuracy of the text prior fitted on the training questions; ``None`` where it was not asked.
        gain: accuracy minus that prior, paired; ``None`` likewise.
    """

    accuracy: Interval
    in_domain: bool
    leaked: bool
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
        """Mean of all cells off the diagonal.

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

    def outcomes_outside(self) -> dict[str, np.ndarray]:
        """Test set -> ``[seeds, questions]``, mean over the lines that were not trained on it."""
        return self._outcomes(inside=False)

    def _cell(self, domain: str, row: Row, test: str) -> Cell:
        prior = rate(row, test, PRIOR)
        leaked = test in leaked_over(row.runs)
        gain = difference(row, test, PRIOR)
        return Cell(row.rate([test]), domain == test, leaked, prior and prior.value, gain)

    def _outcomes(self, inside: bool) -> dict[str, np.ndarray]:
        found = {
            test: [
                row.outcomes(test)
                for domain, row in self.lines.items()
                if (domain == test) == inside and domain != UNTRAINED
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
            for domain in first.lines.keys() & other.lines.keys() - {UNTRAINED}:
                a, b = other.lines[domain], first.lines[domain]
                for test in first.test_sets:
                    tested = seeds_difference([a.outcomes(test)], [b.outcomes(test)], [a.groups(test)])
                    found.append((other.label, domain, test, *tested))
            a, b = other.outcomes_outside(), first.outcomes_outside()
            if shared := [test for test in a if test in b]:
                groups = [first.groups(t) for t in shared]
                tested = seeds_difference([a[t] for t in shared], [b[t] for t in shared], groups)
                found.append((other.label, None, None, *tested))
        adjusted = holm([p for *_, p in found])
        return [Change(*parts, q) for parts, q in zip(found, adjusted, strict=True)]

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
        RunFolderError: no run names its domain, or two configurations differ in more than domain, seed,
            method and prompt.
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
    untrained = {row.runs[0].config.get("prompt", {}).get("name"): row for row in rows if row not in trained}
    return [_matrix(kind, made, untrained, runs[0].test_sets) for kind in made]


def matrices_among(runs: Sequence[Run]) -> Matrices | None:
    """The matrices that compared runs make; ``None`` where fewer than two domains were trained on."""
    if len({_domain(run) for run in runs} - {None}) < 2:
        return None
    try:
        return Matrices(arranged(runs))
    except RunFolderError:  # further settings differ: their comparison stands in the other tables
        return None


def _matrix(kind: tuple[str, str], made: dict, untrained: dict[str, Row], tests: list[str]) -> Matrix:
    method, prompt = kind
    lines = {domain: made[kind][domain] for domain in [*tests, *made[kind]] if domain in made[kind]}
    if prompt in untrained:
        lines[UNTRAINED] = untrained[prompt]
    parts = [METHODS[method]] if len({m for m, _ in made}) > 1 or len(made) == 1 else []
    parts += [prompt] if len({p for _, p in made}) > 1 else []
    return Matrix(", ".join(parts), lines, tests)


def _kind(row: Row) -> tuple[str, str]:
    return row.method, str(row.runs[0].config.get("prompt", {}).get("name"))


def _domain(run: Run) -> str | None:
    return (run.config.get("data") or {}).get("domain")


def _odd(a: Row, b: Row) -> str:
    """Keys in which two configurations differ."""
    one, other = (settings(row.runs[0]) for row in (a, b))
    return ", ".join(sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k)))
