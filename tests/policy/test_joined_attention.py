"""Two kernel calls joined by their log-sum-exp give the attention, and the gradients, of scores in memory."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from medvlm_r1.plan.meta import Ledger, gpu_kernels
from medvlm_r1.policy.forward.joined_attention import Flash, error_of, kernel_for
from medvlm_r1.policy.forward.packing import GroupLayout

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE = 6, 2, 16
# Tokens of prompts, and of each prompt's three completions.
SHAPES = {
    "one prompt": ((23,), (17, 5, 9)),
    "unequal": ((23, 7, 40), (17, 1, 4, 9, 9, 9, 2, 30, 6)),
    "empty rows": ((5, 12, 8), (0, 7, 3, 0, 0, 0, 1, 0, 1)),
    "one token each": ((6, 6), (1, 0, 1, 1, 1, 1)),
}


class CPUFlash:
    """torch's flash kernel of the CPU, sequence by sequence; it takes as many key heads as query heads."""

    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def sequences(self, spans):
        for q, k in zip(*(pairwise(x.tolist()) for x in spans.ends), strict=True):
            if q[0] < q[1]:
                yield slice(*q), slice(*k)

    def forward(self, query, key, value, spans, scaling):
        output, logsumexp = torch.full_like(query, torch.nan), query.new_full(query.shape[1::-1], torch.nan)
        shared = query.shape[1] // key.shape[1]
        for q, k in self.sequences(spans):
            one = [
                x.transpose(0, 1).unsqueeze(0)
                for x in (query[q], *(x[k].repeat_interleave(shared, 1) for x in (key, value)))
            ]
            out, sums = self.op(*one, 0.0, spans.causal, scale=scaling)
            output[q], logsumexp[:, q] = out[0].transpose(0, 1), sums[0]
        return output, logsumexp.float()

    def backward(self, gradient, query, key, value, output, logsumexp, spans, scaling):
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        shared = query.shape[1] // key.shape[1]
        for q, k in self.sequences(spans):
            repeated = (x[k].repeat_interleave(shared, 1) for x in (key, value))
            one = [x.transpose(0, 1).unsqueeze(0) for x in (gradient[q], query[q], *repeated, output[q])]
            sums = logsumexp[:, q].unsqueeze(0)
            parts = self.backward_op(*one, sums, 0.0, spans.causal, scale=scaling)
            dq, dk, dv = (x[0].transpose(0, 1) for x in parts)
            grads[0][q] = dq
            for grad, part in zip(grads[1:], (dk, dv), strict=True):
                grad[k] = part.unflatten(1, (-1, shared)).sum(2)
        return grads


def inputs(prompts, completions, heads, size, dtype):
    """Query, key and value of a layer."""
    generator, tokens = torch.Generator().manual_seed(0), sum(prompts) + sum(completions)
    shapes = [(1, heads[0], tokens, size)] + 2 * [(1, heads[1], tokens, size)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def attention(shape, dtype, kernel):
    """Output of a layer, and gradients of query, key and value."""
    prompts, completions = SHAPES[shape]
    query, key, value = inputs(prompts, completions, (HEADS, KV_HEADS), SIZE, dtype)
    output = GroupLayout(prompts, completions, CPU, kernel).attend(0, query, key, value, SIZE**-0.5)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return output, *torch.autograd.grad(output, (query, key, value), gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_scores_in_memory(shape):
    for ours, expected in zip(
        attention(shape, torch.float32, CPUFlash()), attention(shape, torch.float32, None), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert expected.abs().max() > 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_as_near_to_fp32_as_scores_in_memory(shape):
    """Each kernel rounds its part of the output once: at most 1.5 times the error, and 1 % of the norm."""
    exact = attention(shape, torch.float32, None)
    joined, scores = (attention(shape, torch.bfloat16, kernel) for kernel in (CPUFlash(), None))
    for one, other, expected in zip(joined, scores, exact, strict=True):
        error, usual = ((x.float() - expected).norm() / expected.norm() for x in (one, other))
        assert error < max(1.5 * usual, 0.005)
        assert error < 0.01


def test_16_bits_on_a_gpu_take_the_kernel():
    """The meta device stands for a GPU in a plan."""
    meta = torch.device("meta")
    assert isinstance(kernel_for(meta, torch.bfloat16), Flash)
    assert kernel_for(meta, torch.float32) is None
    assert kernel_for(CPU, torch.bfloat16) is None
    with sdpa_kernel(SDPBackend.MATH):
        assert kernel_for(meta, torch.bfloat16) is None


class Broken(CPUFlash):
    """Its log-sum-exp has another base, as in some kernels."""

    def forward(self, *args):
        output, logsumexp = super().forward(*args)
        return output, logsumexp / math.log(2)


def test_a_kernel_is_tried_before_it_is_used():
    assert error_of(CPUFlash(), CPU, torch.float32) < 1e-5
    assert error_of(CPUFlash(), CPU, torch.bfloat16) < 0.01
    assert error_of(Broken(), CPU, torch.bfloat16) > 0.05


def test_a_gpu_on_which_the_kernel_fails_keeps_scores_in_memory(caplog):
    """This torch has no kernel for it at all."""
    assert kernel_for(torch.device("cuda"), torch.bfloat16) is None
    assert "keeps its scores in memory" in caplog.text


def test_no_scores_are_in_memory():
    """Qwen2-VL-2B's layer, 8 completions of 512 tokens, a prompt of 673; counted on the meta device."""
    prompts, completions, meta = (673,), (512,) * 8, torch.device("meta")
    peaks, traffic = [], []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        query, key, value = (
            torch.empty(1, heads, 673 + 8 * 512, 128, dtype=torch.bfloat16, device=meta).requires_grad_()
            for heads in (12, 2, 2)
        )
        with sdpa_kernel(backend), Ledger([query, key, value], wide=0) as ledger, gpu_kernels():
            layout = GroupLayout(prompts, completions, meta)
            layout.attend(0, query, key, value, 128**-0.5).sum().backward()
        peaks.append(ledger.peak)
        traffic.append(ledger.traffic)
    assert peaks[0] < 0.3 * peaks[1]  # 108 of 378 MB
    assert traffic[0] < 0.07 * traffic[1]  # 0.60 of 9.55 GB
