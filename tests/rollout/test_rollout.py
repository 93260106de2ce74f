"""Rollouts: sampler and trainer compute the same log-probabilities; samples depend on their row alone."""

import copy
import dataclasses
import math

import pytest
import torch
from models import stopping

from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.forward.logprobs import LAYOUTS
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling, completion_mask
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey, entropy, gumbel_noise, truncate
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

CPU = torch.device("cpu")
ROLL = ReferenceEngine()
KEY = NoiseKey(seed=3, step=5)
GROUP = Sampling(group_size=4, max_tokens=12)
VISION = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


@pytest.fixture(scope="session")
def stopping_policy(random_policy) -> Policy:
    return stopping(random_policy)


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log()


class TestRecordedLogprobs:
    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
    def test_are_the_trainers(self, temperature, prompts, stopping_policy):
        chosen = list(prompts.values())
        sampling = dataclasses.replace(GROUP, temperature=temperature)
        rollout = ROLL(stopping_policy, chosen, sampling, KEY)
        batch = collate(chosen, stopping_policy.pad_id, CPU)
        with torch.no_grad():
            trained = stopping_policy.logprobs(batch, rollout.tokens, rollout.mask, temperature)
        kept = rollout.mask
        atol = 1e-5 / temperature  # which divides the logits, and so multiplies their rounding
        torch.testing.assert_close(rollout.logprobs[kept], trained[kept], rtol=0, atol=atol)
        assert len(rollout.lengths.unique()) > 3  # ends at different places

    def test_are_untruncated_under_top_k_and_top_p(self, prompts, stopping_policy):
        chosen = [prompts["square"], prompts["two"]]
        sampling = dataclasses.replace(GROUP, top_k=20, top_p=0.8)
        rollout = ROLL(stopping_policy, chosen, sampling, KEY)
        with torch.no_grad():
            trained = stopping_policy.logprobs(
                collate(chosen, stopping_policy.pad_id, CPU), rollout.tokens, rollout.mask
            )
        kept = rollout.mask
        torch.testing.assert_close(rollout.logprobs[kept], trained[kept], rtol=0, atol=1e-5)
        assert (rollout.kept_mass[kept] < 1).all()
        assert (rollout.logprobs[kept].exp() <= rollout.kept_mass[kept] + 1e-6).all()

    def test_an_adapter_reaches_the_sampler(self, prompts, lora_policy, random_policy):
        chosen = [prompts["square"]]
        rollout = ROLL(lora_policy, chosen, GROUP, KEY)
        batch = collate(chosen, lora_policy.pad_id, CPU)
        with torch.no_grad():
            adapted, base = (
                p.logprobs(batch, rollout.tokens, rollout.mask) for p in (lora_policy, random_policy)
            )
        kept = rollout.mask
        # fp32 keeps 2.5e-5 of this lively adapter's fp64 values, in either layout
        torch.testing.assert_close(rollout.logprobs[kept], adapted[kept], rtol=0, atol=3e-5)
        assert (rollout.logprobs - base)[kept].abs().max() > 1e-2

    def test_an_update_reaches_the_sampler(self, prompts, fresh_policy):
        before = ROLL(fresh_policy, [prompts["square"]], GROUP, KEY)
        with torch.no_grad():
            for parameter in fresh_policy.model.model.visual.parameters():
                parameter.mul_(1.5)
        after = ROLL(fresh_policy, [prompts["square"]], GROUP, KEY)
        assert (before.logprobs[:, 0] - after.logprobs[:, 0]).abs().max() > 1e-2


