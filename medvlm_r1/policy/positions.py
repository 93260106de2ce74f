"""Rotary positions of a prompt with images (M-RoPE)."""

import torch
from jaxtyping import Int
from torch import Tensor


def rope_positions(
    ids: Int[Tensor, " tokens"], grid: Int[Tensor, "images 3"], image_id: int, merge: int
) -> Int[Tensor, "3 tokens"]:
    """Temporal, height and width positions of one unpadded prompt (M-RoPE, arXiv 2409.12191, section 2.1).

    Each text token advances all three by one. Positions of an image are its merged grid, offset by the
    position at which it starts; the next text starts after the largest of them. The model's
    ``get_rope_index`` computes the same, but keeps state in the model and cannot run in a worker. A token is
    ``merge`` patches wide and high.
    """
    positions, start, token = [], 0, 0
    for t, h, w in (grid // torch.tensor([1, merge, merge])).tolist():
        image_at = token + int((ids[token:] == image_id).nonzero()[0])
        text = torch.arange(image_at - token) + start
        positions.append(text.expand(3, -1))
        start += image_at - token
        cells = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3).T
        positions.append(cells + start)
        start += max(h, w)
        token = image_at + t * h * w
    positions.append((torch.arange(len(ids) - token) + start).expand(3, -1))
    return torch.cat(positions, dim=1)
