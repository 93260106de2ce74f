"""Attention functions of our own for unmodified layers of transformers.

Layers pass keyword arguments that they do not know to the registered attention function. One of them is the
``layout``: an :class:`AttentionLayout`, which computes the attention of all layers for one arrangement of
tokens. Without a layout, transformers' own function runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medvlm_r1"
PrefixKeys = Float[Tensor, "groups kv_heads prefix size"]
SuffixKeys = Float[Tensor, "groups rows kv_heads suffix size"]
PerRow = Float[Tensor, "groups rows kv_heads queries last"]
PerGroup = Float[Tensor, "groups kv_heads rows_and_queries last"]


class AttentionLayout(ABC):
    """Which tokens of one forward pass attend to which."""

    @abstractmethod
    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 heads tokens size"],
        key: Float[Tensor, "1 kv_heads tokens size"],
        value: Float[Tensor, "1 kv_heads tokens size"],
        scaling: float,
    ) -> Float[Tensor, "tokens heads size"]:
        """Attention of the layer with the attention ``module``; query and key are already rotated."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: AttentionLayout | None = None,
    **options,
) -> tuple[Tensor, None]:
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return layout.attend(module, query, key, value, options["scaling"]).unsqueeze(0), None


AttentionInterface.register(NAME, _attention)
# Without it, transformers silently drops the padding mask of passes with a tensor as the mask.
AttentionMaskInterface.register(NAME, sdpa_mask)


def run_layers(
    language_model: Any,
    embeds: Float[Tensor, "tokens width"],
    positions: Int[Tensor, "3 tokens"],
    layout: AttentionLayout,
    deepstack: Sequence[Float[Tensor, "prompt_tokens width"]] = (),
) -> Float[Tensor, "tokens width"]:
    """Run all layers and the final norm over one row of tokens, with the attention of ``layout``.

    Args:
        deepstack: added to the first tokens behind each of the first layers (arXiv 2406.04334).
    """
    hidden = embeds.unsqueeze(0)
    rotary = language_model.rotary_emb(hidden, positions.unsqueeze(1))
    for layer, features in zip_longest(language_model.layers, deepstack):
        hidden = layer(hidden, position_embeddings=rotary, attention_mask=None, layout=layout)
        if features is not None:  # transformers indexes with a mask, for which the host waits for the device
            hidden = hidden + pad(features, (0, 0, 0, len(embeds) - len(features)))
    return language_model.norm(hidden).squeeze(0)


def shared_prefix_attention(
    query: Float[Tensor, "groups rows kv_heads queries size"],
    prefix: tuple[PrefixKeys, PrefixKeys],
    suffix: tuple[SuffixKeys, SuffixKeys],
    prefix_mask: Bool[Tensor, "groups prefix"],
    suffix_mask: Bool[Tensor, "#queries suffix"],
    scaling: float,
) -> Float[Tensor, "groups rows kv_heads queries size"]:
    """Attention of each row to a prefix that the rows of its group share, and to its own suffix: one softmax.

    The prefix is read once per group: its rows, and the query heads that share a key head, are queries of one
    matrix product. Prefix and suffix share the maximum and the sum of the softmax, so neither keys nor scores
    are concatenated.

    Args:
        query: ``queries`` runs over the query heads of one key head and the positions of a row.
        prefix_mask: false at padding.
        suffix_mask: true where a query attends to a token of its own row.
        scaling: factor of the scores, which are computed in fp32.
    """
    return _SharedPrefixAttention.apply(query, *prefix, *suffix, prefix_mask, suffix_mask, scaling)


class _SharedPrefixAttention(torch.autograd.Function):
    """Saves no scores, the largest tensor of a layer: the backward pass computes them again.

    Gradients as in FlashAttention (arXiv 2205.14135, appendix B.2): with P the softmax and O the output,
    dS = P * (dP - rowsum(dO * O)), for the keys of the prefix and of the suffix alike.
    """

    @staticmethod
    def forward(ctx, query, prefix_k, prefix_v, suffix_k, suffix_v, prefix_mask, suffix_mask, scaling):
        prefix = _scores(_folded(query), prefix_k, prefix_mask[:, None, None], scaling)
        suffix = _scores(query, suffix_k, suffix_mask, scaling)
        maximum = _unfolded(prefix.amax(-1, keepdim=True), query)
        maximum = torch.maximum(maximum, suffix.amax(-1, keepdim=True))
        prefix = prefix.sub_(_folded(maximum)).exp_()
        suffix = suffix.sub_(maximum).exp_()
        total = _unfolded(prefix.sum(-1, keepdim=True), query) + suffix.sum(-1, keepdim=True)
        output = _unfolded(prefix.to(query.dtype) @ prefix_v, query) + suffix.to(query.dtype) @ suffix_v
        output = (output / total).to(query.dtype)
        logsumexp = maximum + total.log()
        ctx.save_for_backward(
            query, prefix_k, prefix_v, suffix_k, suffix_v, prefix_mask, suffix_mask, output, logsumexp
        )
        ctx.scaling = scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        saved = ctx.saved_tensors
        query, prefix_k, prefix_v, suffix_k, suffix_v, prefix_mask, suffix_mask, output, logsumexp = saved
        row_sum = (gradient.float() * output.float()).sum(-1, keepdim=True)

        def part(query, gradient, row_sum, logsumexp, key, value, mask):
            probs = _scores(query, key, mask, ctx.scaling).sub_(logsumexp).exp_()
            value_grad = probs.to(value.dtype).mT @ gradient
            grad = (gradient @ value.mT).float().sub_(row_sum).mul_(probs).mul_(ctx.scaling).to(key.dtype)
            return grad @ key, grad.mT @ query, value_grad  # grad: of the scores

        rows = (query, gradient, row_sum, logsumexp)
        prefix, *prefix_grads = part(*map(_folded, rows), prefix_k, prefix_v, prefix_mask[:, None, None])
        suffix, *suffix_grads = part(*rows, suffix_k, suffix_v, suffix_mask)
        return suffix.add_(_unfolded(prefix, query)), *prefix_grads, *suffix_grads, None, None, None


def _scores(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    return (query @ key.mT).float().mul_(scaling).masked_fill_(~mask, -torch.inf)


def _folded(x: PerRow) -> PerGroup:
    """Merge rows and queries."""
    return x.transpose(1, 2).flatten(2, 3)


def _unfolded(x: PerGroup, query: Float[Tensor, "groups rows kv_heads queries size"]) -> PerRow:
    """Inverse of :func:`_folded`, with the rows and queries of ``query``."""
    return x.unflatten(2, (query.shape[1], query.shape[3])).transpose(1, 2)
