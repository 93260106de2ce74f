"""Faster equivalents of the vision tower's slow parts on a CPU, for training the tiny model.

The strided 3-D convolution that embeds patches took 1.3 s of a step of 2 s (32 images), although it is one
matrix product. A still image needs half of that: its two frames are equal, so their weights are summed
first. The original attention loops over images in Python; images of one size need no loop.
"""

from types import MethodType

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision


def quicken(model: Qwen2VLForConditionalGeneration) -> None:
    """Replace both methods on this instance; weights and gradients do not change.

    The tower then takes patches in the range 0 to 1, ``[patches, colours * height * width]``, without
    normalisation, of images of one size. :func:`restore` undoes it.
    """
    vision = model.model.visual
    vision.patch_embed.forward = MethodType(_embed, vision.patch_embed)
    for block in vision.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def restore(model: Qwen2VLForConditionalGeneration) -> None:
    """Restore the original methods of the instance."""
    vision = model.model.visual
    for part in (vision.patch_embed, *(block.attn for block in vision.blocks)):
        part.__dict__.pop("forward", None)


def patches(pixels: Tensor) -> Tensor:
    """Cut uint8 ``[images, 112, 112, 3]`` into patches ``[images * 64, 3 * 14 * 14]`` in 0 to 1.

    The order is the image processor's: the four patches of one token are consecutive.
    """
    grid = 112 // (14 * 2)
    x = (pixels / 255).view(-1, grid, 2, 14, grid, 2, 14, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * 14 * 14)


def _embed(self, patch: Tensor) -> Tensor:
    """``[patches, colours * height * width] -> [patches, embed]``, with normalisation."""
    mean, std = (torch.tensor(values)[:, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    weight = self.proj.weight.sum(2).flatten(2) / std  # [embed, colours, height * width]
    return F.linear(patch, weight.flatten(1), -(weight * mean).sum((1, 2)))


def _attend(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings=None, **_) -> Tensor:
    """``[images * patches, embed] -> [images * patches, embed]``, attention within each image."""
    total, pictures = len(hidden_states), len(cu_seqlens) - 1
    query, key, value = self.qkv(hidden_states).view(total, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        part.to(value.dtype).view(pictures, total // pictures, self.num_heads, -1).transpose(1, 2)
        for part in (query, key, value)
    )
    weights = torch.softmax(query @ key.mT * self.scaling, dim=-1, dtype=torch.float32).to(value.dtype)
    return self.proj((weights @ value).transpose(1, 2).reshape(total, -1))
