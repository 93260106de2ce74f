"""Packed passes against repeated ones: equal log-probabilities and gradients with fewer tokens."""

import dataclasses

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.passes import PassShape
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.forward import lm_head, logprobs
from medvlm_r1.policy.forward.lm_head import target_logprobs
from medvlm_r1.policy.forward.model import inner_model
from medvlm_r1.policy.forward.packing import Padder
from medvlm_r1.policy.loading.architecture import load_config
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy

CPU = torch.device("cpu")
GROUP = 3
CHOICES = [("square",), ("two", "text"), ("text",), ("square", "wide", "flat", "two", "text")]
# Of completions: one token each; the longest and the shortest; one that is empty; all alike.
LENGTHS = {
    "one": lambda rows: [1] * rows,
    "ragged": lambda rows: [1 + (5 * row) % 9 for row in range(rows)],
    "empty": lambda rows: [0, 4, 9] * (rows // 3),
    "full": lambda rows: [9] * rows,
}

OTHERS = ["untied_policy", "lora_policy", "policy_2_5", "policy_3", "lora_policy_3"]
CASES = [("random_policy", names, lengths) for names in CHOICES for lengths in LENGTHS]
CASES += [(kind, names, "empty") for kind in OTHERS for names in CHOICES]


def completions(encoder, lengths):
    generator = torch.Generator().manual_seed(0)
    ordinary = min(encoder.tokenizer.all_special_ids)
    tokens = torch.randint(0, ordinary, (len(lengths), 9), generator=generator)
    return tokens, torch.arange(9) < torch.tensor(lengths)[:, None]


def both(policy):
    return policy, Policy(policy.model, policy.encoder, layout="repeated")


@pytest.mark.parametrize(("kind", "names", "lengths"), CASES, ids=str)
def test_both_layouts_give_the_same(kind, names, lengths, prompts_of, request):
    policy, repeated = both(request.getfixturevalue(kind))
    chosen = [prompts_of(policy)[name] for name in names]
    tokens, mask = completions(policy.encoder, LENGTHS[lengths](GROUP * len(chosen)))
    batch = collate(chosen, policy.pad_id, CPU)
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))[mask]
    trained = policy.trainable_parameters
    found = []
    for each in (policy, repeated):
        logprobs = each.logprobs(batch, tokens, mask, 0.9)
        gradients = torch.autograd.grad((logprobs[mask] * weight).sum(), trained, allow_unused=True)
        found.append((logprobs, gradients))
    (ours, slopes), (theirs, expected) = found
    # fp32 keeps 2.5e-5 of the lively adapter's fp64 values, in either layout
    atol = 3e-5 if policy.has_adapter else 1e-5
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-6, atol=atol)  # values of up to 30
    norm = torch.stack([g.norm() for g in expected if g is not None]).norm()
    for one, other in zip(slopes, expected, strict=True):
        if other is None or one is None:
            assert (other if one is None else one) is None or not (other if one is None else one).any()
            continue
        assert (one - other).norm() < 1e-5 * norm


@torch.no_grad()
def test_positions_are_those_of_the_whole_sequence(prompts, random_policy):
    """Positions are those of transformers' get_rope_index for prompt and completion together."""
    seen = {}

    def record(language_model, embeds, positions, *others):
        seen["positions"] = positions
        return plain(language_model, embeds, positions, *others)

    plain, logprobs.run_layers = logprobs.run_layers, record
    try:
        tokens, mask = completions(random_policy.encoder, [7, 7, 7])
        random_policy.logprobs(collate([prompts["two"]], random_policy.pad_id, CPU), tokens, mask)
    finally:
        logprobs.run_layers = plain
    prompt = prompts["two"]
    ids = torch.cat([prompt.ids, tokens[0, :6]])[None]
    kinds = (ids == random_policy.image_id).int()
    expected, _ = random_policy.model.model.get_rope_index(ids, kinds, image_grid_thw=prompt.grid)
    got = seen["positions"]
    assert torch.equal(got[:, : len(prompt.ids) + 6], expected[:, 0])
    assert torch.equal(got[:, len(prompt.ids) : len(prompt.ids) + 6], got[:, -6:])


