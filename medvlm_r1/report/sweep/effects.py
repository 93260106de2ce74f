"""Effects of a sweep's factors: compares the levels of a factor with everything else equal.

A factor is a key of the command line with several values over the runs of a sweep, except the seed. A run
whose configuration lacks the key (``method.beta`` of a zero-shot run) has no level of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvlm_r1.evaluate.statistics import Interval, holm, seeds_difference
from medvlm_r1.report.comparison import Tested
from medvlm_r1.report.groups import RunGroup, mean_outcomes, same_seed
from medvlm_r1.report.run_folder import Run, RunFolderError, flatten
from medvlm_r1.runs.folder import UNNAMED

_NO_FACTOR = set(UNNAMED) - {"experiment"}

NO_LEVEL = ""
Levels = tuple[str, ...]  # one level of every factor
Pair = tuple[RunGroup, RunGroup]


@dataclass(frozen=True)
class Effect(Tested):
    """One level of a factor minus its first level (``reference``), in accuracy on the same questions.

    Attributes:
        settings: number of settings of the other factors that the mean is over; both levels have all of them.
        seeds: number of seeds that all of these runs share.
        left_out: number of further settings that both levels have, but not with these seeds.
        p: two-sided p-value of the bootstrap.
    """

    factor: str
    level: str
    reference: str
    settings: int
    seeds: int
    left_out: int
    interval: Interval
    p: float
    adjusted: float

    def verdict(self, smallest: float) -> str:
        """The level against the first, where only differences of at least ``smallest`` matter.

        ``better`` or ``worse`` if the adjusted test supports a difference, by less than ``smallest`` if the
        whole interval says so; ``equivalent`` if it supports none and the interval is within
        +-``smallest``; else ``cannot be told``. Equivalence by the 95 % interval is two one-sided tests at
        2.5 % (Schuirmann 1987, "A comparison of the two one-sided tests procedure").
        """
        within = max(-self.interval.low, self.interval.high) < smallest
        if not self.supported:
            return "equivalent" if within else "cannot be told"
        word = "better" if self.interval.value > 0 else "worse"
        return f"{word} by less than {100 * smallest:g}" if within else word


def factors_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Factors of the runs with their levels, both in order of first occurrence.

    Of keys that only change together, the first is the factor: their effects cannot be separated.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides if key not in _NO_FACTOR)
    factors, seen = {}, set()
    for key in keys:
        levels = [_level(run, key) for run in runs]
        distinct = list(dict.fromkeys(levels))
        partition = tuple(map(distinct.index, levels))
        if len(set(distinct) - {NO_LEVEL}) > 1 and partition not in seen:
            seen.add(partition)
            factors[key] = distinct
    return factors


def differing_keys(a: Run, b: Run) -> set[str]:
    """Keys of the command line, the seed's aside, that only one of two runs has or that have other values."""
    keys = (a.overrides.keys() | b.overrides.keys()) - _NO_FACTOR
    return {key for key in keys if a.overrides.get(key) != b.overrides.get(key)}


def cells_of(runs: Sequence[Run], factors: Mapping[str, Sequence[str]]) -> dict[Levels, RunGroup]:
    """The runs of each combination of levels, over their seeds.

    Raises:
        RunFolderError: two runs have the same levels and seed.
    """
    cells: dict[Levels, list[Run]] = {}
    for run in runs:
        cells.setdefault(tuple(_level(run, key) for key in factors), []).append(run)
    for peers in cells.values():
        peers.sort(key=lambda run: run.seed)
        if same := same_seed(peers):
            raise RunFolderError(
                f"{same} have the same seed and differ in no key of the command line: "
                "move one of them out of the sweep"
            )
    return {levels: RunGroup(", ".join(levels) or "all", tuple(peers)) for levels, peers in cells.items()}


def effects_of(
    cells: Mapping[Levels, RunGroup], factors: Mapping[str, Sequence[str]], test_sets: Sequence[str]
) -> list[Effect]:
    """Every level of every factor minus the factor's first, as a mean over ``test_sets`` with equal weights.

    A level that shares no setting of the other factors or no seed with the first has no effect. If runs are
    missing, the settings and seeds are those that keep the most runs.
    """
    tests = []
    for place, (factor, all_levels) in enumerate(factors.items()):
        reference, *others = (level for level in all_levels if level != NO_LEVEL)
        for level in others:
            pairs = [
                (group, cells[partner])
                for levels, group in cells.items()
                if levels[place] == level
                and (partner := (*levels[:place], reference, *levels[place + 1 :])) in cells
            ]
            matched, seeds = _most_runs(pairs)
            if not seeds:
                continue
            sides = zip(*matched, strict=True)
            a, b = ([mean_outcomes(side, test, seeds) for test in test_sets] for side in sides)
            groups = [matched[0][0].image_groups(test) for test in test_sets]
            counts = len(matched), len(seeds), len(pairs) - len(matched)
            tests.append((factor, level, reference, *counts, *seeds_difference(a, b, groups)))
    adjusted = holm([p for *_, p in tests])
    return [Effect(*parts, q) for parts, q in zip(tests, adjusted, strict=True)]


def _most_runs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[int]]:
    """The pairs and the seeds that all of them have, such that pairs times seeds is largest."""
    shared = [frozenset(a.seeds) & frozenset(b.seeds) for a, b in pairs]
    choices = {frozenset.intersection(*shared), *shared} if shared else set()
    best: tuple[list[Pair], list[int]] = [], []
    for seeds in sorted(choices, key=sorted):
        matched = [pair for pair, both in zip(pairs, shared, strict=True) if seeds <= both]
        if len(matched) * len(seeds) > len(best[0]) * len(best[1]):
            best = matched, sorted(seeds)
    return best


def _level(run: Run, key: str) -> str:
    """Value of a key in a run: the option of a config group, the resolved value of a setting.

    A value typed as an interpolation (``${seed}``) is one level, whatever it resolves to.
    """
    typed = run.overrides.get(key, "")
    if key in run.choices:
        return str(run.choices[key])
    return typed if "${" in typed else str(flatten(run.config).get(key, typed))
