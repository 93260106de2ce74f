"""The smallest difference that a test detects, on paper and by simulation."""

import numpy as np
import pytest

from medvlm_r1.evaluate import statistics
from medvlm_r1.evaluate.power import detectable_difference, smallest_difference
from medvlm_r1.evaluate.statistics import Interval, seeds_difference


def test_smallest_difference_at_the_papers_size():
    assert round(100 * smallest_difference(300, near=0.7), 1) == 10.5
    with pytest.raises(ValueError, match="n=0"):
        smallest_difference(0)


def test_smallest_difference_has_its_power():
    rng, n = np.random.default_rng(0), 300
    d = smallest_difference(n)
    a, b = rng.binomial(n, 0.7 + d / 2, 4000) / n, rng.binomial(n, 0.7 - d / 2, 4000) / n
    found = np.abs(a - b) > 1.96 * np.sqrt((a * (1 - a) + b * (1 - b)) / n)
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_pairs_seeds_and_tests_on_paper():
    # z of 0.975 and 0.8 are 1.960 and 0.842; of 1 - 0.05 / 32 it is 2.955.
    assert smallest_difference(600, 0.5, correlation=0.5) == pytest.approx(
        2.802 * np.sqrt(0.25 / 600), rel=1e-3
    )
    spread = smallest_difference(10**9, 0.5, seeds=3, seed_sd=0.02)
    assert spread == pytest.approx(2.802 * 0.02 * np.sqrt(2 / 3), rel=2e-3)
    assert smallest_difference(600, tests=16) / smallest_difference(600) == pytest.approx(
        3.797 / 2.802, rel=1e-3
    )
    # an interval of 1.96 standard errors to each side
    assert detectable_difference(Interval(0.1, 0.08, 0.12, 600, "")) == pytest.approx(
        0.02 * 2.802 / 1.960, rel=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"tests": 0}, "tests=0"),
        ({"correlation": 2}, "correlation=2"),
        ({"seed_sd": -1}, "-1"),
    ],
    ids=str,
)
def test_impossible_designs_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        smallest_difference(600, **settings)


def test_the_planned_difference_is_found_as_often_as_planned(monkeypatch):
    """Two methods over three seeds, tested by the bootstrap at the level of Holm's first of five steps."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    n, trials, r, sd, tests = 300, 300, 0.6, 0.01, 5
    d = smallest_difference(n, seeds=3, correlation=r, seed_sd=sd, tests=tests)
    high, low = 0.7 + d / 2, 0.7 - d / 2
    # A share of the questions is equally hard for both methods: low (1 - high) is the covariance on it.
    share = r * np.sqrt(high * (1 - high) * low * (1 - low)) / (low * (1 - high))
    rng, found = np.random.default_rng(0), 0
    for _ in range(trials):
        both, *own = rng.random((3, n))
        shared = rng.random(n) < share
        rates = np.array([high, low])[:, None, None] + sd * rng.normal(size=(2, 3, 1))
        a, b = (np.where(shared, both, hard) < rate for hard, rate in zip(own, rates, strict=True))
        found += seeds_difference([a], [b])[1] < 0.05 / tests
    assert found / trials == pytest.approx(0.8, abs=0.07)