class TestEntropy:
    @pytest.mark.parametrize("changed", [{}, {"temperature": 1.7, "top_k": 5}], ids=str)
    def test_is_that_of_the_trainers_distribution(self, changed, prompts, random_policy):
        """By brute force: both layouts score every token of the vocabulary in the place of a sampled one.

        The layers are in fp64: in fp32 the two layouts' own logits differ by more than 1e-6.
        """
        model, encoder, place = copy.deepcopy(random_policy.model).double(), random_policy.encoder, 3
        policy, sampling = Policy(model, encoder), dataclasses.replace(GROUP, group_size=2, **changed)
        rollouts = [e(policy, [prompts["text"]], sampling, KEY) for e in (ROLL, SharedPrefixEngine())]
        vocabulary = torch.arange(len(policy.banned))[:, None]
        before = rollouts[0].tokens[1, :place].expand(len(vocabulary), -1)
        tokens = torch.cat([before, vocabulary], dim=1)
        batch, mask = collate([prompts["text"]], policy.pad_id, CPU), torch.ones_like(tokens).bool()
        for layout in LAYOUTS:
            with torch.no_grad():
                scored = Policy(model, encoder, layout).logprobs(batch, tokens, mask, sampling.temperature)
            logprobs = scored[~policy.banned, -1].double().log_softmax(0)
            expected = -(logprobs.exp() * logprobs).sum().item()
            for rollout in rollouts:
                assert rollout.mask[1, place]
                assert rollout.entropy[1, place].item() == pytest.approx(expected, abs=1e-6)

    def test_on_paper_and_with_a_large_vocabulary(self):
        found = entropy(logits_of(0.5, 0.25, 0.25, 0.0))
        assert found.item() == pytest.approx(1.5 * math.log(2), abs=1e-7)
        assert entropy(logits_of(0.0, 1.0)).item() == 0
        logits = torch.randn(4, 151_936, generator=torch.Generator().manual_seed(0)) * torch.tensor(
            [[0.02], [1.0], [5.0], [20.0]]
        )
        exact = torch.distributions.Categorical(logits=logits.double()).entropy()
        assert (entropy(logits.log_softmax(-1)) - exact).abs().max() < 1e-6

    def test_greedy_decoding_has_none(self, prompts, stopping_policy):
        greedy = Sampling(max_tokens=4, temperature=0.0)
        assert (ROLL(stopping_policy, [prompts["square"]], greedy, KEY).entropy == 0).all()


class TestDraws:
    def test_the_same_key_draws_the_same(self, prompts, stopping_policy):
        chosen = [prompts["square"], prompts["wide"]]
        torch.manual_seed(1)
        first = ROLL(stopping_policy, chosen, GROUP, KEY)
        torch.manual_seed(2)
        second = ROLL(stopping_policy, chosen, GROUP, KEY)
        assert torch.equal(first.tokens, second.tokens)
        assert first.texts == second.texts
        assert torch.equal(first.logprobs, second.logprobs)

    @pytest.mark.parametrize("key", [NoiseKey(4, 5), NoiseKey(3, 6)])
    def test_another_key_draws_others(self, key, prompts, stopping_policy):
        chosen = [prompts["square"]]
        first, second = (ROLL(stopping_policy, chosen, GROUP, k) for k in (KEY, key))
        assert (first.tokens[:, 0] != second.tokens[:, 0]).all()

    def test_completions_of_a_group_differ(self, prompts, stopping_policy):
        rollout = ROLL(stopping_policy, [prompts["square"]], GROUP, KEY)
        assert len({tuple(row) for row in rollout.tokens.tolist()}) == 4

    def test_rows_do_not_depend_on_who_shares_the_batch(self, prompts, stopping_policy):
        names = ["square", "two", "text", "wide"]
        together = ROLL(stopping_policy, [prompts[name] for name in names], GROUP, KEY)
        for place, name in enumerate(names):
            alone = ROLL(stopping_policy, [prompts[name]], GROUP, KEY)
            rows = slice(4 * place, 4 * place + 4)
            assert together.texts[rows] == alone.texts
            assert together.truncated[rows].tolist() == alone.truncated.tolist()
            for row, kept in enumerate(alone.mask):
                tokens = alone.tokens[row, kept]
                assert torch.equal(together.tokens[4 * place + row, together.mask[4 * place + row]], tokens)

    def test_a_larger_group_begins_with_the_smaller(self, prompts, stopping_policy):
        large, small = (
            ROLL(stopping_policy, [prompts["wide"]], dataclasses.replace(GROUP, group_size=n), KEY)
            for n in (4, 2)
        )
        assert large.texts[:2] == small.texts

    def test_global_random_state_is_left_alone(self, prompts, stopping_policy):
        before = torch.get_rng_state()
        ROLL(stopping_policy, [prompts["square"]], GROUP, KEY)
        assert torch.equal(torch.get_rng_state(), before)

    def test_first_tokens_follow_the_models_distribution(self, prompts, random_policy):
        # 400 draws under top-k 2: the likelier token's share within four standard errors
        sampling = Sampling(group_size=400, max_tokens=1, top_k=2)
        rollout = ROLL(random_policy, [prompts["text"]], sampling, KEY)
        first = rollout.logprobs.max()
        share = (first - rollout.kept_mass[0].log()).exp().item()
        seen = (rollout.logprobs == first).float().mean().item()
        assert 0.5 <= share < 0.99
        assert seen == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)


