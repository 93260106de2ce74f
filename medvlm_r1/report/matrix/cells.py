"""The generalisation matrix: models trained on one of several domains each, tested on all of them (Med-R1).

Rows are training domains, columns test sets. Cells on the diagonal are in domain: there a text prior of the
training questions may be as accurate, so their mean is separate from the mean of the other cells.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medvlm_r1.evaluate.controls import PRIOR
from medvlm_r1.evaluate.statistics import Interval, holm, over_seeds, seeds_difference
from medvlm_r1.report.comparison import Tested
from medvlm_r1.report.groups import RunGroup, group_difference, mean_outcomes
from medvlm_r1.report.page.audit import marks
from medvlm_r1.report.tables.controls import accuracy_under, gain_over

UNTRAINED = "untrained"


@dataclass(frozen=True)
class MatrixCell:
    """One training domain on one test set.

    Attributes:
        accuracy: strict.
        marks: of a leak or a shortcut that touches the number.
        prior: accuracy of the text prior fitted on the training questions; ``None`` if it was not tested.
        gain: accuracy minus ``prior``, paired; ``None`` likewise.
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
        rows: training domain -> its runs; the zero-shot runs are under :data:`UNTRAINED`.
        test_sets: the columns.
    """

    label: str  # method, and prompt if there are matrices of several prompts
    rows: dict[str, RunGroup]
    test_sets: list[str]

    @cached_property
    def cells(self) -> dict[str, dict[str, MatrixCell]]:
        """Training domain -> test set -> cell."""
        return {
            domain: {test: self._cell(domain, row, test) for test in self.test_sets}
            for domain, row in self.rows.items()
        }

    @cached_property
    def in_domain(self) -> Interval | None:
        """Mean of the diagonal; test sets have equal weights."""
        return self._mean(self.outcomes(inside=True))

    @cached_property
    def outside(self) -> Interval | None:
        """Mean off the diagonal: of each test set over the rows not trained on it, then over test sets.

        Questions and seeds are samples, rows are not: the rows' outcomes on one question are averaged first,
        because they share its difficulty.
        """
        return self._mean(self.outcomes(inside=False))

    @cached_property
    def lost_outside(self) -> tuple[Interval, float] | None:
        """Mean of the diagonal minus mean off the diagonal on the same questions, and its p-value."""
        both = [self.outcomes(inside) for inside in (True, False)]
        shared = [test for test in self.test_sets if all(test in outcomes for outcomes in both)]
        groups = [self.image_groups(test) for test in shared]
        return seeds_difference(*([part[t] for t in shared] for part in both), groups) if shared else None

    def image_groups(self, test_set: str) -> list:
        return next(iter(self.rows.values())).image_groups(test_set)

    @property
    def trained(self) -> dict[str, RunGroup]:
        """The rows without the untrained one."""
        return {domain: row for domain, row in self.rows.items() if domain != UNTRAINED}

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds that every trained row has; means over rows use these."""
        return sorted(set.intersection(*(set(row.seeds) for row in self.trained.values())))

    def _cell(self, domain: str, row: RunGroup, test: str) -> MatrixCell:
        touched = marks(row.runs, [test])
        if domain == UNTRAINED:  # has no training questions, so no prior
            return MatrixCell(row.rate([test]), False, touched)
        prior = accuracy_under(row, test, PRIOR)
        gain = gain_over(row, test, PRIOR)
        return MatrixCell(row.rate([test]), domain == test, touched, prior and prior.value, gain)

    def outcomes(self, inside: bool, domains: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Test set -> ``[seeds, questions]``: mean over the rows of ``domains`` (not) trained on it."""
        trained = [(d, row) for d, row in self.trained.items() if domains is None or d in domains]
        rows = {t: [row for d, row in trained if (d == t) == inside] for t in self.test_sets}
        return {test: mean_outcomes(part, test, self.seeds) for test, part in rows.items() if part}

    def _mean(self, outcomes: dict[str, np.ndarray]) -> Interval | None:
        groups = [self.image_groups(test) for test in outcomes]
        return over_seeds(list(outcomes.values()), groups) if outcomes else None

    def as_dict(self) -> dict:
        """Plain types for ``matrix.json``; fractions throughout."""
        means = {"in_domain": self.in_domain, "out_of_domain": self.outside}
        lost = self.lost_outside
        return {
            "label": self.label,
            "runs": {domain: [str(run.folder) for run in row.runs] for domain, row in self.rows.items()},
            "cells": {d: {t: asdict(cell) for t, cell in line.items()} for d, line in self.cells.items()},
            "mean": {name: mean.as_dict() for name, mean in means.items() if mean},
            "lost_outside": lost and {**lost[0].as_dict(), "p": lost[1]},
        }


@dataclass(frozen=True)
class Change(Tested):
    """A cell minus the same cell of the first matrix; without a domain, the means off the diagonal."""

    label: str
    domain: str | None
    test_set: str | None
    interval: Interval
    p: float
    test: str
    adjusted: float


@dataclass(frozen=True)
class Matrices:
    """Matrices on the same questions; the others are compared with the first."""

    matrices: list[Matrix]
    unfinished: list[Path] = field(default_factory=list)

    @cached_property
    def changes(self) -> list[Change]:
        """Every cell, and the mean off the diagonal, minus the first matrix; Holm over all of them."""
        first, *rest = self.matrices
        tests = []
        for other in rest:
            domains = self.shared(other)
            tests += [
                (other.label, d, test, *group_difference(other.rows[d], first.rows[d], [test]))
                for d in domains
                for test in first.test_sets
            ]
            a, b = (matrix.outcomes(False, domains) for matrix in (other, first))
            if a:
                groups = [first.image_groups(t) for t in a]
                result = seeds_difference(list(a.values()), list(b.values()), groups)
                tests.append((other.label, None, None, *result, "bootstrap"))
        adjusted = holm([p for *_, p, _ in tests])
        return [Change(*parts, q) for parts, q in zip(tests, adjusted, strict=True)]

    def shared(self, other: Matrix) -> list[str]:
        """Training domains that both the first matrix and ``other`` have."""
        return [domain for domain in self.matrices[0].trained if domain in other.trained]

    def as_dict(self) -> dict:
        """Plain types for ``matrix.json``."""
        return {
            "test_sets": self.matrices[0].test_sets,
            "matrices": [matrix.as_dict() for matrix in self.matrices],
            "changes": [change.as_dict() for change in self.changes],
            "unfinished": [str(path) for path in self.unfinished],
        }
