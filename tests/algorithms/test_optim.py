"""fp32 copies of bf16 parameters: small updates add up, and a saved optimiser goes on as if uninterrupted."""

import copy
import io
from functools import partial

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from command import ROOT
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medvlm_r1.algorithms.optim import MasterWeights, OptimizerSettings

ADAMW = OmegaConf.load(ROOT / "conf/optimizer/adamw.yaml")


def parameters(dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((64, 64), (64,), (8, 3, 2))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def push(params, step):
    """Set the same gradients wherever the step is the same."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def optimisation(**settings):
    return OptimizerSettings(**{"lr": 1e-6, "optimizer": torch.optim.AdamW} | settings)


def test_small_updates_reach_bfloat16_only_through_copies():
    """AdamW moves each entry by about the learning rate a step; one in bf16 near 1 resolves 0.008."""
    narrow, plain = parameters(), parameters()
    start = [p.detach().clone() for p in narrow]
    with_copies = optimisation(lr=1e-4).build(narrow)
    without = torch.optim.AdamW(plain, lr=1e-4)
    for _ in range(100):  # the same direction each time: together about 0.01
        for params, optimizer in ((narrow, with_copies), (plain, without)):
            push(params, 0)
            optimizer.step()
    moved = torch.cat([(p.detach() - s).abs().flatten() for p, s in zip(narrow, start, strict=True)])
    lost = torch.cat([(p.detach() - s).abs().flatten() for p, s in zip(plain, start, strict=True)])
    assert moved.float().mean() == pytest.approx(0.01, rel=0.15)
    assert lost.float().mean() < 0.005


def test_the_copies_take_the_steps_of_fp32():
    narrow = parameters()
    wide = [nn.Parameter(p.detach().float()) for p in narrow]
    settings = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.9)}
    optimizer = MasterWeights(narrow, lambda ps, lr: torch.optim.AdamW(ps, **settings | {"lr": lr}), 1e-2)
    expected = torch.optim.AdamW(wide, **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5**s)
    for step in range(4):
        push(narrow, step)
        for p, w in zip(narrow, wide, strict=True):
            w.grad = p.grad.float()
        optimizer.step()
        schedule.step()
        expected.step()
        expected.param_groups[0]["lr"] = 1e-2 * 0.5 ** (step + 1)
    for p, m, w in zip(narrow, optimizer.masters, wide, strict=True):
        torch.testing.assert_close(m, w.detach(), rtol=0, atol=0)
        assert torch.equal(p, m.bfloat16())
        assert m.grad is None


def test_a_step_without_gradients_changes_nothing():
    """As after a gradient that was not finite."""
    params = parameters()
    optimizer = optimisation(lr=1e-2).build(params)
    push(params, 0)
    optimizer.step()
    before = copy.deepcopy([params, optimizer.masters, list(optimizer.state.values())])
    optimizer.zero_grad()
    optimizer.step()
    after = [params, optimizer.masters, list(optimizer.state.values())]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_fp32_parameters_need_none():
    assert type(optimisation().build(parameters(torch.float32))) is torch.optim.AdamW
    mixed = [*parameters(), *parameters(torch.float32)]
    optimizer = optimisation().build(mixed)
    assert [m is p for m, p in zip(optimizer.masters, mixed, strict=True)] == [False] * 3 + [True] * 3
    push(mixed, 0)
    before = [p.detach().clone() for p in mixed]
    optimizer.step()
    assert all(not torch.equal(m, b) for m, b in zip(optimizer.masters, before, strict=True))


@pytest.mark.parametrize("build", [torch.optim.AdamW, AdamW8bit, torch.optim.SGD], ids=lambda b: b.__name__)
def test_a_saved_optimiser_goes_on_as_if_uninterrupted(build):
    params = parameters()
    optimizer = optimisation(optimizer=build, lr=1e-2).build(params)
    for step in range(3):
        push(params, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = [nn.Parameter(p.detach().clone()) for p in saved["params"]]
    resumed = optimisation(optimizer=build, lr=1.0).build(again)  # the rate comes from what was saved
    resumed.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        for ps, each in ((params, optimizer), (again, resumed)):
            push(ps, step)
            each.step()
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)
    for m, n in zip(optimizer.masters, resumed.masters, strict=True):
        assert torch.equal(m, n)


def test_eight_bit_moments_take_two_bytes_a_parameter_and_nearly_the_same_steps():
    # bitsandbytes keeps tensors below 4,096 entries in 32 bits
    start = nn.Parameter(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))
    wide, coarse = copy.deepcopy(start), copy.deepcopy(start)
    exact, rounded = (
        torch.optim.AdamW([wide], lr=1e-3),
        optimisation(optimizer=AdamW8bit, lr=1e-3).build([coarse]),
    )
    for step in range(10):
        push([wide], step)
        coarse.grad = wide.grad.clone()
        exact.step()
        rounded.step()
    state = rounded.state[coarse]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    assert state["state1"].numel() + state["state2"].numel() == 2 * start.numel()
    ours, theirs = coarse - start, wide - start
    assert nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.98


def test_the_factor_multiplies_the_rate():
    assert optimisation(lr_scale=10.0).build(parameters()).param_groups[0]["lr"] == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="lr_scale is 0"):
        optimisation(lr_scale=0)


def test_the_rate_grows_with_the_square_root_of_the_prompts_per_step():
    assert optimisation(batch_scale=9.0).build(parameters()).param_groups[0]["lr"] == pytest.approx(3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_adamw_is_fused_on_a_gpu_alone(dtype):
    adamw = partial(torch.optim.AdamW, **{k: v for k, v in ADAMW.items() if not k.startswith("_")})
    assert not optimisation(optimizer=adamw).build(parameters(dtype)).defaults["fused"]
    with FakeTensorMode():
        on_gpu = [nn.Parameter(torch.empty(3, dtype=dtype, device="cuda"))]
        optimizer = optimisation(optimizer=adamw).build(on_gpu)
        assert optimizer.param_groups[0]["fused"] is True
        refused = partial(adamw, fused=False)  # optimizer.fused=false
        assert optimisation(optimizer=refused).build(on_gpu).param_groups[0]["fused"] is False
        assert not optimisation(optimizer=torch.optim.SGD).build(on_gpu).param_groups[0]["fused"]
