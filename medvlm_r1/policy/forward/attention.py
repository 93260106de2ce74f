"""The seam through which unmodified Qwen2-VL layers attend in layouts of ours.

transformers hands an attention function whatever it was given as the mask. So the mask is the layout: an
object that knows which keys each query may see, attends accordingly, and keeps keys and values where they
are wanted again. A tensor in its place, or none, goes to transformers' own function.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medvlm_r1"


class AttentionLayout(ABC):
    """How the tokens of one pass see each other."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads tokens size"],
        key: Float[Tensor, "1 kv_heads tokens size"],
        value: Float[Tensor, "1 kv_heads tokens size"],
        scaling: float,
    ) -> Float[Tensor, "tokens heads size"]:
        """Attention of one layer; rotary positions are in query and key already."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionLayout | Tensor | None,
    **how,
) -> tuple[Tensor, None]:
    if isinstance(attention_mask, AttentionLayout):
        seen = attention_mask.attend(module.layer_idx, query, key, value, how["scaling"])
        return seen.unsqueeze(0), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **how)


AttentionInterface.register(NAME, _attention)
# Without this, transformers would drop the padding mask of every pass that is not a layout's, silently.
AttentionMaskInterface.register(NAME, sdpa_mask)


def run_layers(
    language_model: nn.Module,
    embeds: Float[Tensor, "tokens width"],
    positions: Int[Tensor, "3 tokens"],
    layout: AttentionLayout,
) -> Float[Tensor, "tokens width"]:
    """All layers and the last norm over tokens in one row, which see each other as ``layout`` says."""
    return language_model(
        inputs_embeds=embeds.unsqueeze(0),
        position_ids=positions.unsqueeze(1),
        attention_mask={"full_attention": layout},
        use_cache=False,
    ).last_hidden_state.squeeze(0)


def shared_prefix_attention(
    query: Float[Tensor, "groups rows kv_heads queries size"],
    prefix: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    prefix_seen: Bool[Tensor, "groups prefix"],
    own_seen: Bool[Tensor, "#queries suffix"],
    scaling: float,
) -> Float[Tensor, "groups rows kv_heads queries size"]:
    """Softmax over the prefix that a group's rows share and over each row's own tokens, as over one.

    The prefix is read once for a whole group: its rows, and the query heads that share a key head, are
    queries of one product. The two parts meet in the softmax's maximum and sum, so that neither keys nor
    scores are ever copied side by side.

    Args:
        query: the query heads of one key head and the positions of a row lie along ``queries``.
        prefix: keys and values, ``[groups, kv_heads, prefix, size]``.
        own: keys and values, ``[groups, rows, kv_heads, suffix, size]``.
        prefix_seen: false where a group's prefix is padded.
        own_seen: which of its row's own tokens a query sees.
        scaling: of the scores, which are taken in fp32.
    """
    return _InTwoParts.apply(query, *prefix, *own, prefix_seen, own_seen, scaling)


class _InTwoParts(torch.autograd.Function):
    """Keeps no scores, the largest thing in a layer: the backward pass computes them again.

    Gradients as FlashAttention has them (arXiv 2205.14135, appendix B.2): with P the softmax and O what
    was seen, dS = P * (dP - rowsum(dO * O)), whatever part of the keys P belongs to.
    """

    @staticmethod
    def forward(ctx, query, far_key, far_value, near_key, near_value, far_seen, near_seen, scaling):
        far = _scores(_folded(query), far_key, far_seen[:, None, None], scaling)
        near = _scores(query, near_key, near_seen, scaling)
        top = torch.maximum(_unfolded(far.amax(-1, keepdim=True), query), near.amax(-1, keepdim=True))
        far = far.sub_(_folded(top)).exp_()
        near = near.sub_(top).exp_()
        total = _unfolded(far.sum(-1, keepdim=True), query) + near.sum(-1, keepdim=True)
        seen = _unfolded(far.to(query.dtype) @ far_value, query) + near.to(query.dtype) @ near_value
        seen = (seen / total).to(query.dtype)
        normaliser = top + total.log()
        ctx.save_for_backward(
            query, far_key, far_value, near_key, near_value, far_seen, near_seen, seen, normaliser
        )
        ctx.scaling = scaling
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, far_key, far_value, near_key, near_value, far_seen, near_seen, seen, normaliser = (
            ctx.saved_tensors
        )
        through = (gradient.float() * seen.float()).sum(-1, keepdim=True)

        def part(query, gradient, through, normaliser, key, value, mask):
            share = _scores(query, key, mask, ctx.scaling).sub_(normaliser).exp_()
            to_value = share.to(value.dtype).mT @ gradient
            slope = (gradient @ value.mT).float().sub_(through).mul_(share).mul_(ctx.scaling).to(key.dtype)
            return slope @ key, slope.mT @ query, to_value

        rows = (query, gradient, through, normaliser)
        far, *to_far = part(*map(_folded, rows), far_key, far_value, far_seen[:, None, None])
        near, *to_near = part(*rows, near_key, near_value, near_seen)
        return near.add_(_unfolded(far, query)), *to_far, *to_near, None, None, None


def _scores(query: Tensor, key: Tensor, seen: Tensor, scaling: float) -> Tensor:
    return (query @ key.mT).float().mul_(scaling).masked_fill_(~seen, -torch.inf)


def _folded(x: Float[Tensor, "groups rows kv_heads queries last"]) -> Tensor:
    """Rows and queries as one, ``[groups, kv_heads, rows x queries, last]``."""
    return x.transpose(1, 2).flatten(2, 3)


def _unfolded(x: Tensor, query: Tensor) -> Tensor:
    """What :func:`_folded` was given, of as many rows and queries as ``query`` has."""
    return x.unflatten(2, (query.shape[1], query.shape[3])).transpose(1, 2)
