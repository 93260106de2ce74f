"""Sampling noise: a function of its six keys with a Gumbel distribution."""

import math
import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from medvlm_r1.rollout.sampling_noise import NoiseKey, gumbel_noise

VOCABULARY = 1000


def noise(seed=0, step=0, samples=("a", "b"), group=2, position=0, vocabulary=VOCABULARY):
    return gumbel_noise(NoiseKey(seed, step).completion_keys(samples, group), position, vocabulary)


@pytest.fixture(scope="module")
def many():
    """400,000 values: 100 questions, 4 completions, 1000 tokens."""
    return noise(samples=[f"q{i}" for i in range(100)], group=4).double().numpy()


class TestKey:
    def test_the_same_key_gives_the_same_noise(self):
        assert torch.equal(noise(), noise())

    def test_it_is_lowbias32_step_by_step(self):
        # A change of the hash changes what every run samples: then change this too, knowingly.
        def mix(x):
            x = (x ^ x >> 16) * 0x7FEB352D % 2**32
            x = (x ^ x >> 15) * 0x846CA68B % 2**32
            return x ^ x >> 16

        seed, step, completion, position, token = 7, 5, 1, 3, 2
        row = mix(mix(mix(mix(seed ^ 0x9E3779B9) ^ step) ^ zlib.crc32(b"q")) ^ completion)
        uniform = ((mix(mix(row ^ position) ^ token) >> 9) + 0.5) / 2**23
        assert NoiseKey(seed, step).completion_keys(["q"], 2)[completion] == row
        drawn = noise(seed, step, ("q",), 2, position, 4)[completion, token]
        assert drawn.item() == pytest.approx(-math.log(-math.log(uniform)), abs=1e-5)

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"seed": -1}, {"step": 1}, {"samples": ("c", "d")}, {"position": 1}]
    )
    def test_each_input_counts(self, change):
        before, after = noise(), noise(**change)
        assert (before == after).float().mean() < 0.001
        assert abs(np.corrcoef(before.flatten(), after.flatten())[0, 1]) < 0.06  # 3.8 / sqrt(4000)

    def test_each_completion_and_each_token_has_its_own(self):
        rows = noise(samples=("a",), group=3)
        assert (rows[0] == rows[1]).float().mean() < 0.001
        assert len(set(rows.flatten().tolist())) > 2990

    def test_inputs_do_not_trade_places(self):
        # seed 1, step 2 is not seed 2, step 1, and so on down the line
        assert not torch.equal(noise(seed=1, step=2), noise(seed=2, step=1))
        assert not torch.equal(noise(step=1, position=2), noise(step=2, position=1))

    def test_neighbouring_keys_are_apart(self):
        names = [f"q{i}" for i in range(50)]
        keys = [NoiseKey(s, t).completion_keys(names, 8) for s in range(8) for t in range(8)]
        assert len(torch.cat(keys).unique()) == 8 * 8 * 50 * 8

    def test_the_batch_does_not_matter(self):
        together = noise(samples=("a", "b", "c"), group=2)
        assert torch.equal(noise(samples=("b",), group=2), together[2:4])
        assert torch.equal(noise(samples=("c", "a"), group=2), together[[4, 5, 0, 1]])

    def test_each_row_may_be_at_a_position_of_its_own(self):
        keys = NoiseKey(0, 0).completion_keys(["a", "b"], 2)
        positions = torch.tensor([3, 0, 7, 3])
        rows = [gumbel_noise(keys[i : i + 1], int(p), VOCABULARY) for i, p in enumerate(positions)]
        assert torch.equal(gumbel_noise(keys, positions, VOCABULARY), torch.cat(rows))

    def test_a_larger_group_begins_with_the_smaller(self):
        assert torch.equal(noise(samples=("a",), group=8)[:3], noise(samples=("a",), group=3))

    def test_a_larger_vocabulary_begins_with_the_smaller(self):
        assert torch.equal(noise(vocabulary=VOCABULARY + 7)[:, :VOCABULARY], noise())

    def test_global_random_state_is_neither_read_nor_moved(self):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = noise()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(noise(), first)


class TestDistribution:
    def test_moments_are_gumbels(self, many):
        # mean = Euler's constant, variance = pi^2 / 6; bounds are four standard errors
        assert many.mean() == pytest.approx(np.euler_gamma, abs=4 * math.sqrt(math.pi**2 / 6 / many.size))
        assert many.var() == pytest.approx(math.pi**2 / 6, abs=4 * math.sqrt(4.4 / many.size) * 1.645)

    def test_shape_is_gumbels(self, many):
        assert stats.kstest(many.flatten(), "gumbel_r").pvalue > 0.001

    def test_every_row_is_gumbel(self, many):
        pvalues = [stats.kstest(row, "gumbel_r").pvalue for row in many]
        assert stats.kstest(pvalues, "uniform").pvalue > 0.001

    def test_rows_and_tokens_are_uncorrelated(self, many):
        n = many.size // 2
        assert abs(np.corrcoef(many[::2].flatten(), many[1::2].flatten())[0, 1]) < 4 / math.sqrt(n)
        assert abs(np.corrcoef(many[:, ::2].flatten(), many[:, 1::2].flatten())[0, 1]) < 4 / math.sqrt(n)

    def test_argmax_draws_from_the_softmax(self):
        logits = torch.tensor([0.0, 1.0, -2.0, 2.0, 0.5, -0.5], dtype=torch.float64)
        rows = NoiseKey(3, 1).completion_keys([f"q{i}" for i in range(2500)], 8)
        drawn = (logits + gumbel_noise(rows, 5, 6)).argmax(-1)
        seen = torch.bincount(drawn, minlength=6).numpy()
        assert stats.chisquare(seen, logits.softmax(0).numpy() * len(rows)).pvalue > 0.001

    def test_positions_draw_independently(self):
        rows = NoiseKey(0, 0).completion_keys([f"q{i}" for i in range(500)], 8)
        first, second = (gumbel_noise(rows, position, 3).argmax(-1) for position in (0, 1))
        table = torch.bincount(first * 3 + second, minlength=9).view(3, 3).numpy()
        assert stats.chi2_contingency(table).pvalue > 0.001

    def test_the_ends_of_the_hash_are_finite(self, monkeypatch):
        for h in (0, 0xFFFFFFFF):
            monkeypatch.setattr("medvlm_r1.rollout.sampling_noise._mix", lambda x, h=h: torch.full_like(x, h))
            assert gumbel_noise(torch.tensor([1]), 0, 4).isfinite().all()

    def test_nothing_is_infinite(self, many):
        assert np.isfinite(many).all()
        assert many.max() < 17  # -log(-log(1 - 2^-24)) = 16.6
