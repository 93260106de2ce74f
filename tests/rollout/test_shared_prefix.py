"""The shared-prefix engine against transformers' generate, and its counters."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from models import stopping
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Rollout, Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

CPU = torch.device("cpu")
KEY = NoiseKey(seed=3, step=5)
GROUP = Sampling(group_size=4, max_tokens=16)
FAST = SharedPrefixEngine(sync_every=4)
POLICIES = ["random_policy", "untied_policy", "lora_policy", "policy_2_5", "policy_3", "lora_policy_3"]


@pytest.fixture
def policy(random_policy):
    return stopping(random_policy)


def same_draws(one, other, atol=1e-5):
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    assert one.texts == other.texts
    assert torch.equal(one.truncated, other.truncated)
    for name in ("logprobs", "kept_mass", "entropy"):
        ours, theirs = getattr(one, name)[one.mask], getattr(other, name)[one.mask]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


class TestAgreesWithTheReference:
    @pytest.mark.parametrize("kind", POLICIES)
    def test_from_one_seed_both_draw_the_same(self, kind, prompts_of, request):
        policy = stopping(request.getfixturevalue(kind))
        chosen = list(prompts_of(policy).values())
        ours, theirs = (engine(policy, chosen, GROUP, KEY) for engine in (FAST, ReferenceEngine()))
        same_draws(ours, theirs, atol=3e-5)
        assert len(ours.lengths.unique()) > 5
        assert 0 < ours.truncated.sum() < len(ours.tokens)

    @pytest.mark.parametrize(
        "changed",
        [
            {"temperature": 0.0, "group_size": 1},
            {"temperature": 0.7},
            {"top_k": 5},
            {"top_p": 0.8, "temperature": 1.3},
            {"max_tokens": 1},
            {"group_size": 1},
        ],
        ids=str,
    )
    def test_under_any_sampling(self, changed, prompts, policy):
        chosen = [prompts[name] for name in ("wide", "text", "square")]
        sampling = dataclasses.replace(GROUP, **changed)
        ours, theirs = (engine(policy, chosen, sampling, KEY) for engine in (FAST, ReferenceEngine()))
        same_draws(ours, theirs, atol=3e-5)

    def test_when_every_row_ends_at_once(self, prompts, random_policy):
        policy = stopping(random_policy, every=1)
        rollout = FAST(policy, [prompts["wide"], prompts["text"]], GROUP, KEY)
        assert rollout.tokens.shape == (8, 1)
        assert not rollout.truncated.any()
        assert policy.counters["decode_rows"] == 3 * 8  # until the first sync

    def test_with_gradient_checkpointing_on(self, prompts, encoder, random_policy):
        policy = Policy(copy.deepcopy(random_policy.model), encoder)
        policy.checkpoint_gradients()
        chosen = [prompts["square"], prompts["text"]]
        same_draws(FAST(policy, chosen, GROUP, KEY), FAST(random_policy, chosen, GROUP, KEY))
        assert policy.model.training


class TestCompaction:
    @pytest.mark.parametrize("sync_every", [1, 3, 16])
    def test_changes_nothing_that_is_drawn(self, sync_every, prompts, policy):
        chosen = list(prompts.values())
        whole = SharedPrefixEngine(sync_every, compact=False)(policy, chosen, GROUP, KEY)
        same_draws(SharedPrefixEngine(sync_every)(policy, chosen, GROUP, KEY), whole)

    def test_decodes_the_rows_that_go_on_and_few_others(self, prompts, policy):
        """Rows times steps, counted from the lengths: groups keep as many rows as the fullest has live."""
        chosen = list(prompts.values())
        rollout = SharedPrefixEngine(sync_every=1)(policy, chosen, GROUP, KEY)
        lengths = rollout.lengths.view(len(chosen), -1)
        expected = 0
        for done in range(1, int(lengths.max())):
            live = (lengths > done).sum(1)
            expected += int((live > 0).sum() * live.max())
        assert policy.counters["decode_rows"] == expected
        assert int((lengths - 1).sum()) <= expected < 0.8 * lengths.numel() * int(lengths.max())


class TestContinuousBatching:
    """Prompts wait for the slots of those whose completions have ended."""

    @pytest.mark.parametrize("max_rows", [1, 3, 8])
    @pytest.mark.parametrize("sampling", [GROUP, dataclasses.replace(GROUP, temperature=0.0, group_size=1)])
    def test_gives_what_one_prompt_at_a_time_gives(self, max_rows, sampling, prompts, policy):
        chosen = list(prompts.values())
        together = SharedPrefixEngine(sync_every=3, max_rows=max_rows)(policy, chosen, sampling, KEY)
        alone = [FAST(policy, [prompt], sampling, KEY) for prompt in chosen]
        assert together.texts == [text for rollout in alone for text in rollout.texts]
        same_draws(
            together,
            functools.reduce(functools.partial(Rollout.concat, pad_id=policy.pad_id), alone),
            atol=3e-5,
        )

    def test_reads_each_prompt_once_and_decodes_few_rows_in_vain(self, prompts, policy):
        chosen = list(prompts.values()) * 6
        greedy = dataclasses.replace(GROUP, temperature=0.0, group_size=1, max_tokens=64)
        rollout = SharedPrefixEngine(sync_every=1, max_rows=4)(policy, chosen, greedy, KEY)
        assert policy.counters["prefill_tokens"] == sum(len(prompt.ids) for prompt in chosen)
        answered = int((rollout.lengths - 1).sum())  # the prefill samples the first token
        assert answered <= policy.counters["decode_rows"] <= 1.15 * answered


class TestCounts:
    def test_prompts_are_read_once_and_the_host_looks_rarely(self, prompts, policy):
        chosen = list(prompts.values())
        SharedPrefixEngine(sync_every=4)(policy, chosen, GROUP, KEY)
        counted = policy.counters.take()
        assert counted["prefill_tokens"] == sum(len(p.ids) for p in chosen)
        assert counted["images_encoded"] == 5
        assert counted["device_syncs"] <= math.ceil(GROUP.max_tokens / 4)
        assert policy.counters == {}

    def test_a_picture_of_two_questions_is_encoded_once(self, questions, random_policy, short_style):
        policy = stopping(random_policy)
        two = dataclasses.replace(questions["text"], images=questions["square"].images)
        chosen = [policy.encoder.encode(q, "train", short_style) for q in (questions["square"], two)]
        rollout = FAST(policy, chosen, GROUP, KEY)
        assert policy.counters["images_encoded"] == 1
        with torch.no_grad():
            for prompt, rows in zip(chosen, (slice(0, 4), slice(4, 8)), strict=True):
                alone = policy.logprobs(
                    collate([prompt], policy.pad_id, CPU), rollout.tokens[rows], rollout.mask[rows]
                )
                kept = rollout.mask[rows]
                torch.testing.assert_close(rollout.logprobs[rows][kept], alone[kept], rtol=0, atol=1e-5)

    def test_a_frozen_tower_sees_a_picture_once_in_a_run(self, prompts, lora_policy):
        chosen = [prompts["square"], prompts["two"]]
        assert lora_policy.tower_is_frozen
        first = FAST(lora_policy, chosen, GROUP, KEY)
        batch = collate(chosen, lora_policy.pad_id, CPU)
        lora_policy.logprobs(batch, first.tokens, first.mask)
        lora_policy.reference_logprobs(batch, first.tokens, first.mask)
        again = FAST(lora_policy, chosen[::-1], GROUP, KEY)
        assert lora_policy.counters["images_encoded"] == 3
        assert first.texts[:4] == again.texts[4:]

    def test_the_oldest_features_go_first(self, prompts, lora_policy):
        width = 64 * 4
        lora_policy.vision_cache.sampling.limit = 16 * width  # tokens of "square" alone
        for _ in range(2):
            for name in ("square", "flat"):
                FAST(lora_policy, [prompts[name]], GROUP, KEY)
        assert lora_policy.counters["images_encoded"] == 4


class TestWeights:
    def test_a_rollout_moves_none(self, prompts, encoder, fresh_policy):
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        policy = Policy(Tuning("adapter", config).apply(fresh_policy.model), encoder)
        before = {n: (p.data_ptr(), p.detach().clone()) for n, p in policy.named_parameters()}
        FAST(policy, [prompts["two"]], GROUP, KEY)
        for name, parameter in policy.named_parameters():
            place, value = before[name]
            assert parameter.data_ptr() == place, name
            assert torch.equal(parameter, value), name


class TestGraphCache:
    """The steps of a GPU without CUDA graphs: the capture returns the step itself."""

    def test_replayed_steps_draw_the_same(self, prompts, policy):
        captured = []

        def capture(step):
            captured.append(step)
            return step

        engine = SharedPrefixEngine(sync_every=4, capture=capture)
        orders = [list(prompts), list(prompts)[::-1], list(prompts)]
        for step, order in enumerate(orders):
            chosen, key = [prompts[name] for name in order], NoiseKey(3, step)
            same_draws(engine(policy, chosen, GROUP, key), FAST(policy, chosen, GROUP, key))
        first = len(captured)
        engine(policy, [prompts[name] for name in orders[0]], GROUP, NoiseKey(3, 0))
        assert first == len(captured) > 1  # nothing new the second time

    def test_warming_up_at_the_last_token_stays_inside(self, prompts, policy):
        """A capture at the last step: its effect is undone."""

        def capture(step):
            step()
            return step

        sampling = dataclasses.replace(GROUP, max_tokens=2)
        engine = SharedPrefixEngine(capture=capture)
        chosen = [prompts["square"], prompts["text"]]
        same_draws(engine(policy, chosen, sampling, KEY), FAST(policy, chosen, sampling, KEY))

    def test_a_result_is_not_written_over_by_the_next_rollout(self, prompts, policy):
        engine = SharedPrefixEngine(capture=lambda step: step)
        one = engine(policy, [prompts["square"]], GROUP, NoiseKey(0, 0))
        kept = one.tokens.clone()
        engine(policy, [prompts["square"]], GROUP, NoiseKey(0, 1))
        assert torch.equal(one.tokens, kept)

    @pytest.mark.usefixtures("unchecked")
    def test_a_step_is_one_graph_and_two_rollouts_share_it(self, prompts, random_policy):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(DecodingState.advance, backend=counter, fullgraph=True)
        state = DecodingState(random_policy, GROUP, CacheShape(2, 4, 256, 16))
        state.window = 16
        for step in (1, 2):
            names = ["square", "flat"] if step == 1 else ["flat", "square"]
            keys = NoiseKey(0, step).completion_keys(names, 4)
            with torch.no_grad(), random_policy.sampling_mode():
                state.reset()
                state.admit([0, 1], [prompts[name] for name in names], keys)
                for _ in range(3):
                    compiled(state)
        assert counter.frame_count == 1


@pytest.mark.parametrize("wrong", [0, -1])
def test_sync_every_is_at_least_1(wrong):
    with pytest.raises(ValueError, match=f"sync_every is {wrong}: it must be at least 1"):
        SharedPrefixEngine(sync_every=wrong)
