"""Intervals and tests against published examples, and their coverage by simulation."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from medvlm_r1.evaluate import statistics
from medvlm_r1.evaluate.statistics import (
    holm,
    mcnemar,
    over_seeds,
    paired_difference,
    proportion,
    seeds_difference,
    wilson,
)


def runs(both=0, only_a=0, only_b=0, neither=0):
    """Two runs with the given 2 x 2 table of right and wrong."""
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a), np.array(b)


# Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_reproduces_newcombes_table(correct, n, low, high):
    interval = wilson(correct, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.as_dict() == {
        "value": correct / n,
        "low": interval.low,
        "high": interval.high,
        "n": n,
        "method": "wilson",
    }


def test_wilson_at_the_papers_size():
    interval = wilson(210, 300)
    assert round(100 * (interval.high - interval.low) / 2, 1) == 5.2


def test_all_correct_keeps_a_lower_bound():
    assert wilson(300, 300).high == 1.0
    assert wilson(300, 300).low == pytest.approx(0.9874, abs=1e-4)
    assert over_seeds([np.ones((3, 300))]).low == pytest.approx(0.9874, abs=1e-4)
    torn = over_seeds([np.full((3, 100), 0.25)])  # a prior that likes all four options, over three seeds
    assert (torn.low, torn.value, torn.high) == (wilson(25, 100).low, 0.25, wilson(25, 100).high)


@pytest.mark.parametrize(
    "call", [lambda: wilson(0, 0), lambda: over_seeds([np.ones((2, 0))]), lambda: proportion([])]
)
def test_no_questions_is_an_error(call):
    with pytest.raises(ValueError, match="at least one question"):
        call()


def test_impossible_and_unpairable_counts_are_errors():
    with pytest.raises(ValueError, match="4 correct of 3"):
        wilson(4, 3)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="cannot be paired"):
        mcnemar([1, 0], [1])
    with pytest.raises(ValueError, match="2 image groups for 3"):
        paired_difference([1, 0, 1], [1, 0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="seeds"):
        over_seeds([np.ones((2, 5)), np.ones((3, 5))])


def test_mcnemar_exact():
    # Agresti, Categorical Data Analysis, table 10.1 (prime minister's approval): 794, 150, 86, 570.
    assert mcnemar(*runs(794, 150, 86, 570)) == pytest.approx(2 * binom.cdf(86, 236, 0.5))
    assert mcnemar(*runs(794, 150, 86, 570)) == pytest.approx(3.7e-5, rel=0.05)
    assert mcnemar(*runs(only_a=1, only_b=5)) == pytest.approx(2 * 7 / 64)  # on paper: 2 (1 + 6) / 2^6
    assert mcnemar(*runs(both=9, neither=3)) == 1.0


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 3), (5, 6), (0, 7), (10, 0)])
def test_mcnemar_is_the_permutation_test_of_paired_runs(only_a, only_b):
    """Brute force: all ways to exchange the two runs' outcomes question by question."""
    a, b = runs(4, only_a, only_b, 5)
    gains = (a - b)[a != b]
    sums = [abs(sum(signs * gains)) for signs in map(np.array, product((1, -1), repeat=len(gains)))]
    assert mcnemar(a, b) == pytest.approx(np.mean(np.array(sums) >= abs(gains.sum())))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts):
    interval, other = wilson(*counts), binomtest(*counts).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((other.low, other.high), abs=1e-12)


def test_holm_worked_example():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []


def test_wilson_coverage_within_binomial_error():
    rng, trials = np.random.default_rng(1), 2000
    held = [i.low <= 0.7 <= i.high for i in (wilson(c, 300) for c in rng.binomial(300, 0.7, trials).tolist())]
    assert abs(np.mean(held) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / trials) + 0.005  # 0.005: counts are discrete


