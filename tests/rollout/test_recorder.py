"""Captured decoding steps, as on a GPU: addresses, memory, shapes, and the check of replays."""

import dataclasses
import logging
import math

import pytest
import tape
import torch
from training import RECIPE, SHORT, data_of, fit, phantoms  # noqa: F401

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.recorder import MOST, compiled
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

KEY = NoiseKey(seed=3, step=5)
GROUP = Sampling(group_size=4, max_tokens=16)
GREEDY = Sampling(group_size=1, max_tokens=16, temperature=0.0)


def stopping(policy, every=8):
    """The same policy, but every ``every``-th token ends a completion, so that lengths differ."""
    other = Policy(policy.model, policy.encoder, policy.layout)
    ordinary = min(policy.encoder.tokenizer.all_special_ids)
    other.eos_ids = sorted({*policy.eos_ids, *range(0, ordinary, every)})
    return other


def move(module):
    """Give every weight other memory, as ``module.cpu()`` and the way back to a GPU do."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    return module


def same(one, other):
    assert one.texts == other.texts
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.logprobs[one.mask], other.logprobs[other.mask], rtol=0, atol=1e-5)


class TestAddresses:
    @pytest.mark.parametrize("kind", ["random_policy", "lora_policy"])
    def test_several_rollouts_of_varied_lengths(self, kind, prompts, request):
        policy, chosen = stopping(request.getfixturevalue(kind)), list(prompts.values())
        recorded = SharedPrefixEngine(sync_every=4, capture=tape.capture)
        for step, take in enumerate((slice(None), slice(1, 3), slice(None, None, -1))):
            for sampling in (GROUP, GREEDY):
                key = NoiseKey(3, step)
                same(
                    recorded(policy, chosen[take], sampling, key),
                    SharedPrefixEngine(sync_every=4)(policy, chosen[take], sampling, key),
                )
        assert recorded.recorder.failure is None
        assert policy.counters["replays"] > 2 * policy.counters["captures"] > 0

    def test_weights_that_have_moved_are_captured_again(self, prompts, random_policy, encoder):
        policy, chosen = stopping(random_policy), list(prompts.values())
        recorded = SharedPrefixEngine(sync_every=4, capture=tape.capture)
        plain = recorded(policy, chosen, GROUP, KEY)
        captures = policy.counters["captures"]
        move(policy)
        same(recorded(policy, chosen, GROUP, KEY), plain)
        assert policy.counters["captures"] == 2 * captures
        assert recorded.recorder.failure is None

    @pytest.mark.parametrize("adapter", [False, True], ids=["all", "adapter"])
    def test_of_validate_fit_validate_test(self, adapter, tmp_path, monkeypatch):
        """Lightning's strategies move the module to the host and back after each of them."""
        monkeypatch.setattr(GRPO, "cpu", move)
        runs = []
        for capture in (None, tape.capture):
            engine = SharedPrefixEngine(capture=capture)
            settings = {"engine": engine, "tuning": ADAPTER if adapter else None, "steps": 2, "n": 8}
            runs.append(validated(tmp_path / str(capture is None), **settings))
            assert engine.recorder.failure is None
        plain, recorded = runs
        assert recorded.totals["captures"] > 0 == plain.totals["captures"]
        assert [p.text for p in recorded.predictions] == [p.text for p in plain.predictions]
        for one, other in zip(plain.policy.parameters(), recorded.policy.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
