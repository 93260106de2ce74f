"""Attention of the vision tower, with lengths that the host knows.

transformers reads the lengths of the pictures back from the device in every block, and calls attention once
for each picture, or for each window of Qwen2.5-VL. Here the host computes all inputs of the tower that depend
on the grid, and pictures or windows of equal size share a call.
"""

from collections import Counter
from collections.abc import Sequence, Set
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import pad
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from medvlm_r1.policy.forward.attention import AttentionLayout
from medvlm_r1.policy.forward.model import Model, inner_model

Heads = Float[Tensor, "1 heads patches size"]


class Segments:
    """Consecutive stretches of patches; each attends to itself."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.order = self.inverse = None
        runs = [(length, len(list(run))) for length, run in groupby(lengths)]
        if len(runs) > len(set(lengths)):  # equal lengths come together
            starts = pad(torch.tensor(lengths).cumsum(0), (1, 0)).tolist()
            by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
            order = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in by_length])
            self.order, self.inverse = order.to(device), order.argsort().to(device)
            runs = sorted(Counter(lengths).items())
        self.runs = runs

    def attend(
        self, query: Heads, key: Heads, value: Heads, scaling: float
    ) -> Float[Tensor, "patches heads size"]:
        """Attention of each stretch to itself, one call for all of one length."""
        parts = (x.squeeze(0) if self.order is None else x[0, :, self.order] for x in (query, key, value))
        outputs = [
            functional.scaled_dot_product_attention(*stretches, scale=scaling).transpose(1, 2).flatten(0, 1)
            for stretches in zip(*map(self._split, parts), strict=True)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output if self.inverse is None else output[self.inverse]

    def _split(self, x: Float[Tensor, "heads patches size"]) -> list[Tensor]:
        """One block [stretches, heads, length, size] for each length."""
        blocks = x.split([length * count for length, count in self.runs], dim=1)
        return [
            block.unflatten(1, (count, length)).transpose(0, 1)
            for block, (length, count) in zip(blocks, self.runs, strict=True)
        ]


class VisionLayout(AttentionLayout):
    """Attention of the blocks of a tower: to a whole picture, or, in ``windowed`` ones, within windows."""

    def __init__(
        self, whole: Segments, windows: Segments | None = None, windowed: Set[nn.Module] = frozenset()
    ):
        self.whole, self.windows, self.windowed = whole, windows or whole, windowed

    def attend(self, module, query, key, value, scaling):
        segments = self.windows if module in self.windowed else self.whole
        return segments.attend(query, key, value, scaling)


def encode_images(
    model: Model, pixels: Float[Tensor, "patches features"], grid: Int[Tensor, "images 3"]
) -> list[Float[Tensor, "tokens width"]]:
    """Features of each image; ``grid`` is on the host, ``pixels`` on the device of the model.

    Those for the embeddings come first, then, in the same rows, those that DeepStack adds behind each of the
    first layers (arXiv 2406.04334): ``width`` is that of the language model, times one more than these.
    """
    inner, device = inner_model(model), pixels.device
    tower, merge = inner.visual, inner.visual.spatial_merge_size
    frames = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).tolist()
    # The tower would split the patches by these: one part, which the layout divides.
    undivided = torch.tensor([0, sum(frames)], dtype=torch.int32)
    whole = Segments(frames, device)
    inputs = {"cu_seqlens": undivided, "position_ids": get_vision_position_ids(grid, merge).to(device)}
    windows, windowed = whole, set()
    if full := getattr(tower, "fullatt_block_indexes", None):
        index, ends = get_vision_window_index(grid, merge, tower.window_size, tower.patch_size)
        inputs |= {"cu_window_seqlens": undivided, "window_index": index.to(device)}
        windows = Segments(ends.diff().tolist(), device)
        windowed = {block.attn for i, block in enumerate(tower.blocks) if i not in full}
    if side := getattr(tower, "num_grid_per_side", None):  # of a table of positions, stretched
        how = tower.interpolation_mode, tower.interpolation_align_corners
        table = get_vision_interpolation_indices_and_weights(grid, side, *how, merge)
        inputs |= zip(("interp_indices", "interp_weights"), (x.to(device) for x in table), strict=True)
    layout = VisionLayout(whole, windows, windowed)
    output = inner.get_image_features(pixels, grid, layout=layout, **inputs)
    levels = output.pooler_output, *getattr(output, "deepstack_features", ())
    return [torch.cat(levels, -1) for levels in zip(*levels, strict=True)]
