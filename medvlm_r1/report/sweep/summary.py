"""A sweep: what has become of its runs, what they cost, and what its factors do."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medvlm_r1.report.comparison import MEAN, OUTSIDE
from medvlm_r1.report.groups import RunGroup, check_same_questions
from medvlm_r1.report.run_folder import Run, RunFolderError, read_run
from medvlm_r1.report.sweep.effects import Effect, Levels, cells_of, effects_of, factors_of
from medvlm_r1.runs.status import FINISHED, attempts, jobs_of, statuses_of

TOKENS = ("prefill_tokens", "decode_rows", "forward_tokens")  # read, drawn, and passed through for the loss


@dataclass(frozen=True)
class Cost:
    """What runs have taken on one kind of hardware.

    Attributes:
        runs: begun.
        attempts: processes that worked on them; more than the runs where some were resumed.
        hours: device hours, those lost by kills among them.
        tokens: that went through the model in the finished runs.
    """

    runs: int
    attempts: int
    hours: float
    tokens: int


@dataclass(frozen=True)
class Sweep:
    """The runs of one folder.

    Attributes:
        folder: where they lie.
        statuses: name -> state of every run that the sweep has or is to have.
        runs: the finished ones, in the order of the command.
        on: test set that the effects are of, ``mean`` or ``outside``.
    """

    folder: Path
    statuses: dict[str, str]
    runs: list[Run]
    on: str = MEAN

    @cached_property
    def factors(self) -> dict[str, list[str]]:
        """Factor -> levels."""
        return factors_of(self.runs)

    @cached_property
    def cells(self) -> dict[Levels, RunGroup]:
        """Levels of all factors -> the runs there."""
        return cells_of(self.runs, self.factors)

    @cached_property
    def test_sets(self) -> list[str]:
        """Test sets that the effects are means over.

        Raises:
            RunFolderError: :attr:`on` names none.
        """
        every = self.runs[0].test_sets
        inside = {test for run in self.runs for test in run.in_domain}
        named = {MEAN: every, OUTSIDE: [t for t in every if t not in inside]} | {t: [t] for t in every}
        if not named.get(self.on):
            raise RunFolderError(
                f"no test set {self.on!r}: take one of {', '.join(k for k in named if named[k])}"
            )
        return named[self.on]

    @cached_property
    def effects(self) -> list[Effect]:
        """Every level of every factor minus the factor's first."""
        return effects_of(self.cells, self.factors, self.test_sets)

    @cached_property
    def chosen(self) -> Levels | None:
        """The cell with the best validation accuracy, mean over seeds: the one to choose a setting by."""
        judged = {
            levels: sum(r.metrics["validation"]["accuracy"] for r in row.runs) / len(row.runs)
            for levels, row in self.cells.items()
            if all("validation" in r.metrics for r in row.runs)
        }
        return max(judged, key=judged.get) if judged else None

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Hardware -> what was taken on it."""
        finished = {run.folder.name: run for run in self.runs}
        runs, count, hours, tokens = Counter(), Counter(), Counter(), Counter()
        for name in self.statuses:
            every = attempts(self.folder / name)
            for one in every:
                kind = one.get("hardware", "unknown")
                count[kind] += 1
                hours[kind] += one["seconds"] * one.get("devices", 1) / 3600
            if every:
                kind = every[-1].get("hardware", "unknown")
                runs[kind] += 1
                counters = finished[name].metrics.get("counters", {}) if name in finished else {}
                tokens[kind] += sum(counters.get(key, 0) for key in TOKENS)
        return {kind: Cost(runs[kind], count[kind], hours[kind], tokens[kind]) for kind in count}

    def as_dict(self) -> dict:
        """Plain types for ``sweep.json``; fractions throughout."""
        return {
            "statuses": self.statuses,
            "costs": {kind: vars(cost) for kind, cost in self.costs.items()},
            "factors": self.factors,
            "on": self.on,
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
            "effects": [effect.as_dict() for effect in self.effects],
        }


def read_sweep(folder: Path, on: str = MEAN) -> Sweep:
    """Read the folder of a multirun, whatever state its runs are in.

    Raises:
        UnpairedError: its runs answered different questions.
        RunFolderError: the folder holds no finished run, or cannot be read.
    """
    statuses = statuses_of(folder)
    if not statuses:
        raise RunFolderError(f"{folder} holds no run: give the folder of a multirun")
    order = [*jobs_of(folder), *statuses]
    runs = [read_run(folder / name) for name in dict.fromkeys(order) if statuses.get(name) == FINISHED]
    if runs:
        check_same_questions(runs)
    return Sweep(folder, statuses, runs, on)
