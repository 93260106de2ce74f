"""Rows of a comparison: runs of one configuration over its seeds, all on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medvlm_r1.data.perturbation import PLAIN
from medvlm_r1.evaluate.statistics import Interval, mcnemar, over_seeds, proportion, seeds_difference
from medvlm_r1.report.fairness import settings
from medvlm_r1.report.run_folder import Run, RunFolderError, method_place, method_title


class UnpairedError(RunFolderError):
    """Runs that did not answer the same questions."""


@dataclass(frozen=True)
class RunGroup:
    """One configuration, over its seeds.

    Attributes:
        label: what the row is called in tables.
        runs: its runs, ascending by seed.
    """

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
        """Rate over one test set, or the mean over several of equal weight."""
        outcomes = [self.outcomes(t, column, control) for t in test_sets]
        groups = [self.image_groups(t, control) for t in test_sets]
        if len(self.runs) == len(test_sets) == 1:
            return proportion(outcomes[0][0], groups[0])
        return over_seeds(outcomes, groups)


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Runs of one experiment whose configurations differ in the seed alone are one row.

    Raises:
        RunFolderError: one configuration and seed occurs twice.
    """
    clusters: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: (method_place(r.method), r.method, r.experiment, r.seed, r.name)):
        for cluster in clusters:
            if cluster[0].experiment == run.experiment and settings(cluster[0]) == settings(run):
                cluster.append(run)
                break
        else:
            clusters.append([run])
    for cluster in clusters:
        for a, b in combinations(cluster, 2):
            if a.seed == b.seed:
                raise RunFolderError(
                    f"{a.folder} and {b.folder} are one configuration and seed: give one of them"
                )
    return [RunGroup(_label(c[0], [d[0] for d in clusters]), tuple(c)) for c in clusters]


def group_difference(
    first: RunGroup, second: RunGroup, test_sets: Sequence[str]
) -> tuple[Interval, float, str]:
    """``first`` minus ``second`` on the same questions: the interval, p, and the test that p is of.

    One seed and independent questions: McNemar's exact test. Several seeds, shared images or a mean over
    test sets: the bootstrap that also gives the interval.
    """
    groups = [first.image_groups(t) for t in test_sets]
    a, b = ([row.outcomes(t) for t in test_sets] for row in (first, second))
    interval, p = seeds_difference(a, b, groups)
    single = len(test_sets) == len(first.runs) == len(second.runs) == 1
    if single and len(set(groups[0])) == len(groups[0]):
        return interval, mcnemar(a[0][0], b[0][0]), "mcnemar exact"
    return interval, p, "bootstrap"


def check_same_questions(runs: Sequence[Run]) -> None:
    """Every run must have answered the questions of the first.

    Raises:
        UnpairedError: naming two runs, the test set and how many questions they do not share.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.test_sets != first.test_sets:
            raise UnpairedError(
                f"{first.folder} was tested on {', '.join(first.test_sets)}, {run.folder} on "
                f"{', '.join(run.test_sets)}: compare runs of the same test sets"
            )
        for test_set in first.test_sets:
            a, b = first.answers(test_set), run.answers(test_set)
            asked = [set(zip(x.index, x["question"], x["gold"], strict=True)) for x in (a, b)]
            if odd := asked[0] ^ asked[1]:
                raise UnpairedError(
                    f"{first.folder} and {run.folder} answered different questions of {test_set} "
                    f"({len(a)} and {len(b)}; {len(odd)} without a partner, e.g. {min(odd)[0]!r}): "
                    "only runs on the same questions can be paired"
                )


def _label(run: Run, peers: Sequence[Run]) -> str:
    """The method's name, and beside rows of the same method what sets this one apart."""
    same = [p for p in peers if p.method == run.method]
    if len(same) == 1:
        return method_title(run.method)
    parts = [method_title(run.method)]
    if len({p.experiment for p in same}) > 1:
        parts.append(run.experiment)
    alike = [settings(p) for p in same if p.experiment == run.experiment]
    mine = settings(run)
    odd = sorted(k for k in set().union(*alike) if any(k not in s or s[k] != mine.get(k) for s in alike))
    last = [k.rsplit(".", 1)[-1] for k in odd]
    short = [end if last.count(end) == 1 else k for k, end in zip(odd, last, strict=True)]
    parts += [f"{name}={mine.get(k, 'unset')}" for name, k in list(zip(short, odd, strict=True))[:4]] + (
        ["..."] if len(odd) > 4 else []
    )
    return " ".join([parts[0], f"({', '.join(parts[1:])})"])
