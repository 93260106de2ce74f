"""Several sweeps as one family of tests."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from medvlm_r1.evaluate.power import detectable_difference
from medvlm_r1.evaluate.statistics import holm
from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.groups import check_same_questions
from medvlm_r1.report.run_folder import Run
from medvlm_r1.report.sweep.effects import Effect, differing_keys
from medvlm_r1.report.sweep.summary import Cost, Sweep, read_sweep


@dataclass(frozen=True)
class JointSweep:
    """Sweeps whose effects are tested together.

    Attributes:
        on: test set of the effects, ``mean`` or ``outside``.
        smallest: smallest difference that matters, a fraction, planned before the runs; ``None`` if none was.
    """

    sweeps: list[Sweep]
    on: str = MEAN
    smallest: float | None = None

    @cached_property
    def effects(self) -> list[Effect]:
        """The effects of all sweeps, Holm-adjusted as one family."""
        names = Counter(factor for sweep in self.sweeps for factor in sweep.factors)
        tests = []
        for sweep in self.sweeps:
            for effect in sweep.effects if sweep.runs else ():
                name = f"{sweep.folder.name}: {effect.factor}" if names[effect.factor] > 1 else effect.factor
                tests.append(replace(effect, factor=name))
        adjusted = holm([effect.p for effect in tests])
        return [replace(effect, adjusted=p) for effect, p in zip(tests, adjusted, strict=True)]

    @cached_property
    def detectable(self) -> list[float]:
        """Smallest difference that each effect's test detects with 80 % power, as a fraction."""
        return [detectable_difference(effect.interval, tests=len(self.effects)) for effect in self.effects]

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Hardware -> cost of the runs of all sweeps on it."""
        parts = [(kind, cost) for sweep in self.sweeps for kind, cost in sweep.costs.items()]
        kinds = dict.fromkeys(kind for kind, _ in parts)
        return {kind: sum((cost for k, cost in parts if k == kind), Cost()) for kind in kinds}

    def as_dict(self) -> dict:
        """Plain types for ``sweep.json``; fractions throughout."""
        return {
            "on": self.on,
            "smallest": self.smallest,
            "sweeps": {str(sweep.folder): sweep.as_dict() for sweep in self.sweeps},
            "effects": [
                effect.as_dict()
                | {"detectable": size}
                | ({"verdict": effect.verdict(self.smallest)} if self.smallest else {})
                for effect, size in zip(self.effects, self.detectable, strict=True)
            ],
        }


def read_sweeps(folders: Sequence[Path], on: str = MEAN, smallest: float | None = None) -> JointSweep:
    """Read the folders of multiruns.

    If the runs of the first folder differ in no factor, they are the first level in each further sweep whose
    runs differ from them in one key of the command line.

    Raises:
        UnpairedError: the runs of one sweep answered different questions.
        RunFolderError: a folder contains no run, or cannot be read.
    """
    first, *others = (read_sweep(folder, on) for folder in folders)
    if first.runs and not first.factors:
        others = [_with_first_level(first.runs, sweep) for sweep in others]
    return JointSweep([first, *others], on, smallest)


def _with_first_level(reference: list[Run], sweep: Sweep) -> Sweep:
    """The sweep with the reference's runs as a level, if that is one factor at a time."""
    if not sweep.runs or any(len(differing_keys(reference[0], run)) != 1 for run in sweep.runs):
        return sweep
    runs = [*reference, *sweep.runs]
    check_same_questions(runs)
    return replace(sweep, runs=runs)
