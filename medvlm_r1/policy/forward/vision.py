"""Picture features: each picture goes through the vision tower once."""

from collections import OrderedDict
from contextlib import nullcontext
from typing import TYPE_CHECKING, Union

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from medvlm_r1.policy.encode import PromptBatch

if TYPE_CHECKING:
    import peft  # seconds, for those who have an adapter

Model = Union[PreTrainedModel, "peft.PeftModel"]
FEATURE_BYTES = 2**30  # of features kept: 500 pictures of 700 tokens of Qwen2-VL-2B in bf16


class FeatureCache:
    """Features of the pictures that a frozen tower has seen, the least recently used out first.

    Args:
        limit: bytes to keep.
    """

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit, self._size = limit, 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        """The features kept under ``key``."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, features: Float[Tensor, "tokens width"]) -> None:
        """Keep features; others may go."""
        self._kept[key] = features
        self._size += features.nbytes
        while self._size > self.limit:
            self._size -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget all: the tower has changed."""
        self._kept.clear()
        self._size = 0


def features_of_images(
    model: Model, prompts: PromptBatch, cache: FeatureCache | None
) -> tuple[Float[Tensor, "tokens width"], int]:
    """Features of all pictures of the prompts, in their order, and how many went through the tower.

    A picture that several prompts show goes through it once.

    Args:
        model: below any adapter's wrapping; has ``get_image_features``.
        cache: of a frozen tower; no graph leads through one. ``None`` for a tower that is trained.
    """
    known = {
        key: features for key in prompts.image_digests if cache and (features := cache.get(key)) is not None
    }
    missing = [key for key in dict.fromkeys(prompts.image_digests) if key not in known]
    if missing:
        places = [prompts.image_digests.index(key) for key in missing]
        patches = prompts.pixels.split(prompts.grid.prod(1).tolist())
        device, grid = model.get_input_embeddings().weight.device, prompts.grid[places]
        if device.type != "meta":  # the tower reads its shapes from the grid
            grid = grid.to(device)
        with nullcontext() if cache is None else torch.no_grad():
            found = model.get_image_features(
                torch.cat([patches[place] for place in places]).to(device), grid
            ).pooler_output
        known |= dict(zip(missing, found, strict=True))
        for key in missing if cache else ():
            cache.put(key, known[key].clone())  # a slice would keep its whole batch alive
    return torch.cat([known[key] for key in prompts.image_digests]), len(missing)


def blank_features(model: Model, merge: int) -> Float[Tensor, "1 width"]:
    """Features of one black patch, for a pass that has no pictures but must use the tower.

    Args:
        merge: patches a side that become one token.
    """
    device, config = model.get_input_embeddings().weight.device, model.config.vision_config
    pixels = torch.zeros(merge**2, 3 * config.temporal_patch_size * config.patch_size**2, device=device)
    grid = torch.tensor([[1, merge, merge]], device=device)
    return torch.cat(model.get_image_features(pixels, grid).pooler_output)
