"""The seam through which unmodified Qwen2-VL layers attend in layouts of ours.

transformers hands an attention function whatever it was given as the mask. So the mask is the layout: an
object that knows which keys each query may see, attends accordingly, and keeps keys and values where they
are wanted again. A tensor in its place, or none, goes to transformers' own function.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medvlm_r1"


class Layout:
    """How the tokens of one pass see each other."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads tokens size"],
        key: Float[Tensor, "1 kv_heads tokens size"],
        value: Float[Tensor, "1 kv_heads tokens size"],
        scaling: float,
    ) -> Float[Tensor, "tokens heads size"]:
        """Attention of one layer; rotary positions are in query and key already."""
        raise NotImplementedError


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Layout | Tensor | None,
    **how,
) -> tuple[Tensor, None]:
    if isinstance(attention_mask, Layout):
        seen = attention_mask.attend(module.layer_idx, query, key, value, how["scaling"])
        return seen.unsqueeze(0), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **how)


AttentionInterface.register(NAME, _attention)
# Without this, transformers would drop the padding mask of every pass that is not a layout's, silently.
AttentionMaskInterface.register(NAME, sdpa_mask)


def run_layers(
    language_model: nn.Module,
    embeds: Float[Tensor, "tokens width"],
    positions: Float[Tensor, "3 tokens"],
    layout: Layout,
) -> Float[Tensor, "tokens width"]:
    """All layers and the last norm over tokens in one row, which see each other as ``layout`` says."""
    return language_model(
        inputs_embeds=embeds.unsqueeze(0),
        position_ids=positions.unsqueeze(1),
        attention_mask={"full_attention": layout},
        use_cache=False,
    ).last_hidden_state.squeeze(0)


def attend_in_two_parts(
    query: Float[Tensor, "groups rows kv_heads queries size"],
    prefix: tuple[
        Float[Tensor, "groups kv_heads prefix size"], Float[Tensor, "groups kv_heads prefix size"]
    ],
    own: tuple[
        Float[Tensor, "groups rows kv_heads suffix size"], Float[Tensor, "groups rows kv_heads suffix size"]
    ],
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
        prefix, own: keys and values.
        prefix_seen: false where a group's prefix is padded.
        own_seen: which of its row's own tokens a query sees.
        scaling: of the scores, which are taken in fp32.
    """
    groups, rows, kv_heads, queries, size = query.shape
    keys, values = prefix
    folded = query.transpose(1, 2).reshape(groups, kv_heads, rows * queries, size)
    far = (folded @ keys.mT).float().mul(scaling).masked_fill(~prefix_seen[:, None, None], -torch.inf)
    near = (query @ own[0].mT).float().mul(scaling).masked_fill(~own_seen, -torch.inf)

    def as_near(x: Tensor) -> Tensor:
        return x.view(groups, kv_heads, rows, queries, -1).transpose(1, 2)

    top = torch.maximum(as_near(far.detach().amax(-1, keepdim=True)), near.detach().amax(-1, keepdim=True))
    far = (far - top.transpose(1, 2).reshape(groups, kv_heads, rows * queries, 1)).exp()
    near = (near - top).exp()
    total = as_near(far.sum(-1, keepdim=True)) + near.sum(-1, keepdim=True)
    seen = as_near(far.to(values.dtype) @ values) + near.to(values.dtype) @ own[1]
    return (seen / total).to(values.dtype)
