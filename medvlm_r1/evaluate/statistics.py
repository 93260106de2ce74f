"""Confidence intervals and tests for answered questions: pure functions on arrays of 1 (correct) and 0.

Shapes: one run is ``[questions]``; several runs of one method are ``[seeds, questions]`` with the same
questions in the same order in every row. ``groups`` is the image (or patient) of each question: questions
that share one are not independent, so resampling draws whole groups. All values are fractions.

Two design choices:

1. Seeds and questions are crossed, not nested: every seed answers the same questions. Resampling
   questions within each seed would average question noise away over seeds. So a resample draws seeds on
   their means over questions, draws groups on their means over seeds, and adds both deviations, as
   two-way clustered variances do (Cameron, Gelbach and Miller 2011, without their third term, which
   subtracts the double count; intervals are wider for it).
2. A resample draws S - 1 of S seeds. Drawing S understates the variance between seeds by (S - 1) / S, a
   third of it at three seeds (McCarthy and Snowden 1985, "The bootstrap and finite population
   sampling"). If seeds vary more than questions, the 95 % interval of two seeds still covers about 80 % and
   that of three about 90 %: resampling cannot replace seeds.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 10_000
_CHUNK = 1_000_000  # counts in memory at a time
LEVEL = 0.95

Groups = Sequence[Hashable] | np.ndarray | None
Outcomes = Collection  # one number or truth value per question


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float  # a fraction, or a difference of fractions
    low: float
    high: float
    n: int  # number of questions (per seed; summed over test sets)
    method: str  # e.g. "wilson"

    def as_dict(self) -> dict:
        """JSON form, as in ``metrics.json``."""
        return asdict(self)


def wilson(correct: int, n: int) -> Interval:
    """Score interval of one proportion (Wilson 1927), for independent questions.

    Raises:
        ValueError: ``n`` is 0, or ``correct`` is outside ``0..n``.
    """
    if n <= 0:
        raise ValueError(f"n is {n}: an interval needs at least one question")
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} questions is impossible")
    low, high = proportion_confint(correct, n, alpha=1 - LEVEL, method="wilson")
    # The ends at 0 and 1 are exact by definition.
    low, high = 0.0 if correct == 0 else float(low), 1.0 if correct == n else float(high)
    return Interval(correct / n, low, high, int(n), "wilson")


def proportion(correct: Outcomes, groups: Groups = None, seed: int = 0) -> Interval:
    """Rate of one run: Wilson, or a cluster bootstrap if questions share an image group.

    Args:
        correct: 1 or 0; for a rule that guesses, the probability that it is correct.
        groups: image group of each question; ``None`` makes each question a group.

    Raises:
        ValueError: no questions.
    """
    outcome = np.asarray(correct, dtype=float)
    binary = np.isin(outcome, (0, 1)).all()
    if groups is not None and len(set(groups)) < len(outcome) and (binary or np.ptp(outcome) > 0):
        return over_seeds([outcome[None]], [groups], seed)
    interval = wilson(round(float(outcome.sum())), len(outcome))
    if binary:
        return interval
    value = float(outcome.mean())  # the sum need not be an integer
    return replace(interval, value=value, low=min(interval.low, value), high=max(interval.high, value))


def paired_difference(a: Outcomes, b: Outcomes, groups: Groups = None, seed: int = 0) -> Interval:
    """Mean(a) - mean(b) of two runs on the same questions, percentile bootstrap over image groups.

    Args:
        a, b: ``[questions]``, 1 or 0; the same questions in the same order.
        groups: image group of each question; ``None`` makes each question a group.

    Raises:
        ValueError: no questions, or lengths differ.
    """
    return seeds_difference([a], [b], None if groups is None else [groups], seed)[0]


def mcnemar(a: Outcomes, b: Outcomes) -> float:
    """Exact two-sided p of McNemar's test: do two runs differ on the same independent questions?

    Raises:
        ValueError: no questions, or lengths differ.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"runs of {a.size} and {b.size} questions cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    if only_a + only_b == 0:
        return 1.0
    table = [[int((a & b).sum()), only_a], [only_b, int((~a & ~b).sum())]]
    return float(_mcnemar(table, exact=True).pvalue)


def over_seeds(sets: Sequence[Outcomes], groups: Sequence[Groups] | None = None, seed: int = 0) -> Interval:
    """Mean over seeds, and over test sets of equal weight; hierarchical bootstrap.

    Args:
        sets: per test set ``[seeds, questions]``.
        groups: per test set the image group of each question.

    Raises:
        ValueError: no set, an empty set, or sets with different numbers of seeds.
    """
    sets = [np.atleast_2d(np.asarray(s, dtype=float)) for s in sets]
    sums, sizes = _by_group(sets, groups)
    seeds = len(sets[0])
    seed_draws = _seed_draws(seeds, np.random.default_rng(seed))
    draws = _draw(sums, sizes, np.full(seeds, 1 / seeds), seed_draws, seed)
    value = float(np.mean([s.mean() for s in sets]))
    n = sum(s.shape[1] for s in sets)
    if np.ptp(np.concatenate([s.ravel() for s in sets])) == 0:  # all correct or all wrong: no variance
        bound = wilson(round(value * (count := min(len(s) for s in sizes))), count)
        low, high = min(value, bound.low), max(value, bound.high)  # the count was rounded
        return Interval(value, low, high, n, "wilson (no variation)")
    # The sum of both deviations may leave [0, 1].
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).clip(0, 1)
    kind = "hierarchical bootstrap" if seeds > 1 else "cluster bootstrap"
    return Interval(value, float(low), float(high), n, kind)


