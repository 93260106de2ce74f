"""Power of a comparison: the smallest difference that its test detects. All values are fractions."""

import numpy as np
from scipy.stats import norm

from medvlm_r1.evaluate.statistics import LEVEL, Interval


def smallest_difference(
    n: int,
    near: float = 0.7,
    power: float = 0.8,
    *,
    seeds: int = 1,
    correlation: float = 0.0,
    seed_sd: float = 0.0,
    tests: int = 1,
) -> float:
    """Smallest difference of two methods on ``n`` questions that a test detects at the 5 % level.

    ``(z_{1 - alpha/2m} + z_power) sqrt(2 p (1 - p) (1 - r) / n + 2 s^2 / S)``, both rates near ``p``: Fleiss,
    Levin and Paik 2003, "Statistical methods for rates and proportions", chapter 4, for two unpaired runs
    (the defaults), with the variance of a paired difference and that of the means over ``S`` seeds.

    Args:
        n: questions per run, over all test sets.
        near: assumed rate ``p`` of both methods.
        power: probability of detecting a difference of that size.
        seeds: runs per method, ``S``.
        correlation: ``r`` of the two methods' answers to one question; 0 if they are not paired.
        seed_sd: standard deviation ``s`` of a method's rate over seeds, on the same questions.
        tests: tests ``m`` of the family; Holm's first step compares with ``alpha / m``.

    Raises:
        ValueError: a count below 1, a rate or power outside (0, 1), a correlation outside [-1, 1], or a
            negative standard deviation.
    """
    if min(n, seeds, tests) < 1 or not 0 < near < 1 or not 0 < power < 1:
        given = f"n={n}, seeds={seeds}, tests={tests}, near={near}, power={power}"
        raise ValueError(f"{given}: counts must be positive, near and power within (0, 1)")
    if not -1 <= correlation <= 1 or seed_sd < 0:
        given = f"correlation={correlation}, seed_sd={seed_sd}"
        raise ValueError(f"{given}: a correlation is within [-1, 1], a deviation is not negative")
    variance = 2 * near * (1 - near) * (1 - correlation) / n + 2 * seed_sd**2 / seeds
    return float(_detection(power, tests) * np.sqrt(variance))


def detectable_difference(interval: Interval, power: float = 0.8, tests: int = 1) -> float:
    """Smallest difference that a comparison with an interval of this width detects at the 5 % level.

    It depends on the interval's width alone, not on the estimate. ``power`` and ``tests`` as in
    :func:`smallest_difference`.
    """
    standard_error = (interval.high - interval.low) / (2 * norm.ppf((1 + LEVEL) / 2))
    return float(_detection(power, tests) * standard_error)


def _detection(power: float, tests: int) -> float:
    """Smallest difference in standard errors."""
    return float(norm.ppf(1 - (1 - LEVEL) / (2 * tests)) + norm.ppf(power))