def test_each_prompt_and_each_token_goes_through_once(prompts, random_policy):
    policy = Policy(random_policy.model, random_policy.encoder)
    chosen = [prompts["square"], prompts["flat"]]
    lengths = [1, 9, 4, 2, 2, 7]
    tokens, mask = completions(policy.encoder, lengths)
    seen = []
    layers = policy.model.model.language_model.layers
    hooks = [
        layer.register_forward_hook(lambda m, i, out: seen.append(out.shape[:-1].numel())) for layer in layers
    ]
    policy.logprobs(collate(chosen, policy.pad_id, CPU), tokens, mask)
    for hook in hooks:
        hook.remove()
    # A completion's last token predicts nothing.
    expected = sum(len(p.ids) for p in chosen) + sum(lengths) - len(lengths)
    assert seen == [expected] * len(layers)
    assert policy.counters["forward_tokens"] == expected
    assert policy.counters["lm_head_tokens"] == sum(lengths)
    assert policy.counters["images_encoded"] == 2


@pytest.mark.parametrize(("kind", "expected"), [("lora_policy", 0), ("fresh_policy", 1)])
def test_no_backward_pass_through_a_frozen_tower(kind, expected, prompts, request):
    policy, calls = request.getfixturevalue(kind), []
    merger = inner_model(policy.model).visual.merger
    merger.register_full_backward_hook(lambda *_: calls.append(1))
    tokens, mask = completions(policy.encoder, [4, 5, 6])
    batch = collate([prompts["square"]], policy.pad_id, CPU)
    policy.logprobs(batch, tokens, mask)[mask].sum().backward()
    assert len(calls) == expected


class TestHead:
    def pieces(self, rows=11, width=6, vocabulary=40):
        g = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, width, generator=g, requires_grad=True)
        weight = torch.randn(vocabulary, width, generator=g, requires_grad=True)
        banned = torch.zeros(vocabulary, dtype=torch.bool)
        banned[[3, 17]] = True
        targets = torch.randint(18, vocabulary, (rows,), generator=g)
        return hidden, weight, targets, banned, torch.randn(rows, generator=g)

    @pytest.mark.parametrize("chunk", [1, 4, 11, 1024])
    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_chunks_change_nothing(self, chunk, frozen, temperature, monkeypatch):
        monkeypatch.setattr(lm_head, "CHUNK", chunk)
        hidden, weight, targets, banned, gain = self.pieces()
        plain = ((hidden @ weight.T) / temperature).masked_fill(banned, -torch.inf).log_softmax(-1)
        plain = plain.gather(-1, targets[:, None])[:, 0]
        wanted = [hidden] if frozen else [hidden, weight]
        expected = torch.autograd.grad((plain * gain).sum(), wanted)
        got = target_logprobs(hidden, weight.detach() if frozen else weight, targets, banned, temperature)
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)
        for one, other in zip(torch.autograd.grad((got * gain).sum(), wanted), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=2e-6)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_no_tensor_is_larger_than_a_chunk_of_logits(self, frozen, monkeypatch):
        monkeypatch.setattr(lm_head, "CHUNK", 8)
        hidden, weight, targets, banned, gain = self.pieces(rows=64, vocabulary=400)

        class Largest(TorchDispatchMode):
            bytes = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                for tensor in tree_iter(out):
                    if isinstance(tensor, torch.Tensor):
                        self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
                return out

        with Largest() as largest:
            got = target_logprobs(hidden, weight.detach() if frozen else weight, targets, banned, 1.0)
            (got * gain).sum().backward()
        assert largest.bytes == 8 * 400 * 4


class TestPadder:
    @pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2], [0, 3], [0, 0]])
    def test_there_and_back(self, lengths):
        padder = Padder(lengths, CPU)
        tokens = torch.randn(sum(lengths), 2)
        block = padder.pad(tokens)
        assert block.shape == (len(lengths), padder.longest, 2)
        assert torch.equal(padder.unpad(block), tokens)
        assert padder.mask.sum(1).tolist() == lengths
        assert not block[~padder.mask].any()