def test_paired_bootstrap_coverage_and_gain_over_ignoring_clusters(monkeypatch):
    """60 images of 4 questions each, differences correlated inside an image."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng, trials = np.random.default_rng(2), 300
    groups = np.repeat(np.arange(60), 4)
    clustered, naive = [], []
    for trial in range(trials):
        easy = np.repeat(rng.random(60) < 0.5, 4)
        a = rng.random(240) < np.where(easy, 0.95, 0.45)  # mean 0.70
        b = rng.random(240) < np.where(easy, 0.55, 0.45)  # mean 0.50
        for held, by in ((clustered, groups), (naive, None)):
            interval = paired_difference(a, b, by, seed=trial)
            held.append(interval.low <= 0.2 <= interval.high)
    assert abs(np.mean(clustered) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / trials)
    assert np.mean(naive) < np.mean(clustered)


def test_hierarchical_coverage_with_seed_noise(monkeypatch):
    """Five seeds whose true rates scatter by 4 points: ignoring seeds covers too rarely."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng, trials = np.random.default_rng(3), 250
    held, flat = [], []
    for trial in range(trials):
        hard = rng.normal(0, 0.1, 200)
        rates = 0.7 + rng.normal(0, 0.04, (5, 1)) + hard
        run = (rng.random((5, 200)) < rates).astype(float)
        interval = over_seeds([run], seed=trial)
        held.append(interval.low <= 0.7 <= interval.high)
        only_questions = over_seeds([run.mean(axis=0, keepdims=True)], seed=trial)
        flat.append(only_questions.low <= 0.7 <= only_questions.high)
    assert 0.91 < np.mean(held) < 0.99
    assert np.mean(flat) < np.mean(held) - 0.04


def test_seeds_are_drawn_one_fewer():
    """Four seeds at 0, 0, 0 and 1: the mean of three drawn ones exceeds 2/3 with probability 1/64.

    Drawing all four, 3/4 and above would have probability 13/256 and be the upper end.
    """
    interval = over_seeds([np.repeat([[0], [0], [0], [1]], 500, axis=1)])
    assert (interval.value, interval.low) == (0.25, 0.0)
    assert interval.high == pytest.approx(2 / 3)
    assert interval.method == "hierarchical bootstrap"


def test_a_difference_draws_the_seeds_of_both_methods():
    """One run, all right, less the four seeds above: 3/4, down to 1 - 2/3."""
    seeds = np.repeat([[0], [0], [0], [1]], 500, axis=1)
    for sign, (a, b) in ((1, (np.ones((1, 500)), seeds)), (-1, (seeds, np.ones((1, 500))))):
        interval, p = seeds_difference([a], [b])
        assert interval.value == sign * 0.75
        assert sorted([sign * interval.low, sign * interval.high]) == pytest.approx([1 / 3, 1])
        assert interval.method == "hierarchical bootstrap"
        assert p == pytest.approx(2 / 64, rel=0.2)  # the share of draws at no difference, both sides


def test_differences_are_deterministic_signed_and_fast():
    rng = np.random.default_rng(4)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.6
    start = time.perf_counter()
    first = paired_difference(a, b, seed=7)
    assert time.perf_counter() - start < 1.0
    assert first == paired_difference(a, b, seed=7)
    assert len({paired_difference(a, b, seed=s) for s in range(8)}) > 1
    back = paired_difference(b, a, seed=7)
    assert (back.value, back.low, back.high) == pytest.approx((-first.value, -first.high, -first.low))
    assert first.value == pytest.approx(a.mean() - b.mean())


def test_identical_runs_differ_by_nothing_but_keep_a_width():
    a = np.array([1, 0, 1, 1] * 25)
    interval, p = seeds_difference([a[None]], [a[None]])
    assert (interval.value, p) == (0.0, 1.0)
    assert -0.05 < interval.low < 0 < interval.high < 0.05
    worst, p = seeds_difference([np.ones((1, 100))], [np.zeros((1, 100))])
    assert 0.9 < worst.low < worst.high == worst.value == 1
    assert p < 0.001


def test_bootstrap_p_agrees_with_mcnemar():
    for counts in ((100, 30, 12, 40), (100, 20, 18, 40)):
        a, b = runs(*counts)
        assert seeds_difference([a[None]], [b[None]])[1] == pytest.approx(mcnemar(a, b), abs=0.06)


def test_mean_over_sets_weighs_sets_equally():
    small, large = np.ones((1, 10)), np.zeros((1, 990))
    assert over_seeds([small, large]).value == 0.5
    interval, _ = seeds_difference([small, large], [small * 0, large])
    assert interval.value == 0.5


def test_proportion_clusters_only_where_images_are_shared():
    right = np.array([1, 1, 0, 1, 0, 0, 1, 1])
    assert proportion(right, list("abcdefgh")).method == "wilson"
    assert proportion(right, list("aabbccdd")).method == "cluster bootstrap"


def test_a_difference_without_variation_has_the_sign_tests_p():
    """Three questions that all differ one way: no draw varies, and chance does that once in four times."""
    interval, p = seeds_difference([np.ones((1, 3))], [np.zeros((1, 3))])
    assert p == 0.25
    assert interval.low < 0 < interval.high
