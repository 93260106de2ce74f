"""Attention to a shared prefix and to the own row by two calls of a library's kernel: no scores in memory.

Softmax over two sets of keys is the mean of the softmax over each, weighted by its share of the sum of
exponentials, which a flash kernel returns as its log-sum-exp. Neither call needs padding: completions of a
prompt are queries of one sequence to its keys, and each completion is a causal sequence of its own.
"""

import logging
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Query = Float[Tensor, "tokens heads size"]
Key = Float[Tensor, "keys kv_heads size"]
LogSumExp = Float[Tensor, "heads tokens"]
log = logging.getLogger("medvlm_r1")


class Spans:
    """Which tokens of one row attend to which keys of another: the sequences of both, in order.

    Args:
        queries, keys: tokens of each sequence.
        causal: token i of a sequence attends to its keys 0 to i, else to all of its keys.
    """

    def __init__(
        self, queries: Sequence[int], keys: Sequence[int], causal: bool, device: torch.device
    ) -> None:
        self.causal = causal
        self.ends = [torch.tensor([0, *accumulate(x)], dtype=torch.int32).to(device) for x in (queries, keys)]
        # An upper bound; for 1 query, torch's kernel takes a path that refuses empty sequences.
        self.longest = max(2, *queries), max(keys)


@runtime_checkable
class Kernel(Protocol):
    """Attention of sequences of unequal length, without dropout."""

    def forward(
        self, query: Query, key: Key, value: Key, spans: Spans, scaling: float
    ) -> tuple[Query, LogSumExp]:
        """The output, and the log-sum-exp of each query's scores."""

    def backward(
        self,
        gradient: Query,
        query: Query,
        key: Key,
        value: Key,
        output: Query,
        logsumexp: LogSumExp,
        spans: Spans,
        scaling: float,
    ) -> tuple[Query, Key, Key]:
        """Gradients of query, key and value, for a softmax with this output and log-sum-exp."""


class Flash:
    """torch's FlashAttention-2 (arXiv 2307.08691), for 16 bits on a GPU.

    Called as in ``torch.nn.attention.varlen``, whose own backward pass takes no other log-sum-exp.
    """

    def forward(self, query, key, value, spans, scaling):
        output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *spans.ends, *spans.longest, 0.0, spans.causal, False, scale=scaling
        )
        return output, logsumexp

    def backward(self, gradient, query, key, value, output, logsumexp, spans, scaling):
        unused = [query.new_zeros(2, dtype=torch.uint64), query.new_empty(0)]  # state of the dropout
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            *(query, key, value, output, logsumexp),
            *(*spans.ends, *spans.longest, 0.0, spans.causal, *unused),
            scale=scaling,
        )


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel of a device; ``None`` without one, or while ``torch.nn.attention.sdpa_kernel`` excludes it.

    The meta device has a GPU's kernel.
    """
    if dtype not in (torch.float16, torch.bfloat16) or not torch.backends.cuda.flash_sdp_enabled():
        return None
    if device.type == "cuda":
        return Flash() if _flash_works(device, dtype) else None
    return Flash() if device.type == "meta" else None


@cache
def _flash_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs on this GPU and is right, tried once; if not, a warning says so."""
    try:
        error = error_of(Flash(), device, dtype)
    except (RuntimeError, TypeError, AssertionError) as cause:  # this torch has no such kernel, or no CUDA
        error = str(cause).splitlines()[0]
    if isinstance(error, float) and error < 0.02:
        return True
    log.warning("attention of completions keeps its scores in memory: FlashAttention fails here (%s)", error)
    return False


@torch.enable_grad()
def error_of(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative error of :func:`joined_attention`, output and gradients, on a small example."""
    prompts, rows = torch.tensor([5, 12]), torch.tensor([[7, 0, 3], [1, 0, 2]])
    group, row = (torch.arange(len(n)).repeat_interleave(n) for n in (rows.sum(1), rows.flatten()))
    prompt = torch.arange(2).repeat_interleave(prompts)
    seen = torch.cat([group[:, None] == prompt, (row[:, None] == row).tril()], dim=1).to(device)
    far = Spans(rows.sum(1).tolist(), prompts.tolist(), False, device)
    near = Spans(rows.flatten().tolist(), rows.flatten().tolist(), True, device)

    def joined(query, keys, values, more_keys, more_values):
        return joined_attention(query, (keys, values), (more_keys, more_values), (far, near), 1 / 8, kernel)

    def plain(query, keys, values, more_keys, more_values):
        pairs = (keys, more_keys), (values, more_values)
        key, value = (torch.cat(pair).repeat_interleave(2, dim=1) for pair in pairs)
        scores = torch.einsum("qhd,khd->hqk", query, key) / 8
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)

    def run(attend, inputs, gradient):
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = attend(*inputs)
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

    generator = torch.Generator().manual_seed(0)
    sizes = [(13, 4), (17, 2), (17, 2), (13, 2), (13, 2), (13, 4)]  # tokens and heads
    tensors = [torch.randn(*size, 64, generator=generator).to(device, dtype) for size in sizes]
    exact = [x.float() for x in tensors]
    pairs = zip(run(joined, tensors[:5], tensors[5]), run(plain, exact[:5], exact[5]), strict=True)
    return max(float((ours.float() - other).norm() / other.norm()) for ours, other in pairs)


def joined_attention(
    query: Query,
    prefix: tuple[Key, Key],
    suffix: tuple[Key, Key],
    spans: tuple[Spans, Spans],
    scaling: float,
    kernel: Kernel,
) -> Query:
    """Attention of each query to keys of the prefix and of the suffix: one softmax over both.

    Args:
        spans: of the prefix, then of the suffix.
        scaling: factor of the scores.
    """
    return _JoinedAttention.apply(query, *prefix, *suffix, spans, scaling, kernel)


class _JoinedAttention(torch.autograd.Function):
    """A kernel's backward pass takes P = exp(S - log-sum-exp) and rowsum(dO * O) from its arguments.

    With those of the joint softmax, each call gives its part of the gradients (arXiv 2205.14135, appendix
    B.2).
    """

    @staticmethod
    def forward(ctx, query, prefix_k, prefix_v, suffix_k, suffix_v, spans, scaling, kernel):
        far, far_logsumexp = kernel.forward(query, prefix_k, prefix_v, spans[0], scaling)
        near, near_logsumexp = kernel.forward(query, suffix_k, suffix_v, spans[1], scaling)
        share = (far_logsumexp - near_logsumexp).sigmoid().mT.unsqueeze(-1)  # of the prefix, in fp32
        output = torch.lerp(near.float(), far.float(), share).to(query.dtype)
        logsumexp = torch.logaddexp(far_logsumexp, near_logsumexp)
        ctx.save_for_backward(query, prefix_k, prefix_v, suffix_k, suffix_v, output, logsumexp)
        ctx.spans, ctx.scaling, ctx.kernel = spans, scaling, kernel
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, prefix_k, prefix_v, suffix_k, suffix_v, *joint = ctx.saved_tensors
        far, near = (
            ctx.kernel.backward(gradient, query, key, value, *joint, spans, ctx.scaling)
            for key, value, spans in zip((prefix_k, suffix_k), (prefix_v, suffix_v), ctx.spans, strict=True)
        )
        return far[0] + near[0], *far[1:], *near[1:], None, None, None
