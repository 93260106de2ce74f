"""The policy against plain transformers: each row alone, unpadded, with positions of the model.

Several released trainers mixed up the order of rows: two different prompts of one batch must not influence
each other, and an exchange of any part must change the loss.
"""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from formulas import grpo_loss
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from models import FAMILIES, encoder_for, random_model
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from medvlm_r1.algorithms.advantages import GroupRelative
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.forward.logprobs import LAYOUTS
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rewards import Rewards, letter_accuracy, think_format
from medvlm_r1.rollout.engine import Rollout, Sampling, completion_mask
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

CPU = torch.device("cpu")
GROUP = 3
VISION = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
SHOWS = 1e-3  # an exchange moves the loss by more; agreement is a thousand times closer
PAIRS = [("square", "wide"), ("flat", "two"), ("text", "two"), ("text", "text"), ("two", "two")]


def alone(model, prompt, completion, encoder, temperature=1.0):
    """Log-probabilities of one completion by plain transformers: no padding, the model's positions."""
    ids = torch.cat([prompt.ids, completion])[None]
    vision = {}
    if len(prompt.grid):
        kinds = (ids == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        vision = {
            "pixel_values": encoder.pixel_values(prompt.pixels),
            "image_grid_thw": prompt.grid,
            "mm_token_type_ids": kinds,
        }
    logits = model(input_ids=ids, use_cache=False, **vision).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, encoder.tokenizer.convert_tokens_to_ids(list(VISION))] = -torch.inf
    return (logits / temperature).log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def completions(encoder, rows, seed=0, longest=9):
    """Random tokens of random lengths, padded, and their mask; every length from 1 up occurs."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = min(encoder.tokenizer.all_special_ids)
    tokens = torch.randint(0, ordinary, (rows, longest), generator=generator)
    lengths = (torch.arange(rows) * 5) % longest + 1
    mask = torch.arange(longest) < lengths[:, None]
    return torch.where(mask, tokens, encoder.tokenizer.pad_token_id), mask


def row_by_row(policy, chosen, tokens, mask, temperature=1.0):
    """As ``policy.logprobs``, from plain transformers, row for row; 0 outside the mask."""
    rows = torch.zeros(tokens.shape)
    for row, kept in enumerate(mask):
        prompt = chosen[row // GROUP]
        rows[row, kept] = alone(policy.model, prompt, tokens[row, kept], policy.encoder, temperature)
    return rows


class TestLogprobs:
    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    @torch.no_grad()
    def test_each_row_is_as_if_it_were_alone(self, pair, prompts, random_policy):
        chosen = [prompts[name] for name in pair]
        tokens, mask = completions(random_policy.encoder, 2 * GROUP)
        expected = row_by_row(random_policy, chosen, tokens, mask)
        batch = collate(chosen, random_policy.pad_id, CPU)
        for reverse in (False, True):
            if reverse:
                batch = collate(chosen[::-1], random_policy.pad_id, CPU)
                turn = [3, 4, 5, 0, 1, 2]
                tokens, mask, expected = tokens[turn], mask[turn], expected[turn]
            got = random_policy.logprobs(batch, tokens, mask)
            torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_five_prompts_at_once(self, prompts, random_policy):
        chosen = list(prompts.values())
        tokens, mask = completions(random_policy.encoder, 5 * GROUP, seed=1)
        got = random_policy.logprobs(collate(chosen, random_policy.pad_id, CPU), tokens, mask)
        expected = row_by_row(random_policy, chosen, tokens, mask)
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("family", FAMILIES[1:])
    @torch.no_grad()
    def test_other_families(self, family, prompts_of, policy_of):
        """Five prompts, five pictures: of several windows each, of unequal sizes, stretched positions."""
        policy = policy_of(family)
        prompts = prompts_of(policy)
        assert all(len(prompts[name].pixels) >= 64 for name in ("square", "wide"))
        chosen = list(prompts.values())
        tokens, mask = completions(policy.encoder, 5 * GROUP, seed=1)
        got = policy.logprobs(collate(chosen, policy.pad_id, CPU), tokens, mask)
        expected = row_by_row(policy, chosen, tokens, mask)
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)
        # each completion hangs on its own picture
        turned = [dataclasses.replace(p, pixels=p.pixels.flip(0)) for p in chosen]
        other = policy.logprobs(collate(turned, policy.pad_id, CPU), tokens, mask)
        moved = ((other - got).abs() * mask).amax(1).view(5, GROUP).amax(1)
        assert [m > SHOWS for m in moved.tolist()] == [name != "text" for name in prompts]

    @torch.no_grad()
    def test_deepstack_matters(self, policy_3, prompts_of):
        """Without it log-probabilities are others, so a comparison would show that it is left out."""
        batch = collate([prompts_of(policy_3)["two"]], policy_3.pad_id, CPU)
        tokens, mask = completions(policy_3.encoder, GROUP)
        whole = policy_3.image_features(batch)
        (first,) = [[image[:, :64] for image in images] for images in whole]
        rest = tokens, mask.sum(1).tolist(), policy_3.banned, 1.0
        for layout in LAYOUTS.values():
            with_it, without = (layout(policy_3.model, batch, f, *rest)[0] for f in (whole, [first]))
            assert (with_it - without)[mask].abs().max() > 0.1

    @torch.no_grad()
    def test_temperature_divides_the_logits(self, prompts, random_policy):
        chosen = [prompts["square"], prompts["text"]]
        tokens, mask = completions(random_policy.encoder, 2 * GROUP)
        got = random_policy.logprobs(collate(chosen, random_policy.pad_id, CPU), tokens, mask, 0.7)
        expected = row_by_row(random_policy, chosen, tokens, mask, 0.7)
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_untied_embeddings(self, prompts, untied_policy):
        chosen = [prompts["wide"], prompts["two"]]
        tokens, mask = completions(untied_policy.encoder, 2 * GROUP)
        got = untied_policy.logprobs(collate(chosen, untied_policy.pad_id, CPU), tokens, mask)
        expected = row_by_row(untied_policy, chosen, tokens, mask)
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_stale_state_in_the_model_does_not_matter(self, prompts, random_policy):
        chosen = [prompts["square"], prompts["wide"]]
        tokens, mask = completions(random_policy.encoder, 2 * GROUP)
        batch = collate(chosen, random_policy.pad_id, CPU)
        before = random_policy.logprobs(batch, tokens, mask)
        alone(random_policy.model, prompts["two"], tokens[0], random_policy.encoder)
        assert random_policy.model.model.rope_deltas is not None
        assert torch.equal(random_policy.logprobs(batch, tokens, mask), before)

    @torch.no_grad()
    def test_what_stands_behind_the_end_does_not_matter(self, prompts, random_policy):
        batch = collate([prompts["square"], prompts["wide"]], random_policy.pad_id, CPU)
        tokens, mask = completions(random_policy.encoder, 2 * GROUP)
        other = torch.where(mask, tokens, random_policy.image_id)
        got, expected = (random_policy.logprobs(batch, t, mask) for t in (other, tokens))
        torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-6)

    @torch.no_grad()
    def test_banned_tokens_are_impossible_and_the_rest_sums_to_one(self, prompts, random_policy):
        batch = collate([prompts["square"]], random_policy.pad_id, CPU)
        vocabulary = len(random_policy.banned)
        tokens = torch.arange(vocabulary)[:, None]
        got = random_policy.logprobs(batch, tokens, torch.ones_like(tokens, dtype=torch.bool))[:, 0]
        banned = random_policy.encoder.tokenizer.convert_tokens_to_ids(list(VISION))
        assert got.isneginf().nonzero()[:, 0].tolist() == sorted(banned)
        assert got.exp().sum().item() == pytest.approx(1.0, abs=1e-5)

    def test_gradients_are_finite_with_padding(self, prompts, fresh_policy):
        batch = collate([prompts["text"], prompts["two"]], fresh_policy.pad_id, CPU)
        tokens, mask = completions(fresh_policy.encoder, 2 * GROUP)
        logprobs = fresh_policy.logprobs(batch, tokens, mask)
        loss, _ = grpo_loss(logprobs, logprobs.detach(), None, torch.randn(6), mask, beta=0)
        loss.backward()
        gradients = {n: p.grad for n, p in fresh_policy.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        assert all(g.abs().sum() > 0 for n, g in gradients.items() if "k_proj.bias" not in n)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_are_those_of_the_rows_alone(self, family, prompts_of, policy_of):
        policy = policy_of(family)
        chosen = [prompts_of(policy)[name] for name in ("two", "wide")]
        tokens, mask = completions(policy.encoder, 2 * GROUP)
        weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))[mask]
        parameters = dict(policy.named_parameters())
        batch = collate(chosen, policy.pad_id, CPU)
        of_layouts = [Policy(policy.model, policy.encoder, x).logprobs(batch, tokens, mask) for x in LAYOUTS]
        expected, *found = (
            torch.autograd.grad((rows[mask] * weight).sum(), parameters.values())
            for rows in (row_by_row(policy, chosen, tokens, mask), *of_layouts)
        )
        for gradients in found:
            for name, ours, theirs in zip(parameters, gradients, expected, strict=True):
                scale = theirs.norm().clamp(min=1e-2)
                assert (ours - theirs).norm() < 1e-5 * scale, name

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_recomputed_activations_change_no_gradient(self, layout, policy_3, prompts_of):
        """DeepStack adds between the layers whose activations are recomputed."""
        chosen = [prompts_of(policy_3)[name] for name in ("two", "text")]
        batch, (tokens, mask) = (
            collate(chosen, policy_3.pad_id, CPU),
            completions(policy_3.encoder, 2 * GROUP),
        )
        found = []
        for checkpointed in (False, True):
            policy = Policy(copy.deepcopy(policy_3.model), policy_3.encoder, layout)
            if checkpointed:
                policy.checkpoint_gradients()
            policy.logprobs(batch, tokens, mask)[mask].mean().backward()
            found.append({name: p.grad for name, p in policy.named_parameters()})
        for name, gradient in found[0].items():
            assert torch.equal(gradient, found[1][name]), name
            assert gradient.any(), name

    @torch.no_grad()
    def test_layers_of_another_kind_run_through_transformers_forward_alone(
        self, policy_of, encoder, prompts_of
    ):
        own = encoder_for(encoder, "qwen3_5")
        model = random_model(own, family="qwen3_5")
        refusal = "qwen3_5 has layers of linear_attention.* set model.layout=repeated rollout=reference$"
        with pytest.raises(ValueError, match=refusal):
            Policy(model, own)
        policy = Policy(model, own, layout="repeated")
        prompts = prompts_of(policy)
        chosen = [prompts[name] for name in ("two", "wide", "text")]
        sampling, key = Sampling(group_size=GROUP, max_tokens=6), NoiseKey(0, 0)
        with pytest.raises(ValueError, match=refusal):
            SharedPrefixEngine()(policy, chosen, sampling, key)
        rollout = ReferenceEngine()(policy, chosen, sampling, key)
        tokens, mask = rollout.tokens, rollout.mask
        expected = row_by_row(policy, chosen, tokens, mask)
        got = policy.logprobs(collate(chosen, policy.pad_id, CPU), tokens, mask)
        for ours in (got, rollout.logprobs):  # the recurrent state keeps fewer digits than attention
            torch.testing.assert_close(ours[mask], expected[mask], rtol=0, atol=3e-4)
        chosen[1] = dataclasses.replace(chosen[1], pixels=chosen[1].pixels.flip(0))
        other = policy.logprobs(collate(chosen, policy.pad_id, CPU), tokens, mask)
        moved = ((other - got).abs() * mask).amax(1).view(3, GROUP).amax(1)
        assert [m > 1e-2 for m in moved.tolist()] == [False, True, False]

    def test_more_image_tokens_than_features_are_refused(self, prompts, random_policy):
        batch = collate([prompts["square"]], random_policy.pad_id, CPU)
        half = dataclasses.replace(batch, pixels=batch.pixels[:32], grid=torch.tensor([[1, 4, 8]]))
        tokens, mask = completions(random_policy.encoder, GROUP)
        with pytest.raises(RuntimeError, match="8 image features for 16 image tokens"):
            random_policy.logprobs(half, tokens, mask)


class TestGeneration:
    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_is_greedy_transformers_for_each_prompt_alone(self, family, prompts_of, policy_of):
        policy = policy_of(family)
        chosen = [prompts_of(policy)[name] for name in ("square", "two", "text")]
        got = policy.generate(collate(chosen, policy.pad_id, CPU), 2, 8, lambda seen, scores: scores)
        assert len(got) == 6
        model = policy.model.eval()
        for row, tokens in enumerate(got):
            prompt = chosen[row // 2]
            vision = {}
            if len(prompt.grid):
                kinds = (prompt.ids == policy.image_id).int()[None]
                vision = {
                    "pixel_values": policy.encoder.pixel_values(prompt.pixels),
                    "image_grid_thw": prompt.grid,
                    "mm_token_type_ids": kinds,
                }
            theirs = model.generate(
                input_ids=prompt.ids[None], max_new_tokens=8, do_sample=False, use_cache=False, **vision
            )
            theirs = theirs[0, len(prompt.ids) :]
            assert tokens[: len(theirs)].tolist() == theirs.tolist()
            assert set(tokens[len(theirs) :].tolist()) <= {policy.pad_id}
        model.train()


class TestGroupOrder:
    """From two prompts and their completions to the loss, on our path and row by row."""

    # Each row's reward: format + accuracy, of "square" (gold B) and then of "wide" (gold A).
    TEXTS = (
        *("<think>x</think><answer>B</answer>", "<answer>B</answer>", "<answer>A</answer>"),
        *("<answer>B</answer>", "A", "<think>so it is a cyst</think>\n<answer>(A)</answer>"),
    )
    REWARDS = ((2.0, 1.0, 0.0), (0.0, 0.0, 1.5))

    @pytest.fixture
    def chosen(self, prompts):
        return [prompts["square"], prompts["wide"]]

    @pytest.fixture
    def completed(self, encoder):
        """Tokens of the six texts, each with its end of sequence, and their mask."""
        rows = [
            torch.tensor(encoder.tokenizer(t + encoder.tokenizer.eos_token)["input_ids"]) for t in self.TEXTS
        ]
        pad = encoder.tokenizer.pad_token_id
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        return tokens, completion_mask(tokens, [encoder.tokenizer.eos_token_id])

    @pytest.fixture
    def expected(self, chosen, completed, random_policy):
        """The loss from single rows; sampler and reference a fixed step away, so all terms take part."""
        tokens, mask = completed
        per_row = []
        for prompt, rewards, first in zip(chosen, self.REWARDS, (0, GROUP), strict=True):
            group = torch.tensor(rewards)
            for i in range(GROUP):
                kept = tokens[first + i][mask[first + i]]
                with torch.no_grad():
                    logprobs = alone(random_policy.model, prompt, kept, random_policy.encoder)
                advantage = (group[i] - group.mean()) / (group.std() + 1e-4)
                ratio = (logprobs - self.shifted(logprobs, 0.4)).exp()
                d = self.shifted(logprobs, 0.3) - logprobs
                term = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                per_row.append((term + 0.04 * (d.exp() - d - 1)).mean())
        return torch.stack(per_row).mean().item()

    @staticmethod
    def shifted(logprobs, by):
        """Other log-probabilities, a function of the value alone, so that they follow their token."""
        return (logprobs + by * torch.sin(3 * logprobs)).detach()

    def loss(self, policy, style, chosen, tokens, mask, micro_batch=2, rewards=None, exchanged=None):
        """The loss of GRPO for a rollout, through its own methods."""
        method = GRPO(
            policy=policy,
            prompt=style,
            engine=ReferenceEngine(),
            rewards=Rewards({"format": think_format, "accuracy": letter_accuracy}, {}),
            seed=0,
            max_completion_tokens=tokens.shape[1],
            sampling=Sampling(group_size=GROUP),
            micro_batch=micro_batch,
        )
        rollout = Rollout(
            tokens=tokens,
            mask=mask,
            logprobs=torch.zeros(tokens.shape),
            kept_mass=torch.ones(tokens.shape),
            entropy=torch.zeros(tokens.shape),
            texts=[policy.encoder.decode(row[kept]) for row, kept in zip(tokens, mask, strict=True)],
            truncated=torch.zeros(len(tokens), dtype=torch.bool),
        )
        samples = [prompt.sample for prompt in chosen for _ in range(GROUP)]
        answers = [style.parse(text, sample) for text, sample in zip(rollout.texts, samples, strict=True)]
        table = method.rewards.score(answers, samples)
        rewards = table.total if rewards is None else rewards
        advantages = GroupRelative().relative(rewards, GROUP)
        trajectory = Trajectory(chosen, rollout, samples, answers, table, advantages=advantages)
        total = 0.0
        with torch.no_grad():
            for batch in itertools.chain(*method.split_minibatches(trajectory)):
                if exchanged == "tokens":
                    batch = dataclasses.replace(batch, tokens=batch.tokens[[3, 4, 5, 0, 1, 2]])
                if exchanged == "mask":
                    batch = dataclasses.replace(batch, mask=batch.mask[[3, 4, 5, 0, 1, 2]])
                logprobs = method.logprobs(batch)
                old, reference = self.shifted(logprobs, 0.4), self.shifted(logprobs, 0.3)
                loss, _ = grpo_loss(
                    logprobs, old, reference, batch.advantages, batch.mask, denominator=len(tokens)
                )
                total += loss.item()
        return total

    @pytest.mark.parametrize("micro_batch", [1, 2])
    def test_the_batch_computes_what_single_rows_do(
        self, micro_batch, chosen, completed, expected, random_policy, short_style
    ):
        got = self.loss(random_policy, short_style, chosen, *completed, micro_batch)
        assert got == pytest.approx(expected, abs=SHOWS / 1000)

    def test_the_order_of_the_prompts_does_not_matter(
        self, chosen, completed, expected, random_policy, short_style
    ):
        turn = [3, 4, 5, 0, 1, 2]
        tokens, mask = completed[0][turn], completed[1][turn]
        rewards = torch.tensor(self.REWARDS[::-1]).flatten()
        got = self.loss(random_policy, short_style, chosen[::-1], tokens, mask, rewards=rewards)
        assert got == pytest.approx(expected, abs=SHOWS / 1000)

    @pytest.mark.parametrize("part", ["tokens", "mask"])
    def test_exchanged_completions_show(self, part, chosen, completed, expected, random_policy, short_style):
        got = self.loss(random_policy, short_style, chosen, *completed, exchanged=part)
        assert abs(got - expected) > SHOWS

    def test_exchanged_images_show(self, questions, completed, expected, random_policy, short_style):
        a, b = questions["square"], questions["wide"]
        encode = random_policy.encoder.encode
        chosen = [
            encode(dataclasses.replace(q, images=other.images), "train", short_style)
            for q, other in ((a, b), (b, a))
        ]
        assert abs(self.loss(random_policy, short_style, chosen, *completed) - expected) > SHOWS

    def test_exchanged_questions_show(self, chosen, completed, expected, random_policy, short_style):
        a, b = chosen
        turned = [dataclasses.replace(b, sample=a.sample), dataclasses.replace(a, sample=b.sample)]
        assert abs(self.loss(random_policy, short_style, turned, *completed) - expected) > SHOWS

    def test_exchanged_answers_show(self, questions, completed, expected, random_policy, short_style):
        chosen = [
            random_policy.encoder.encode(
                dataclasses.replace(questions[name], answer=answer), "train", short_style
            )
            for name, answer in (("square", "A"), ("wide", "B"))
        ]
        got = self.loss(random_policy, short_style, chosen, *completed)
        assert abs(got - expected) > SHOWS

    def test_generation_major_rewards_show(self, chosen, completed, expected, random_policy, short_style):
        rewards = torch.tensor(self.REWARDS).T.flatten()
        assert (
            abs(self.loss(random_policy, short_style, chosen, *completed, rewards=rewards) - expected) > SHOWS
        )

    def test_generation_major_completions_show(self, chosen, completed, expected, random_policy, short_style):
        turn = [0, 3, 1, 4, 2, 5]
        rewards = torch.tensor(self.REWARDS).flatten()
        tokens, mask = completed[0][turn], completed[1][turn]
        got = self.loss(random_policy, short_style, chosen, tokens, mask, rewards=rewards)
        assert abs(got - expected) > SHOWS

    @torch.no_grad()
    def test_interleaved_pixels_show(self, chosen, completed, random_policy):
        # Same patches, same grids, the other prompt's first: what tiling pixels but not grids does.
        batch = collate(chosen, random_policy.pad_id, CPU)
        turned = dataclasses.replace(batch, pixels=batch.pixels.roll(64, dims=0))
        tokens, mask = completed
        got, expected = (random_policy.logprobs(b, tokens, mask) for b in (turned, batch))
        assert ((got - expected).abs() * mask).amax(1).min() > 1e-2

    @torch.no_grad()
    def test_each_image_moves_every_row_of_its_own_prompt_only(
        self, questions, completed, random_policy, short_style
    ):
        encode = random_policy.encoder.encode
        tokens, mask = completed
        rows = []
        for seed in (1, 99):
            picture = dataclasses.replace(questions["square"].images[0], seed=seed)
            square = dataclasses.replace(questions["square"], images=(picture,))
            chosen = [encode(q, "train", short_style) for q in (square, questions["wide"])]
            rows.append(random_policy.logprobs(collate(chosen, random_policy.pad_id, CPU), tokens, mask))
        moved = ((rows[0] - rows[1]).abs() * mask).amax(1)
        assert moved[:GROUP].min() > 1e-2
        assert moved[GROUP:].max() < 1e-5


def train_a_little(policy, batch, tokens, mask):
    """One visible step of gradient ascent on the completions."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    policy.logprobs(batch, tokens, mask)[mask].mean().neg().backward()
    optimizer.step()
    optimizer.zero_grad()


