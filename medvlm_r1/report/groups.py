"""Run groups: the runs of one configuration over its seeds, all on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.statistics import Interval, mcnemar, over_seeds, proportion, seeds_difference
from medvlm_r1.report.fairness import settings
from medvlm_r1.report.methods import method_order
from medvlm_r1.report.run_folder import Run, RunFolderError

FEW_SEEDS = "Intervals resample seeds and image groups; with two or three seeds they can be too narrow."


class UnpairedError(RunFolderError):
    """Two runs answered different questions."""


@dataclass(frozen=True)
class RunGroup:
    """One configuration over its seeds, ascending; a row of the tables."""

    label: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def experiment(self) -> str:
        return self.runs[0].experiment

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def outcomes(self, test_set: str, column: str = "correct", control: str = PLAIN) -> np.ndarray:
        """``[seeds, questions]`` of 0 and 1, questions sorted by id."""
        return np.stack([run.answers(test_set, control)[column].to_numpy(dtype=float) for run in self.runs])

    def image_groups(self, test_set: str, control: str = PLAIN) -> list:
        """Image group of each question, in the order of :meth:`outcomes`."""
        return self.runs[0].answers(test_set, control)["image_group"].tolist()

    def rate(self, test_sets: Sequence[str], column: str = "correct", control: str = PLAIN) -> Interval:
        """Mean of a column over one test set, or over several with equal weights."""
        outcomes = [self.outcomes(t, column, control) for t in test_sets]
        groups = [self.image_groups(t, control) for t in test_sets]
        if len(self.runs) == len(test_sets) == 1:
            return proportion(outcomes[0][0], groups[0])
        return over_seeds(outcomes, groups)


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Group the runs of one experiment whose configurations differ in nothing but the seed."""
    clusters: list[list[Run]] = []
    order = sorted(runs, key=lambda r: (method_order(r.method), r.title, r.experiment, r.seed, r.name))
    for run in order:
        same = (c for c in clusters if c[0].experiment == run.experiment and settings(c[0]) == settings(run))
        if (cluster := next(same, None)) is None:
            clusters.append(cluster := [])
        cluster.append(run)
    if same := next(filter(None, map(same_seed, clusters)), None):
        raise RunFolderError(f"{same} have the same configuration and seed: give only one of them")
    return [RunGroup(_label(c[0], [d[0] for d in clusters]), tuple(c)) for c in clusters]


def same_seed(runs: Sequence[Run]) -> str | None:
    """``FOLDER and FOLDER`` of the first two runs with one seed, of runs in ascending order of seeds."""
    return next((f"{a.folder} and {b.folder}" for a, b in pairwise(runs) if a.seed == b.seed), None)


def mean_outcomes(groups: Sequence[RunGroup], test_set: str, seeds: Sequence[int]) -> np.ndarray:
    """``[seeds, questions]``: outcomes averaged over groups, which are not a random sample."""
    outcomes = [group.outcomes(test_set)[[group.seeds.index(seed) for seed in seeds]] for group in groups]
    return np.mean(outcomes, axis=0)


def group_difference(
    first: RunGroup, second: RunGroup, test_sets: Sequence[str]
) -> tuple[Interval, float, str]:
    """``first`` minus ``second`` on the same questions.

    One seed and independent questions: McNemar's exact test. Several seeds, shared images or a mean over
    test sets: the bootstrap that also gives the interval. Returns interval, p-value and name of the test.
    """
    groups = [first.image_groups(t) for t in test_sets]
    a, b = ([group.outcomes(t) for t in test_sets] for group in (first, second))
    interval, p = seeds_difference(a, b, groups)
    single = len(test_sets) == len(first.runs) == len(second.runs) == 1
    if single and len(set(groups[0])) == len(groups[0]):
        return interval, mcnemar(a[0][0], b[0][0]), "mcnemar exact"
    return interval, p, "bootstrap"


def check_same_questions(runs: Sequence[Run]) -> None:
    """Raise :class:`UnpairedError` unless every run answered the questions of the first."""
    first = runs[0]
    for run in runs[1:]:
        if run.test_sets != first.test_sets:
            raise UnpairedError(
                f"{first.folder} was tested on {', '.join(first.test_sets)}, {run.folder} on "
                f"{', '.join(run.test_sets)}: compare runs of the same test sets"
            )
        for test_set in first.test_sets:
            a, b = first.answers(test_set), run.answers(test_set)
            questions = [set(zip(x.index, x["question"], x["gold"], strict=True)) for x in (a, b)]
            if unpaired := questions[0] ^ questions[1]:
                raise UnpairedError(
                    f"{first.folder} and {run.folder} answered different questions of {test_set} "
                    f"({len(a)} and {len(b)}; {len(unpaired)} without a partner, e.g. {min(unpaired)[0]!r}): "
                    "only runs on the same questions can be paired"
                )


def _label(run: Run, peers: Sequence[Run]) -> str:
    """The run's title; if several groups have it, with the settings that distinguish this one."""
    same = [p for p in peers if p.title == run.title]
    if len(same) == 1:
        return run.title
    parts = [run.experiment] if len({p.experiment for p in same}) > 1 else []
    others = [settings(p) for p in same if p.experiment == run.experiment]
    own = settings(run)
    every = set().union(*others)
    classes = [key for key in every if key.endswith("._target_")]

    def differs(key: str) -> bool:
        """Whether a peer has another value; an argument of a class is compared among peers of the class."""
        over = [c for c in classes if c != key and key.startswith(c.removesuffix("_target_"))]
        peers = (s for s in others if all(s.get(c) == own.get(c) for c in over))
        return any((key in s, s.get(key)) != (key in own, own.get(key)) for s in peers)

    keys = sorted(filter(differs, every))
    ends = [key.removesuffix(".name").removesuffix("._target_").rsplit(".", 1)[-1] for key in keys]
    names = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    parts += [f"{name}={own.get(key, 'unset')}" for name, key in list(zip(names, keys, strict=True))[:4]]
    parts += ["..."] if len(keys) > 4 else []
    return f"{run.title} ({', '.join(parts)})"
