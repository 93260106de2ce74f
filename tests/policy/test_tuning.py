"""Training changes the trained weights alone, bit for bit; the reference stays the untrained model."""

import dataclasses

import pytest
import torch
from peft import LoraConfig
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from training import PROMPT, RECIPE, fit, module_of, phantoms, sgd

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.forward.model import inner_model
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning

LAYERS = "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
LANGUAGE = f".*language_model.*{LAYERS}"
BOTH = rf".*(language_model.*{LAYERS}|visual.blocks.*(qkv|attn.proj|fc1|fc2))"


def lora(targets=LANGUAGE):
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets)


# Name: (tuning, which parameters are to move)
CHOICES = {
    "full": (Tuning(), lambda name: True),
    "language_model": (Tuning("language_model"), lambda name: "language_model" in name),
    "lora": (Tuning("adapter", lora()), lambda name: "language_model" in name and "lora_" in name),
    "lora_vision": (Tuning("adapter", lora(BOTH)), lambda name: "lora_" in name),
    "qlora": (Tuning("adapter", lora(), "nf4"), lambda name: "language_model" in name and "lora_" in name),
}


def bits(tensor):
    """The bytes of a tensor."""
    return tensor.detach().clone().contiguous().view(torch.uint8)


class TestWhatMoves:
    @pytest.mark.parametrize("name", CHOICES)
    def test_exactly_what_is_meant_to(self, name, tmp_path):
        tuning, meant = CHOICES[name]
        module = fit(GRPO, tmp_path, steps=2, tuning=tuning, optimizer=torch.optim.AdamW, lr=1e-2)
        start = fresh(tuning)
        before = {n: bits(p) for n, p in start.named_parameters()}
        after = dict(module.policy.named_parameters())
        assert before.keys() == after.keys()
        moved = {n for n, p in after.items() if not torch.equal(bits(p), before[n])}
        assert moved == {n for n in after if meant(n)}
        assert {n for n, p in after.items() if p.requires_grad} == moved
        if "vision" in name or name == "full":
            assert any("visual" in n for n in moved)

    @pytest.mark.parametrize("name", ["lora", "qlora"])
    def test_sft_moves_the_adapter_alone(self, name, tmp_path):
        tuning, meant = CHOICES[name]
        module = fit(SFT, tmp_path, steps=1, tuning=tuning, optimizer=sgd, lr=1e-2)
        before = {n: bits(p) for n, p in fresh(tuning).named_parameters()}
        for n, p in module.policy.named_parameters():
            same = torch.equal(bits(p), before[n])
            # In the first step only B moves: A's gradient is a product with B, which starts at zero.
            assert same != (meant(n) and "lora_B" in n), n

    @pytest.mark.parametrize("name", ["full", "qlora"])
    def test_a_checkpoint_holds_what_is_trained_and_brings_it_back(self, name, tmp_path):
        tuning, meant = CHOICES[name]
        module = fit(SFT, tmp_path, steps=2, tuning=tuning, lr=1e-2)
        module.trainer.save_checkpoint(tmp_path / "saved.ckpt")
        state = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
        assert set(state) == {f"policy.{n}" for n, p in module.policy.named_parameters() if meant(n)}
        again = module_of(SFT, fresh(tuning))
        how = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(again, state, options=how)
        for ours, theirs in zip(again.policy.parameters(), module.policy.parameters(), strict=True):
            assert torch.equal(bits(ours), bits(theirs))

    def test_an_adapter_learns(self, tmp_path):
        """SFT of an adapter learns the format of its targets."""
        tuning = CHOICES["lora"][0]
        module = fit(SFT, tmp_path, steps=12, n=48, tuning=tuning, lr=1e-2)
        assert sum(p.answered and not p.well_formed for p in module.predictions) > 0.9 * len(
            module.predictions
        )

    def test_nothing_is_trained_in_four_bits_alone(self):
        assert fresh(Tuning("nothing", quantize="nf4")).trainable_parameters == []