class TestReference:
    @pytest.fixture
    def task(self, prompts, encoder):
        batch = collate([prompts["square"], prompts["two"]], encoder.tokenizer.pad_token_id, CPU)
        return batch, *completions(encoder, 2 * GROUP)

    def test_the_frozen_copy_is_the_start_after_an_update(self, fresh_policy, task):
        mask = task[-1]
        fresh_policy.freeze_reference()
        with torch.no_grad():
            start = fresh_policy.logprobs(*task)
        train_a_little(fresh_policy, *task)
        with torch.no_grad():
            now = fresh_policy.logprobs(*task)
        reference = fresh_policy.reference_logprobs(*task)
        assert torch.equal(reference[mask], start[mask])
        assert (now - start)[mask].abs().max() > 1e-2
        assert not reference.requires_grad

    def test_the_copy_is_made_on_the_device_of_the_run(self, fresh_policy, short_style):
        """The host would hold two copies of the weights for each rank."""
        module = GRPO(
            policy=fresh_policy,
            prompt=short_style,
            engine=ReferenceEngine(),
            rewards=Rewards({"a": letter_accuracy}, {}),
            seed=0,
            max_completion_tokens=4,
            sampling=Sampling(group_size=2, max_tokens=4),
            micro_batch=1,
        )
        strategy = SingleDeviceStrategy(torch.device("meta"))
        module.trainer = Trainer(
            accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False
        )
        module.trainer.datamodule = SimpleNamespace(prompts_per_step=1)
        module.setup("fit")
        assert all(p.is_meta for p in fresh_policy.copies.reference.parameters())

    def test_without_one_it_says_so(self, fresh_policy, task):
        with pytest.raises(RuntimeError, match="call freeze_reference"):
            fresh_policy.reference_logprobs(*task)

    def test_the_frozen_copy_is_in_no_checkpoint_and_no_optimiser(self, fresh_policy):
        before = [list(fresh_policy.state_dict()), *map(len, self.registered(fresh_policy))]
        fresh_policy.freeze_reference()
        assert [list(fresh_policy.state_dict()), *map(len, self.registered(fresh_policy))] == before

    @staticmethod
    def registered(policy):
        return list(policy.parameters()), list(policy.modules()), list(policy.buffers())

    def test_without_the_adapter_it_is_the_base(self, lora_policy, random_policy, task):
        mask = task[-1]
        with torch.no_grad():
            base, adapted = random_policy.logprobs(*task), lora_policy.logprobs(*task)
        assert (base - adapted)[mask].abs().max() > 1e-2
        torch.testing.assert_close(lora_policy.reference_logprobs(*task)[mask], base[mask], rtol=0, atol=1e-5)
        train_a_little(lora_policy, *task)
        torch.testing.assert_close(lora_policy.reference_logprobs(*task)[mask], base[mask], rtol=0, atol=1e-5)
        with torch.no_grad():
            assert (lora_policy.logprobs(*task) - adapted)[mask].abs().max() > 1e-3

    def test_an_adapter_needs_no_copy(self, lora_policy):
        lora_policy.freeze_reference()
        assert lora_policy.copies.reference is None

    def test_temperature_applies_to_the_reference_too(self, fresh_policy, task):
        fresh_policy.freeze_reference()
        with torch.no_grad():
            expected = fresh_policy.logprobs(*task, 0.7)
        assert torch.equal(fresh_policy.reference_logprobs(*task, 0.7), expected)


class TestSaving:
    @pytest.mark.parametrize("kind", ["random_policy", "untied_policy"])
    @torch.no_grad()
    def test_plain_transformers_loads_it_to_the_same_logits(self, kind, request, prompts, tmp_path):
        policy = request.getfixturevalue(kind)
        policy.save(tmp_path)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
        completion = torch.arange(5)
        for name in ("two", "text"):
            ours, theirs = (
                alone(model, prompts[name], completion, policy.encoder) for model in (policy.model, loaded)
            )
            assert torch.equal(ours, theirs)
        names = {path.name for path in tmp_path.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names

    @torch.no_grad()
    def test_plain_peft_loads_an_adapter_to_the_same_logits(
        self, lora_policy, random_policy, prompts, tmp_path
    ):
        lora_policy.save(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(random_policy.model), tmp_path)
        ours, theirs = (
            alone(model, prompts["two"], torch.arange(5), lora_policy.encoder)
            for model in (lora_policy.model, loaded)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
