"""A decoding step at real size, counted on fake CUDA tensors: launches, bytes, copies of keys, host reads."""

import shutil

import pytest
import torch
from counter import Counting, Step, count_step, fake_cuda, meta_policy

from medvlm_r1.plan.passes import decode
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.rollout.engine import Sampling

pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None and not torch.cuda.is_available(),
        reason="fake CUDA tensors need g++ in a CPU build of torch",
    ),
    pytest.mark.usefixtures("unchecked"),
]


def test_a_step_of_8_prompts_x_8_rows_stays_in_its_budget():
    count, kernels = count_step(Step(8, 8))
    assert count.key_copies == count.host_reads == 0
    assert count.launches <= 1_050, kernels
    assert count.bytes <= 6.0e9
    assert count.least > 4.1e9


def test_adapters_and_other_shapes_copy_no_keys_and_wait_for_nothing():
    for step in (
        Step(8, 16, layers=2, adapter=True),
        Step(1, 1, layers=2, prompt=256, window=64),
        Step(4, 4, layers=2, model="Qwen/Qwen2.5-VL-3B-Instruct"),
        Step(4, 4, layers=2, model="Qwen/Qwen3-VL-4B-Instruct"),
    ):
        count, _ = count_step(step)
        assert count.key_copies == count.host_reads == 0, step


def test_the_plan_counts_the_same():
    """On the meta device, by its own rules."""
    step = Step(8, 8, layers=2)
    count, _ = count_step(step)
    shape = CacheShape(step.prompts, step.group_size, step.prompt, step.window)
    planned = decode(meta_policy(step), shape, step.window, Sampling(step.group_size, step.window))
    assert planned.launches == count.launches
    assert planned.traffic == pytest.approx(count.bytes, rel=1e-4)


def test_the_counter_sees_what_it_forbids():
    with fake_cuda():
        keys = torch.empty(8, 2, 64, 16, device="cuda", dtype=torch.bfloat16)
        with Counting([keys]) as counting:
            keys.transpose(1, 2).contiguous()
            keys[..., ::2].flatten(0, 1) @ keys.new_empty(16, 8, 3)
            bool(keys.new_zeros(()))
    assert counting.count.key_copies == 2
    assert counting.count.host_reads == 1
    assert counting.count.launches == 4  # copy, operand of the product, product, zeros
