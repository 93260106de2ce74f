"""One token per row through the layers of a Qwen-VL model.

The pass calls the model's own linear layers, so adapters and quantised weights work. The rest takes half the
kernels of transformers' forward: most kernels of a step are so small that their number counts.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from medvlm_r1.policy.forward.decoding import DecodingLayout

Hidden = Float[Tensor, "rows width"]
Table = Float[Tensor, "rows 1 size"]


def decode_layers(language_model: Any, embeds: Hidden, decoding: DecodingLayout) -> Hidden:
    """Run all layers and the final norm over one new token per row, whose keys go into ``decoding``.

    Every rounding to 16 bits is one of transformers' forward, except inside the attention.
    """
    attention = decoding.attention()
    cos, sin = _rotary_tables(language_model.rotary_emb, embeds, decoding.positions)
    hidden, size = embeds, cos.shape[-1]
    for index, layer in enumerate(language_model.layers):
        module = layer.self_attn
        normed = _rms_norm(layer.input_layernorm, hidden)
        heads = [_heads(module, name, normed, size) for name in "qkv"]
        states, kv_heads = torch.cat(heads, 1), heads[-1].shape[1]
        _rotate(states, states.shape[1] - kv_heads, cos, sin)  # queries and keys
        query, key_value = states[:, : -2 * kv_heads], states[:, -2 * kv_heads :].unflatten(1, (2, -1))
        hidden = hidden + module.o_proj(attention(index, query, key_value, module.scaling))
        hidden = hidden + layer.mlp(_rms_norm(layer.post_attention_layernorm, hidden))
    return _rms_norm(language_model.norm, hidden)


def _heads(module: Any, name: str, hidden: Hidden, size: int) -> Float[Tensor, "rows heads size"]:
    """Queries, keys or values of one layer, with its norm of each head where it has one."""
    heads = getattr(module, f"{name}_proj")(hidden).unflatten(-1, (-1, size))
    norm = getattr(module, f"{name}_norm", None)
    return heads if norm is None else _rms_norm(norm, heads)


def _rotary_tables(rotary: Any, embeds: Hidden, positions: Int[Tensor, "3 rows"]) -> tuple[Table, Table]:
    """Cosines, and sines with the sign of ``rotate_half``: negative in the first half.

    Text has the same position on all three axes, so the sections of M-RoPE are those of any axis.
    """
    cos, sin = (x.reshape(-1, *x.shape[-2:])[0][:, None] for x in rotary(embeds[None], positions[:, None]))
    half = sin.shape[-1] // 2
    return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


def _rotate(x: Float[Tensor, "rows heads size"], heads: int, cos: Table, sin: Table) -> None:
    """Rotary embedding of the first heads, in place."""
    other_half = x.roll(x.shape[-1] // 2, -1)  # of all heads: on a GPU a part would be copied first
    x[:, :heads].mul_(cos).add_(other_half[:, :heads].mul_(sin))


def _rms_norm(norm: Any, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """RMSNorm, one fused kernel on a GPU, then its weight: rounded in between, as in transformers."""
    if not type(norm).__name__.endswith("RMSNorm"):
        return norm(hidden)  # wrapped by PEFT
    return norm.weight * functional.rms_norm(hidden, hidden.shape[-1:], eps=norm.variance_epsilon)