def fresh(tuning, **recipe):
    """The untrained policy, with the adapter of ``fit``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_policy("embedded", dataclasses.replace(RECIPE, **recipe), tuning=tuning)


@pytest.fixture(scope="module")
def task():
    """Prompts of two phantoms, tokens and their mask, for ``logprobs``."""
    policy = load_policy("embedded", RECIPE)
    chosen = [policy.encoder.encode(sample, "train", PROMPT) for sample in list(phantoms(2).train)]
    tokens = torch.randint(5, 600, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [5]])
    return collate(chosen, policy.pad_id, torch.device("cpu")), tokens, mask


class TestReference:
    @pytest.mark.parametrize("name", CHOICES)
    def test_it_is_the_untrained_model_throughout(self, name, task):
        policy = fresh(CHOICES[name][0])
        policy.freeze_reference()
        mask = task[-1]
        with torch.no_grad():
            untrained = policy.logprobs(*task)
        optimizer = torch.optim.AdamW(policy.trainable_parameters, lr=1e-2)
        for _ in range(3):
            assert torch.equal(policy.reference_logprobs(*task)[mask], untrained[mask])
            policy.logprobs(*task)[mask].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(policy.reference_logprobs(*task)[mask], untrained[mask])
        with torch.no_grad():
            assert (policy.logprobs(*task) - untrained)[mask].abs().max() > 0.1

    def test_it_shares_a_frozen_tower(self):
        policy = fresh(Tuning("language_model"))
        policy.freeze_reference()
        reference = policy.copies.reference
        assert reference.model.visual is policy.model.model.visual
        assert reference.model.language_model is not policy.model.model.language_model

    def test_a_trained_tower_is_copied(self):
        policy = fresh(Tuning())
        policy.freeze_reference()
        assert policy.copies.reference.model.visual is not policy.model.model.visual


class TestFourBits:
    def test_the_language_model_is_held_in_them_and_the_tower_is_not(self):
        policy = fresh(Tuning("nothing", quantize="nf4"))
        for name, module in policy.model.named_modules():
            if type(module).__name__ == "Linear4bit":
                assert "language_model" in name
                assert module.weight.quant_type == "nf4"
                assert module.weight.numel() * 2 == module.in_features * module.out_features
        kinds = {type(m).__name__ for m in policy.model.model.language_model.layers.modules()}
        assert "Linear4bit" in kinds
        assert "Linear" not in kinds

    def test_answers_stay_close_to_the_model_they_came_from(self, task):
        """NF4 has 16 values: the log-probabilities differ, but not like those of another model."""
        with torch.no_grad():
            whole, coarse = (fresh(t).logprobs(*task) for t in (Tuning(), Tuning("nothing", quantize="nf4")))
        mask = task[-1]
        assert 1e-3 < (whole - coarse)[mask].abs().mean() < 0.2 * whole[mask].abs().mean()


class TestCheckpointing:
    @pytest.mark.parametrize("name", ["full", "language_model", "lora"])
    def test_gradients_are_the_same(self, name, task):
        tuning, mask = CHOICES[name][0], task[-1]
        gradients = []
        for wanted in (False, True):
            policy = fresh(tuning, gradient_checkpointing=wanted)
            policy.logprobs(*task)[mask].sum().backward()
            gradients.append({n: p.grad for n, p in policy.named_parameters() if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        for n, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][n], expected, rtol=1e-5, atol=1e-5, msg=n)

    def test_less_is_kept_and_a_frozen_tower_is_not_run_again(self, task):
        def saved(**recipe):
            policy, kept = fresh(Tuning("language_model"), **recipe), []
            runs = []
            policy.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
            for block in policy.model.model.visual.blocks:
                block.register_forward_hook(lambda *_: runs.append(1))
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
                loss = policy.logprobs(*task).sum()
            loss.backward()
            return sum(kept), len(runs)

        (plain, once), (less, again) = saved(), saved(gradient_checkpointing=True)
        assert less < plain / 2
        assert once == again

    @pytest.mark.parametrize(
        ("name", "frozen"),
        [("full", False), ("language_model", True), ("lora", True), ("lora_vision", False)],
    )
    def test_no_graph_runs_through_a_frozen_tower(self, name, frozen, task):
        policy, seen = fresh(CHOICES[name][0]), []
        inner_model(policy.model).visual.register_forward_hook(
            lambda module, given, features: seen.append(features.pooler_output.requires_grad)
        )
        policy.logprobs(*task)
        assert seen == [not frozen]

    @torch.no_grad()
    def test_rollouts_keep_their_cache(self, task):
        """In training mode, gradient checkpointing disables the KV cache."""
        policy = fresh(Tuning(), gradient_checkpointing=True)
        assert policy.model.training
        lengths = []
        language_model = inner_model(policy.model).language_model
        language_model.register_forward_pre_hook(
            lambda module, args, given: lengths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
        )
        policy.generate(task[0], 1, 5, lambda seen, logits: logits)
        assert lengths[0] > 1
        assert set(lengths[1:]) == {1}
        assert policy.model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "head"}, "use 'all', 'language_model'"),
        ({"train": "adapter"}, "train=adapter needs an adapter and no other choice takes one"),
        ({"train": "all", "adapter": lora()}, "train=adapter needs an adapter and no other choice takes one"),
        ({"train": "all", "quantize": "nf4"}, "cannot be trained: take peft=qlora"),
        ({"train": "nothing", "quantize": "int8"}, "use 'nf4' or null"),
        (
            {"train": "adapter", "adapter": LoraConfig(lora_dropout=0.1)},
            "lora_dropout must be 0: dropout makes sampler and trainer disagree",
        ),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Tuning(**settings)
