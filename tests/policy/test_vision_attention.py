"""The vision tower gives transformers' features, bit for bit, without reading from the device."""

import pytest
import torch
from models import FAMILIES, encoder_for, random_model
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medvlm_r1.policy.forward import attention
from medvlm_r1.policy.forward.vision_attention import encode_images

GRIDS = {
    "one": [[1, 8, 12]],
    "equal": [[1, 6, 10]] * 3,
    "mixed": [[1, 8, 12], [1, 6, 10], [1, 8, 12], [1, 4, 4], [2, 6, 6]],
}


class Calls(TorchFunctionMode):
    """Counts attention calls."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is functional.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


@pytest.fixture
def model(family, encoder):
    return random_model(encoder_for(encoder, family), family=family)


def noise(model, grid):
    patch = 3 * 2 * model.config.vision_config.patch_size**2
    return torch.randn(int(grid.prod(1).sum()), patch, generator=torch.Generator().manual_seed(0))


def features_of(model, grid, implementation=attention.NAME):
    """Features of noise, and the number of attention calls."""
    model.model.visual.set_attn_implementation(implementation)
    with Calls() as calls:
        if implementation == attention.NAME:
            features = torch.cat(encode_images(model, noise(model, grid), grid))
        else:
            output = model.get_image_features(noise(model, grid), grid)
            levels = output.pooler_output, *getattr(output, "deepstack_features", ())
            features = torch.cat([torch.cat(level) for level in levels], -1)
    return features, calls.count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GRIDS)
def test_features_and_gradients_are_those_of_transformers_bit_for_bit(name, model):
    grid, parameters = torch.tensor(GRIDS[name]), [*model.model.visual.parameters()]
    (ours, _), (theirs, _) = features_of(model, grid), features_of(model, grid, "sdpa")
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(x.square().sum(), parameters) for x in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
        assert one.any()


@pytest.mark.parametrize(
    ("family", "calls"),
    [("qwen2_vl", (4, 6)), ("qwen2_5_vl", (2 * 3 + 4, 2 * 27 + 6)), ("qwen3_vl", (4 * 4, 4 * 6))],
)
def test_equal_lengths_share_a_call(calls, model):
    """Six frames of four sizes. Qwen2.5-VL: in two of three blocks, 27 windows of three sizes."""
    grid = torch.tensor(GRIDS["mixed"])
    assert tuple(features_of(model, grid, i)[1] for i in (attention.NAME, "sdpa")) == calls


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_grid_is_on_the_host(model):
    """A tensor on the meta device cannot be read; transformers reads the grid, and lengths in each block."""
    model, grid = model.to("meta"), torch.tensor(GRIDS["mixed"])
    patches = noise(model, grid).to("meta")
    model.model.visual.set_attn_implementation(attention.NAME)
    with pytest.raises(RuntimeError, match="meta"):
        model.get_image_features(patches, grid.to("meta"))
    assert [len(f) for f in encode_images(model, patches, grid)] == (grid.prod(1) // 4).tolist()