class TestGreedy:
    @pytest.mark.parametrize("name", ["square", "wide", "two", "text"])
    def test_is_plain_transformers(self, name, prompts, stopping_policy):
        prompt, others = prompts[name], [p for n, p in prompts.items() if n != name]
        greedy = Sampling(group_size=1, max_tokens=12, temperature=0.0)
        rollout = ROLL(stopping_policy, [*others, prompt], greedy, KEY)
        vision = {}
        if len(prompt.grid):
            vision = {
                "pixel_values": stopping_policy.encoder.pixel_values(prompt.pixels),
                "image_grid_thw": prompt.grid,
                "mm_token_type_ids": (prompt.ids == stopping_policy.image_id).int()[None],
            }
        banned = stopping_policy.encoder.tokenizer.convert_tokens_to_ids(list(VISION))
        stopping_policy.model.model.rope_deltas = None
        theirs = stopping_policy.model.generate(
            input_ids=prompt.ids[None],
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=banned,
            eos_token_id=stopping_policy.eos_ids,
            pad_token_id=stopping_policy.pad_id,
            **vision,
        )[0, len(prompt.ids) :]
        assert torch.equal(rollout.tokens[-1, rollout.mask[-1]], theirs)

    def test_does_not_depend_on_the_key(self, prompts, stopping_policy):
        greedy = Sampling(max_tokens=8, temperature=0.0)
        texts = [ROLL(stopping_policy, [prompts["square"]], greedy, k).texts for k in (KEY, NoiseKey(0, 0))]
        assert texts[0] == texts[1]

    def test_records_at_temperature_one(self, prompts, stopping_policy):
        greedy = Sampling(max_tokens=8, temperature=0.0)
        rollout = ROLL(stopping_policy, [prompts["square"]], greedy, KEY)
        batch = collate([prompts["square"]], stopping_policy.pad_id, CPU)
        with torch.no_grad():
            trained = stopping_policy.logprobs(batch, rollout.tokens, rollout.mask)
        torch.testing.assert_close(rollout.logprobs[rollout.mask], trained[rollout.mask], rtol=0, atol=1e-5)


class TestTruncation:
    @pytest.mark.parametrize(
        ("top_k", "top_p", "kept"),
        [
            (0, 1.0, [0.4, 0.3, 0.2, 0.1]),
            (2, 1.0, [0.4, 0.3]),
            (1, 1.0, [0.4]),
            (4, 1.0, [0.4, 0.3, 0.2, 0.1]),
            (9, 1.0, [0.4, 0.3, 0.2, 0.1]),
            # the token that crosses the share is kept: 0.4 + 0.3 reaches 0.5
            (0, 0.5, [0.4, 0.3]),
            (0, 0.75, [0.4, 0.3, 0.2]),
            (0, 0.39, [0.4]),
            (0, 1e-9, [0.4]),
            # top-p of what top-k left: 0.4 / 0.7 = 0.57 and 0.3 / 0.7 = 0.43
            (2, 0.5, [0.4]),
            (2, 0.6, [0.4, 0.3]),
        ],
    )
    def test_on_paper(self, top_k, top_p, kept):
        order = [2, 0, 3, 1]  # so that tokens are not ranked by their ids
        logprobs = logits_of(0.4, 0.3, 0.2, 0.1)[:, order]
        scores, mass = truncate(logprobs, top_k, top_p)
        alive = scores[0].isfinite()
        assert alive.tolist() == [p < len(kept) for p in order]
        torch.testing.assert_close(scores[0, alive], logprobs[0, alive])
        assert mass.item() == pytest.approx(sum(kept), abs=1e-6)

    def test_rows_are_cut_apart(self):
        logprobs = torch.cat([logits_of(0.5, 0.3, 0.2), logits_of(0.1, 0.1, 0.8)])
        scores, mass = truncate(logprobs, 0, 0.6)
        assert scores.isfinite().tolist() == [[True, True, False], [False, False, True]]
        assert mass.tolist() == pytest.approx([0.8, 0.8])

    def test_impossible_tokens_stay_impossible(self):
        scores, mass = truncate(logits_of(0.0, 0.6, 0.4), 3, 0.99)
        assert scores.isfinite().tolist() == [[False, True, True]]
        assert mass.item() == pytest.approx(1.0)

    @pytest.mark.parametrize("sampling", [{"top_k": 3}, {"top_p": 0.3}])
    def test_a_rollout_stays_within(self, sampling, prompts, random_policy):
        sampling = dataclasses.replace(GROUP, group_size=16, max_tokens=1, **sampling)
        rollout = ROLL(random_policy, [prompts["square"]], sampling, KEY)
        batch = collate([prompts["square"]], random_policy.pad_id, CPU)
        vocabulary = torch.arange(len(random_policy.banned))[:, None]
        with torch.no_grad():
            every = random_policy.logprobs(batch, vocabulary, torch.ones_like(vocabulary, dtype=torch.bool))
        alive = truncate(every.T, sampling.top_k, sampling.top_p)[0][0].isfinite()
        assert alive.sum() < len(alive) / 2
        assert alive[rollout.tokens[:, 0]].all()


