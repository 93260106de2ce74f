"""A sweep: status of its runs, their cost, and the effects of its factors."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medvlm_r1.report.comparison import MEAN, OUTSIDE
from medvlm_r1.report.groups import RunGroup, check_same_questions
from medvlm_r1.report.run_folder import Run, RunFolderError, read_run
from medvlm_r1.report.sweep.effects import Effect, Levels, cells_of, effects_of, factors_of
from medvlm_r1.runs.status import FINISHED, attempts, jobs_of, statuses_of

TOKENS = ("prefill_tokens", "decode_rows", "forward_tokens")  # read, sampled, in the loss's forward passes


@dataclass(frozen=True)
class Cost:
    """Cost of the started runs on one kind of hardware."""

    runs: int = 0
    attempts: int = 0  # processes that worked on the runs; more than ``runs`` if some were resumed
    hours: float = 0.0  # of devices, including work that a kill lost
    tokens: int = 0  # that the model processed in the finished runs

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Cost(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class Sweep:
    """The runs of the folder of one multirun."""

    folder: Path
    statuses: dict[str, str]  # of every run by name, the planned ones included
    runs: list[Run]  # the finished ones, in the order of the command, after those of a shared first level
    on: str = MEAN  # test set of the effects, ``mean`` or ``outside``

    @property
    def finished(self) -> list[str]:
        """Names of the finished runs in the folder."""
        return [name for name, state in self.statuses.items() if state == FINISHED]

    @cached_property
    def factors(self) -> dict[str, list[str]]:
        """Factor -> levels; none without a finished run."""
        return factors_of(self.runs)

    @cached_property
    def cells(self) -> dict[Levels, RunGroup]:
        """Levels of all factors -> the runs with these levels."""
        return cells_of(self.runs, self.factors)

    @cached_property
    def test_sets(self) -> list[str]:
        """Test sets that the effects average over.

        Raises:
            RunFolderError: :attr:`on` names no test set.
        """
        every = self.runs[0].test_sets
        in_domain = {test for run in self.runs for test in run.in_domain}
        choices = {MEAN: every, OUTSIDE: [t for t in every if t not in in_domain]} | {t: [t] for t in every}
        if not choices.get(self.on):
            names = ", ".join(name for name, sets in choices.items() if sets)
            raise RunFolderError(f"no test set {self.on!r}: use one of {names}")
        return choices[self.on]

    @cached_property
    def effects(self) -> list[Effect]:
        """Every level of every factor minus the factor's first, adjusted over this sweep alone."""
        return effects_of(self.cells, self.factors, self.test_sets)

    @cached_property
    def chosen(self) -> Levels | None:
        """The cell with the best mean validation accuracy over seeds; settings are chosen by it."""
        validation = {
            levels: sum(r.metrics["validation"]["accuracy"] for r in row.runs) / len(row.runs)
            for levels, row in self.cells.items()
            if all("validation" in r.metrics for r in row.runs)
        }
        return max(validation, key=validation.get) if validation else None

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Hardware -> cost of the runs on it."""
        finished = {run.folder.name: run for run in self.runs}
        runs, count, hours, tokens = Counter(), Counter(), Counter(), Counter()
        for name in self.statuses:
            all_attempts = attempts(self.folder / name)
            for one in all_attempts:
                kind = one.get("hardware", "unknown")
                count[kind] += 1
                hours[kind] += one["seconds"] * one.get("devices", 1) / 3600
            if all_attempts:
                kind = all_attempts[-1].get("hardware", "unknown")
                runs[kind] += 1
                counters = finished[name].metrics.get("counters", {}) if name in finished else {}
                tokens[kind] += sum(counters.get(key, 0) for key in TOKENS)
        return {kind: Cost(runs[kind], count[kind], hours[kind], tokens[kind]) for kind in count}

    def as_dict(self) -> dict:
        """Plain types for ``sweep.json`` without the effects; fractions throughout."""
        return {
            "statuses": self.statuses,
            "costs": {kind: vars(cost) for kind, cost in self.costs.items()},
            "factors": self.factors,
            "cells": [
                {
                    "levels": dict(zip(self.factors, levels, strict=True)),
                    "seeds": row.seeds,
                    "accuracy": row.rate(self.test_sets).as_dict(),
                    "chosen_by_validation": levels == self.chosen,
                    "runs": [run.folder.name for run in row.runs],
                }
                for levels, row in self.cells.items()
            ],
        }


def read_sweep(folder: Path, on: str = MEAN) -> Sweep:
    """Read the folder of a multirun; its runs may have any status.

    Raises:
        UnpairedError: its runs answered different questions.
        RunFolderError: the folder contains no run, or cannot be read.
    """
    statuses = statuses_of(folder)
    if not statuses:
        raise RunFolderError(f"{folder} contains no run: give the folder of a multirun")
    order = [*jobs_of(folder), *statuses]
    runs = [read_run(folder / name) for name in dict.fromkeys(order) if statuses.get(name) == FINISHED]
    if runs:
        check_same_questions(runs)
    return Sweep(folder, statuses, runs, on)
