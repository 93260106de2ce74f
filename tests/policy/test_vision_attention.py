"""The vision tower gives transformers' features, bit for bit, without reading from the device."""

import pytest
import torch
from models import random_model
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medvlm_r1.policy.forward import attention
from medvlm_r1.policy.forward.vision_attention import encode_images

GRIDS = {
    "one": [[1, 8, 12]],
    "equal": [[1, 6, 10]] * 3,
    "mixed": [[1, 8, 12], [1, 6, 10], [1, 8, 12], [1, 4, 4], [2, 6, 6]],
}
FAMILIES = ["qwen2_vl", "qwen2_5_vl"]


class Calls(TorchFunctionMode):
    """Counts attention calls."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is functional.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


def features_of(model, grid, implementation=attention.NAME):
    """Features of noise, and the number of attention calls."""
    model.model.visual.set_attn_implementation(implementation)
    patches = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14**2, generator=torch.Generator().manual_seed(0))
    with Calls() as calls:
        if implementation == attention.NAME:
            features = encode_images(model, patches, grid)
        else:
            features = model.get_image_features(patches, grid).pooler_output
    return torch.cat(features), calls.count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GRIDS)
def test_features_and_gradients_are_those_of_transformers_bit_for_bit(family, name, encoder):
    model, grid = random_model(encoder, family=family), torch.tensor(GRIDS[name])
    weight = model.model.visual.blocks[0].attn.qkv.weight
    (ours, _), (theirs, _) = features_of(model, grid), features_of(model, grid, "sdpa")
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(x.square().sum(), weight)[0] for x in (ours, theirs)]
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_equal_lengths_share_a_call(encoder):
    """Six frames of four sizes. Qwen2.5-VL: in two of three blocks, 27 windows of three sizes."""
    grid = torch.tensor(GRIDS["mixed"])
    for family, calls in (("qwen2_vl", (4, 6)), ("qwen2_5_vl", (2 * 3 + 4, 2 * 27 + 6))):
        model = random_model(encoder, family=family)
        assert tuple(features_of(model, grid, i)[1] for i in (attention.NAME, "sdpa")) == calls


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_grid_is_on_the_host(family, encoder):
    """A tensor on the meta device cannot be read; transformers reads the grid, and lengths in each block."""
    model, grid = random_model(encoder, family=family).to("meta"), torch.tensor(GRIDS["mixed"])
    patches = torch.empty(int(grid.prod(1).sum()), 3 * 2 * 14**2, device="meta")
    model.model.visual.set_attn_implementation(attention.NAME)
    with pytest.raises(RuntimeError, match="meta"):
        model.get_image_features(patches, grid.to("meta"))
    assert [len(f) for f in encode_images(model, patches, grid)] == (grid.prod(1) // 4).tolist()