def seeds_difference(
    a: Sequence[Outcomes], b: Sequence[Outcomes], groups: Sequence[Groups] | None = None, seed: int = 0
) -> tuple[Interval, float]:
    """Mean(a) - mean(b) of two methods, each over its own seeds, on the same questions.

    Seeds of the two methods are drawn independently (their seeds are unrelated); image groups are drawn
    once for both, which pairs them.

    Args:
        a: per test set ``[seeds of a, questions]``.
        b: per test set ``[seeds of b, questions]``.
        groups: per test set the image group of each question.

    Returns:
        The interval, and the two-sided bootstrap p: twice the smaller share of draws on one side of 0.

    Raises:
        ValueError: sets, questions or seeds do not fit together.
    """
    a, b = ([np.atleast_2d(np.asarray(s, dtype=float)) for s in sets] for sets in (a, b))
    if len(a) != len(b) or any(x.shape[1] != y.shape[1] for x, y in zip(a, b, strict=True)):
        sizes = [[s.shape[1] for s in sets] for sets in (a, b)]
        raise ValueError(f"runs of {sizes[0]} and {sizes[1]} questions cannot be paired")
    sums_a, sizes = _by_group(a, groups)
    sums_b, _ = _by_group(b, groups)
    rng = np.random.default_rng(seed)
    seeds_a, seeds_b = len(a[0]), len(b[0])
    share = np.repeat([1 / seeds_a, -1 / seeds_b], [seeds_a, seeds_b])
    seed_draws = np.hstack([_seed_draws(seeds_a, rng), -_seed_draws(seeds_b, rng)])
    sums = [np.vstack(both) for both in zip(sums_a, sums_b, strict=True)]
    draws = _draw(sums, sizes, share, seed_draws, seed)
    value = float(np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)]))
    n = sum(s.shape[1] for s in a)
    if np.ptp(draws) < 1e-12:
        # Every group differs by the same amount, so resamples agree. Wilson's upper end for 0 of the groups
        # bounds the share of groups that would differ otherwise.
        rare = wilson(0, min(len(s) for s in sizes)).high
        low, high = max(-1.0, (1 - rare) * value - rare), min(1.0, (1 - rare) * value + rare)
        p = 1.0 if value == 0 else min(1.0, 2 * 0.5 ** sum(len(s) for s in sizes))  # sign test
        return Interval(value, low, high, n, "wilson bound (no variation)"), p
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    kind = "hierarchical bootstrap" if max(seeds_a, seeds_b) > 1 else "paired bootstrap"
    tails = min((draws <= 0).sum(), (draws >= 0).sum()) + 1  # + 1: no finite number of draws proves p = 0
    return Interval(value, float(low), float(high), n, kind), float(min(1.0, 2 * tails / (RESAMPLES + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in input order (Holm 1979); an empty family stays empty."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _by_group(
    sets: list[np.ndarray], groups: Sequence[Groups] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per set: sums ``[seeds, groups]`` of the outcomes in each image group, and group sizes ``[groups]``."""
    if not sets or any(s.shape[1] == 0 for s in sets):
        raise ValueError("n is 0: an interval needs at least one question")
    if len({len(s) for s in sets}) > 1:
        raise ValueError(f"test sets hold {[len(s) for s in sets]} seeds: each needs all of them")
    sums, sizes = [], []
    for outcome, group in zip(sets, groups or [None] * len(sets), strict=True):
        questions = outcome.shape[1]
        if group is not None and len(group) != questions:
            raise ValueError(f"{len(group)} image groups for {questions} questions")
        index: dict = {}
        rows = [index.setdefault(g, len(index)) for g in (range(questions) if group is None else group)]
        total = np.zeros((len(outcome), len(index)))
        np.add.at(total.T, rows, outcome.T)
        sums.append(total)
        sizes.append(np.bincount(rows))
    return sums, sizes


def _seed_draws(seeds: int, rng: np.random.Generator) -> np.ndarray:
    """``[resamples, seeds]``: weight of each seed in the mean of S - 1 drawn seeds, less 1 / S."""
    if seeds == 1:
        return np.zeros((RESAMPLES, 1))
    return rng.multinomial(seeds - 1, [1 / seeds] * seeds, size=RESAMPLES) / (seeds - 1) - 1 / seeds


def _draw(
    sums: list[np.ndarray], sizes: list[np.ndarray], share: np.ndarray, seed_draws: np.ndarray, seed: int
) -> np.ndarray:
    """``[resamples]`` draws of the mean over test sets.

    Per test set: ``sums`` ``[seeds, groups]``, ``sizes`` ``[groups]``. ``share`` ``[seeds]``: weight of each
    seed in the estimate (negative for the subtracted method); ``seed_draws`` is added to it.
    """
    draws = np.zeros(RESAMPLES)
    for number, (correct, size) in enumerate(zip(sums, sizes, strict=True)):
        both = np.stack([share @ correct, size], axis=1)
        rows = max(1, _CHUNK // len(size))
        parts = [
            _counts(min(rows, RESAMPLES - start), len(size), (seed, number, start)) @ both
            for start in range(0, RESAMPLES, rows)
        ]
        total = np.concatenate(parts)
        draws += total[:, 0] / total[:, 1] + seed_draws @ (correct.sum(axis=1) / size.sum())
    return draws / len(sums)


@lru_cache(maxsize=32)  # 32 chunks of 8 MB: all cells of one comparison draw the same groups
def _counts(rows: int, groups: int, key: tuple[int, ...]) -> np.ndarray:
    """``[rows, groups]``: how often each resample drew each group."""
    picked = np.random.default_rng(key).integers(groups, size=(rows, groups))
    picked += groups * np.arange(rows)[:, None]
    return np.bincount(picked.ravel(), minlength=rows * groups).reshape(rows, groups).astype(float)