class TestRealSize:
    """Qwen2-VL-2B's own configuration on the meta device: 2 x 8 completions, 800 tokens a prompt."""

    RECIPE = Recipe(
        **dict.fromkeys(("grpo_lr", "sft_lr", "epochs", "max_prompt_tokens", "max_completion_tokens"), 1),
        **dict.fromkeys(("min_pixels", "max_pixels", "prompts_per_step", "group_size", "micro_batch"), 1),
        evaluation_batch=1,
        dtype="bfloat16",
    )

    def cost(self, layout, completion, tuning=None):
        meter = Meter(
            load_config("Qwen/Qwen2-VL-2B-Instruct"),
            self.RECIPE,
            tuning or Tuning(train="language_model"),
            layout=layout,
        )
        return meter, PassShape(2, 8, 800, completion, (2, 2))  # one image token: the language model's own

    HEAD = 2 * 151_936 * 1536  # operations of one token's logits

    @pytest.mark.parametrize(("mean", "share"), [(384, 0.40), (512, 0.50)])
    def test_arithmetic(self, mean, share):
        """In the layers: repeated rows are padded to the longest, 512; packed rows have their mean length."""
        meter, lengths = self.cost("packed", mean)
        other, padded = self.cost("repeated", 512)
        packed, repeated = meter.scoring(lengths).flops, other.scoring(padded).flops
        assert (packed - self.HEAD * 16 * mean) / (repeated - self.HEAD * 16 * 513) < share
        packed, repeated = meter.training(lengths, True).flops, other.training(padded, True).flops
        assert packed / repeated < share + 0.02  # the logits are computed twice, so that none are held
        layers = packed - 4 * self.HEAD * 16 * mean
        assert layers / (repeated - 3 * self.HEAD * 16 * 513) < share

    def test_memory(self):
        meter, lengths = self.cost("packed", 384)
        other, padded = self.cost("repeated", 512)
        assert meter.training(lengths, True).peak < 0.35 * other.training(padded, True).peak

    @pytest.mark.parametrize(("tuning", "passes"), [(None, 3.04), ("adapter", 2.10)])
    def test_a_training_pass_costs_as_many_forward_passes(self, tuning, passes):
        """In the layers for all weights (0.03 are attention scores of completions); in all for an adapter."""
        adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
        meter, lengths = self.cost("packed", 384, tuning and Tuning(tuning, adapter))
        forward, both = meter.scoring(lengths).flops, meter.training(lengths, True).flops
        if tuning is None:
            forward, both = forward - self.HEAD * 16 * 384, both - 4 * self.HEAD * 16 * 384
        assert both / forward < passes


def test_an_unknown_layout_is_refused(random_policy):
    with pytest.raises(ValueError, match="layout is 'rows': use packed or repeated"):
        Policy(random_policy.model, random_policy.encoder, layout="rows")


def test_prompts_of_other_lengths_are_not_touched(prompts, random_policy):
    """Packed prompts do not attend to each other."""
    tokens, mask = completions(random_policy.encoder, [9, 2, 5, 1, 9, 3])
    with torch.no_grad():
        together = random_policy.logprobs(
            collate([prompts["flat"], prompts["wide"]], random_policy.pad_id, CPU), tokens, mask
        )
        batch = collate([prompts["flat"], prompts["wide"]], random_policy.pad_id, CPU)
        ids = batch.ids.clone()
        ids[batch.lengths[0] :][:8] = ids[batch.lengths[0] :][:8].flip(0)
        changed = random_policy.logprobs(dataclasses.replace(batch, ids=ids), tokens, mask)
    torch.testing.assert_close(changed[:3][mask[:3]], together[:3][mask[:3]], rtol=0, atol=1e-6)
    assert ((changed - together).abs() * mask)[3:].amax(1).min() > 1e-3
