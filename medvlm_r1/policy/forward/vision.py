"""Image features: each image goes through the vision tower once."""

from collections import OrderedDict
from contextlib import nullcontext
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from medvlm_r1.policy.encode import Encoder, PromptBatch
from medvlm_r1.policy.forward.model import Model
from medvlm_r1.policy.forward.vision_attention import encode_images

FEATURE_BYTES = 2**30  # per model: 500 images of 700 tokens of Qwen2-VL-2B in bf16
Features = list[list[Float[Tensor, "tokens width"]]]
"""Of each prompt's images, as of :func:`~medvlm_r1.policy.forward.vision_attention.encode_images`."""


class FeatureStore:
    """Image features by image digest; the least recently used are dropped above ``limit`` bytes."""

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit, self._size = limit, 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, digest: str) -> Float[Tensor, "tokens width"] | None:
        if digest in self._features:
            self._features.move_to_end(digest)
        return self._features.get(digest)

    def put(self, digest: str, features: Float[Tensor, "tokens width"]) -> None:
        self._features[digest] = features
        self._size += features.nbytes
        while self._size > self.limit:
            self._size -= self._features.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._features.clear()
        self._size = 0


class VisionCache:
    """Image features of the models of a policy, and when they are valid.

    ================  ===================================================================
    sampling model    always with a frozen tower; else from enable to clear, while no
                      weight changes
    reference         until the reference is replaced
    sharded model     never
    ================  ===================================================================

    A frozen tower is equal in all three, so the features of the sampling model serve them all.
    """

    def __init__(self, tower_is_frozen: bool) -> None:
        self.tower_is_frozen = self.enabled = tower_is_frozen
        self.sampling, self.reference = FeatureStore(), FeatureStore()

    def enable(self) -> None:
        """Cache the features of a trained tower until :meth:`clear`."""
        if not self.enabled:
            self.sampling.clear()
        self.enabled = True

    def clear(self) -> None:
        """Drop all features; those of a trained tower are no longer cached."""
        self.enabled = self.tower_is_frozen
        self.sampling.clear()
        self.reference.clear()

    def of(self, model: Model, sampling: Model, reference: Model | None) -> FeatureStore | None:
        """Valid features of ``model``, one of the policy's; ``None`` if each pass must compute its own."""
        if model is reference:
            return self.reference
        return self.sampling if model is sampling and self.enabled else None


def image_features(
    model: Model, prompts: PromptBatch, encoder: Encoder, store: FeatureStore | None
) -> tuple[Features, int]:
    """Features of the images of each prompt, and the number of images that the tower encoded.

    An image of several prompts is encoded once.

    Args:
        store: features of this model; they have no graph. ``None`` for a tower that is being trained.

    Returns:
        Without images, in training on several ranks, an image of length 0 with a graph through the tower:
        strategies wait until all ranks have used the same parameters.
    """
    device = prompts.ids.device
    digests = [*chain(*prompts.image_digests)]
    if not digests and store is None and torch.distributed.is_initialized():
        return [[_blank_features(model, device)[:0]], *([] for _ in prompts.lengths[1:])], 0
    stored = {d: features for d in digests if store and (features := store.get(d)) is not None}
    missing = [digest for digest in dict.fromkeys(digests) if digest not in stored]
    if missing:
        indices = [digests.index(digest) for digest in missing]
        patches = prompts.pixels.split(prompts.grid.prod(1).tolist())
        with nullcontext() if store is None else torch.no_grad():
            pixels = torch.cat([patches[index] for index in indices]).to(device)
            encoded = encode_images(model, encoder.pixel_values(pixels), prompts.grid[indices])
        stored |= dict(zip(missing, encoded, strict=True))
        for digest in missing if store else ():
            store.put(digest, stored[digest])
    return [[stored[digest] for digest in own] for own in prompts.image_digests], len(missing)


def _blank_features(model: Model, device: torch.device) -> Float[Tensor, "1 width"]:
    """Features of one black token, for a pass without images through the tower."""
    config = model.config.vision_config
    side = config.spatial_merge_size  # in patches
    pixels = torch.zeros(side**2, 3 * config.temporal_patch_size * config.patch_size**2, device=device)
    return torch.cat(encode_images(model, pixels, torch.tensor([[1, side, side]])))