class TestEnds:
    def test_the_mask_includes_the_first_end_and_nothing_behind(self):
        tokens = torch.tensor([[5, 9, 9, 5], [9, 5, 5, 5], [5, 5, 5, 9], [5, 6, 7, 8], [5, 8, 9, 5]])
        assert completion_mask(tokens, [9, 8]).tolist() == [
            [True, True, False, False],
            [True, False, False, False],
            [True, True, True, True],
            [True, True, True, True],
            [True, True, False, False],
        ]

    def test_a_rollout_ends_where_it_says(self, prompts, stopping_policy):
        rollout = ROLL(stopping_policy, list(prompts.values()), GROUP, KEY)
        ends = torch.tensor(stopping_policy.eos_ids)
        for row in range(len(rollout.tokens)):
            said, rest = rollout.tokens[row, rollout.mask[row]], rollout.tokens[row, ~rollout.mask[row]]
            assert len(said) == rollout.lengths[row]
            assert not torch.isin(said[:-1], ends).any()
            assert (rest == stopping_policy.pad_id).all()
            assert rollout.truncated[row] == (not torch.isin(said[-1], ends))
            assert not rollout.truncated[row] or len(said) == GROUP.max_tokens
            assert rollout.texts[row] == stopping_policy.encoder.decode(said)
        assert 0 < rollout.truncated.sum() < len(rollout.truncated)

    def test_both_ends_of_the_checkpoint_stop(self, random_policy):
        token = random_policy.encoder.tokenizer.convert_tokens_to_ids
        assert random_policy.eos_ids == sorted([token("<|im_end|>"), token("<|endoftext|>")])

    def test_rows_are_prompt_major(self, prompts, stopping_policy):
        chosen = [prompts["square"], prompts["wide"]]
        rollout = ROLL(stopping_policy, chosen, GROUP, KEY)
        assert rollout.texts[:4] == ROLL(stopping_policy, chosen[:1], GROUP, KEY).texts
        assert rollout.texts[4:] == ROLL(stopping_policy, chosen[1:], GROUP, KEY).texts


class TestBans:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_image_tokens_are_never_drawn_however_likely(self, temperature, prompts, untied_policy):
        policy = Policy(copy.deepcopy(untied_policy.model), untied_policy.encoder)
        banned = policy.encoder.tokenizer.convert_tokens_to_ids(list(VISION))
        with torch.no_grad():
            # Large multiples of both signs: whatever the hidden state, one of each pair towers.
            head = policy.model.lm_head.weight
            head[banned] = torch.stack([100 * head[0], -100 * head[0], 100 * head[1], -100 * head[1]])
            raw = policy.model(input_ids=prompts["text"].ids[None]).logits[0, -1].argmax()
        sampling = dataclasses.replace(GROUP, temperature=temperature)
        rollout = ROLL(policy, [prompts["square"], prompts["text"]], sampling, KEY)
        assert raw.item() in banned
        assert not torch.isin(rollout.tokens, torch.tensor(banned)).any()
        assert rollout.logprobs[rollout.mask].isfinite().all()


class TestSampling:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"group_size": 0},
            {"max_tokens": 0},
            {"temperature": -0.1},
            {"top_p": 0.0},
            {"top_p": 1.1},
            {"top_k": -1},
        ],
    )
    def test_wrong_values_are_refused(self, wrong):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name} {value}"):
            Sampling(**wrong)

    def test_noise_is_per_row_and_position(self):
        rows = KEY.completion_keys(["square"], 2)
        assert not torch.equal(gumbel_noise(rows, 0, 9)[0], gumbel_noise(rows, 0, 9)[1])
        assert not torch.equal(gumbel_noise(rows, 0, 9), gumbel_noise(rows, 1, 9))
