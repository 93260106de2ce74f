"""What the factors of a sweep do: levels of each compared where everything else is the same.

A factor is a key of the command line that takes several values over the runs of a sweep; the seed is none. A
run whose configuration lacks the key (``method.beta`` of a zero-shot run) is at none of its levels.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medvlm_r1.evaluate.statistics import Interval, holm, seeds_difference
from medvlm_r1.report.comparison import LEVEL
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.run_folder import Run, RunFolderError, flatten
from medvlm_r1.runs.folder import UNNAMED

_NO_FACTOR = set(UNNAMED) - {"experiment"}

NO_LEVEL = ""
Levels = tuple[str, ...]  # one of every factor
Pair = tuple[RunGroup, RunGroup]


@dataclass(frozen=True)
class Effect:
    """One level of a factor minus the first one, on the same questions.

    Attributes:
        factor: key of the command line.
        level: the minuend.
        reference: the factor's first level.
        settings: settings of the other factors that both levels were run with; the mean is over them.
        seeds: seeds that all of these runs share.
        left_out: settings that both levels were run with, but not on these seeds.
        interval: the paired difference in accuracy.
        p: two-sided, of the bootstrap.
        adjusted: Holm-adjusted over every effect of the sweep.
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

    @property
    def supported(self) -> bool:
        """Whether the adjusted test supports a difference."""
        return self.adjusted < LEVEL

    def as_dict(self) -> dict:
        """Plain types, as ``sweep.json`` holds them."""
        return asdict(self) | {"supported": self.supported}


def factors_of(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Factors of the runs with their levels, both in the order in which they first occur.

    Of keys that only change together the first stands for all: they cannot be told apart.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides if key not in _NO_FACTOR)
    factors, seen = {}, set()
    for key in keys:
        levels = [_level(run, key) for run in runs]
        found = list(dict.fromkeys(levels))
        parts = tuple(map(found.index, levels))
        if len(set(found) - {NO_LEVEL}) > 1 and parts not in seen:
            seen.add(parts)
            factors[key] = found
    return factors


def cells_of(runs: Sequence[Run], factors: Mapping[str, Sequence[str]]) -> dict[Levels, RunGroup]:
    """The runs at each combination of levels, over their seeds.

    Raises:
        RunFolderError: two runs have the same levels and seed.
    """
    cells: dict[Levels, list[Run]] = {}
    for run in runs:
        cells.setdefault(tuple(_level(run, key) for key in factors), []).append(run)
    for peers in cells.values():
        peers.sort(key=lambda run: run.seed)
        for one, other in itertools.pairwise(peers):
            if one.seed == other.seed:
                raise RunFolderError(
                    f"{one.folder} and {other.folder} have the same seed and differ in no key of the "
                    "command line: give one of them"
                )
    return {levels: RunGroup(", ".join(levels) or "all", tuple(peers)) for levels, peers in cells.items()}


def effects_of(
    cells: Mapping[Levels, RunGroup], factors: Mapping[str, Sequence[str]], test_sets: Sequence[str]
) -> list[Effect]:
    """Every level of every factor minus the factor's first, as a mean over ``test_sets`` of equal weight.

    Levels that share no setting of the other factors and no seed with the first are left out. Where runs are
    missing, those settings and seeds are taken that make the most runs.
    """
    found = []
    for place, (factor, levels_there) in enumerate(factors.items()):
        reference, *others = (level for level in levels_there if level != NO_LEVEL)
        for level in others:
            pairs = [
                (row, cells[partner])
                for levels, row in cells.items()
                if levels[place] == level
                and (partner := (*levels[:place], reference, *levels[place + 1 :])) in cells
            ]
            kept, seeds = _most_runs(pairs)
            if not seeds:
                continue
            a, b = (
                [_mean([pair[side] for pair in kept], test, seeds) for test in test_sets] for side in (0, 1)
            )
            groups = [kept[0][0].image_groups(test) for test in test_sets]
            tested = seeds_difference(a, b, groups)
            counts = len(kept), len(seeds), len(pairs) - len(kept)
            found.append((factor, level, reference, *counts, *tested))
    adjusted = holm([p for *_, p in found])
    return [Effect(*parts, q) for parts, q in zip(found, adjusted, strict=True)]


def _most_runs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[int]]:
    """Those pairs, and seeds that all of them have, of which there are the most together."""
    shared = [frozenset(a.seeds) & frozenset(b.seeds) for a, b in pairs]
    choices = {frozenset.intersection(*shared), *shared} if shared else set()
    best: tuple[list[Pair], list[int]] = [], []
    for seeds in sorted(choices, key=sorted):
        kept = [pair for pair, had in zip(pairs, shared, strict=True) if seeds <= had]
        if len(kept) * len(seeds) > len(best[0]) * len(best[1]):
            best = kept, sorted(seeds)
    return best


def _mean(rows: Sequence[RunGroup], test_set: str, seeds: Sequence[int]) -> np.ndarray:
    """``[seeds, questions]``: outcomes averaged over settings, which are no draw of anything."""
    picked = [row.outcomes(test_set)[[row.seeds.index(seed) for seed in seeds]] for row in rows]
    return np.mean(picked, axis=0)


def _level(run: Run, key: str) -> str:
    """The value that a run has for a key: of a group the option, of a single setting the resolved value.

    What was typed with an interpolation (``${seed}``) is one level, whatever it resolves to.
    """
    typed = run.overrides.get(key, "")
    if key in run.choices:
        return str(run.choices[key])
    return typed if "${" in typed else str(flatten(run.config).get(key, typed))
