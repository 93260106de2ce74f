"""Cost of one pass, against arithmetic on paper and against real tensors."""

import dataclasses
import math

import pytest
import torch
from models import FAMILIES, encoder_for, random_model
from plans import ALL, PAPER, TINY, TOWER, check_equal, read
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medvlm_r1.plan.measure import Meter
from medvlm_r1.plan.meta import Ledger
from medvlm_r1.plan.passes import PassShape, inputs, train_once
from medvlm_r1.policy.loading.architecture import load_config
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy


@pytest.fixture(scope="module")
def tiny():
    return read("model=tiny")


def test_the_meta_device_counts_what_the_tiny_model_really_holds(tiny):
    """The same pass on real tensors, and what autograd saves in it.

    In the repeated layout: what the packed one computes again, it keeps where no hook of autograd's sees it.
    """
    policy = load_policy("embedded", tiny.recipe, layout="repeated")
    meta = Meter(load_config("embedded"), tiny.recipe, Tuning(), full_depth=True, layout="repeated").policy()
    with sdpa_kernel(SDPBackend.MATH):
        real = train_once(policy, TINY, grpo=True, device="cpu", fused=False)
    check_equal(train_once(meta, TINY, grpo=True, fused=False), real)

    outside = {p.untyped_storage().data_ptr() for p in (*policy.parameters(), *policy.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = inputs(policy, TINY, "cpu")
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(*batch)
    # besides, the result and some positions and masks are alive
    assert real.saved == pytest.approx(sum(saved.values()), rel=1e-3)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("path", ["Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen3-VL-2B-Instruct"])
def test_shallow_models_tell_the_cost_of_the_whole_one(path, again):
    recipe = dataclasses.replace(read(PAPER).recipe, gradient_checkpointing=again)
    lengths = PassShape(1, 4, 300, 200, (16, 32))
    shallow, whole = (
        Meter(load_config(path), recipe, Tuning(), w).training(lengths, True) for w in (False, True)
    )
    assert dataclasses.astuple(shallow)[:3] == dataclasses.astuple(whole)[:3]
    assert shallow.saved == pytest.approx(whole.saved, rel=0.001)
    assert shallow.peak == pytest.approx(whole.peak, rel=0.01)


def test_arithmetic_agrees_with_torchs_counter():
    recipe = read(PAPER).recipe
    policy = Meter(load_config("embedded"), recipe, Tuning()).policy()
    batch = inputs(policy, TINY)
    with FlopCounterMode(display=False) as counter, Ledger() as ledger:
        policy.logprobs(*batch)
    assert ledger.flops == counter.get_total_flops() > 0


def test_arithmetic_by_hand():
    """Two operations for each weight and token, and attention: 4 x rows x tokens^2 x width x layers."""
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning(), layout="repeated")
    few, many = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 3, 300, 200, (4, 4))
    of_two_rows = meter.scoring(many).flops - meter.scoring(few).flops  # the image is seen once
    embedding = 151_936 * 1536
    layers = ALL - TOWER - embedding
    weights = 2 * 2 * (layers * 500 + embedding * 201)
    attention = 2 * 4 * 500**2 * 1536 * 28
    assert of_two_rows == pytest.approx(weights + attention, rel=1e-3)


def test_arithmetic_of_packed_passes_by_hand():
    """A further completion costs its own tokens, which see the prompt and themselves; and its logits."""
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning())
    few, many = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 3, 300, 200, (4, 4))
    of_two_rows = meter.scoring(many).flops - meter.scoring(few).flops
    embedding = 151_936 * 1536
    weights = 2 * 2 * ((ALL - TOWER - embedding) * 199 + embedding * 200)
    attention = 2 * 4 * 199 * (300 + 199) * 1536 * 28
    assert of_two_rows == pytest.approx(weights + attention, rel=1e-3)


def test_a_prompt_is_read_once_whatever_the_group():
    meter = Meter(load_config("Qwen/Qwen2-VL-2B-Instruct"), read(PAPER).recipe, Tuning())
    one, four = PassShape(1, 1, 300, 200, (4, 4)), PassShape(1, 4, 300, 200, (4, 4))
    assert meter.prefill(four).flops == meter.prefill(one).flops
    assert meter.prefill(four, shared=False).flops > 2 * meter.prefill(one, shared=False).flops


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_pass_is_counted_on_meta_as_on_real_tensors(family, encoder, tiny):
    encoder = encoder_for(encoder, family)
    policy = Policy(random_model(encoder, family=family), encoder)
    meta = Meter(policy.model.config, tiny.recipe, Tuning(), full_depth=True).policy()
    with sdpa_kernel(SDPBackend.MATH):
        real = train_once(policy, TINY, grpo=True, device="cpu", fused=False)
    check_equal(train_once(meta, TINY, grpo=True, fused=False), real)


def test_a_training_pass_costs_three_forward_passes_and_the_logits_again(paper):
    """The backward pass computes scores again too, half of what attention is."""
    work = {w.phase: w.flops for w in paper.step}
    prompts, prompt, own = (
        paper.workload.prompts,
        paper.workload.prompt_tokens,
        paper.workload.mean_completion,
    )
    rows, patches = prompts * paper.workload.sampling.group_size, math.prod(paper.workload.grid)
    logits = 2 * 151_936 * 1536 * rows * own
    completions = 4 * 1536 * 28 * rows * (own - 1) * (prompt + own - 1)
    fused = 4 * prompts * (1536 * 28 * prompt**2 + 1280 * 32 * patches**2)
    assert 0.05 < logits / work["reference"] < 0.1
    again = (logits + (completions + fused) / 2) / work["reference"]
    assert work["training"] / work["reference"] == pytest.approx(3 + again, rel=0.001)


def test_checkpointing_trades_memory_for_arithmetic():
    one = Meter(load_config("embedded"), read("model=tiny").recipe, Tuning())
    two = Meter(one.config, dataclasses.replace(one.recipe, gradient_checkpointing=True), Tuning())
    assert two.training(TINY, True).saved < 0.5 * one.training(TINY, True).saved
    assert two.training(TINY, True).flops > 1.2 * one.training(TINY, True).flops
