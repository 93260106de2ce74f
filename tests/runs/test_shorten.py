"""Values in messages: short, recognisable, and cheap whatever their size."""

import time

import numpy as np
import pytest

from medvlm_r1.runs.shorten import clip, shorten


@pytest.mark.parametrize("value", ["a", ["brain", None], {"path": "1.png"}, 7, 0.5, None, True, b"x"])
def test_a_short_value_is_its_repr(value):
    assert shorten(value) == repr(value)


HUGE = [
    "a" * 10**6,
    "\0" * 10**6,
    "'\"" * 10**6,
    "é" * 81,
    b"\xff" * 10**6,
    ["x" * 10**6] * 1000,
    [[["x" * 10**6] * 100] * 100],
    {f"{i}": "x" * 1000 for i in range(10**4)},
    tuple(range(10**6)),
    10**5000,
    np.zeros(10**6),
    {"A": "x" * 10**6},
]


@pytest.mark.parametrize("limit", [40, 80, 300])
@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_a_long_value_is_cut(value, limit):
    start = time.perf_counter()
    assert len(shorten(value, limit)) <= limit
    assert time.perf_counter() - start < 0.5


def test_what_is_cut_shows_both_ends_and_the_length():
    assert shorten("begin" + "x" * 10**6 + "end", 50) == "'beginxxxxxxxxx ... xxxend' (1,000,008 characters)"
    assert shorten(list(range(1000)), 40) == "[0, 1, 2, 3,  ... , ...] (1,000 entries)"
    assert clip("a" * 5 + "b" * 100 + "c" * 5, 20) == "aaaaabbbbb ... ccccc"
