"""Small models with random weights, and images of noise for them."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.policy import Policy


@dataclass(frozen=True)
class Noise:
    """A picture made up from a seed."""

    seed: int
    width: int
    height: int

    @property
    def name(self) -> str:
        return f"noise-{self.seed}-{self.width}x{self.height}"

    def load(self) -> Image.Image:
        values = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3))
        return Image.fromarray(values.astype(np.uint8))


CLASSES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
}
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # whose layers all have full attention
_VISION = {"depth": 1, "hidden_size": 64, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
# What differs from a Qwen2-VL of one block: settings of the vision tower, and of the language model.
_VISIONS = {
    "qwen2_vl": {"embed_dim": 32, "mlp_ratio": 2},
    # windows of 2 x 2 merged patches: the pictures hold 4 x 4 and more
    "qwen2_5_vl": {"depth": 3, "fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 4}
    | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48},
    # a table of 5 x 5 positions, which each picture stretches
    "qwen3_5": {"depth": 2, "num_position_embeddings": 25}
    | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48},
}
_VISIONS["qwen3_vl"] = _VISIONS["qwen3_5"] | {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_TEXTS = {
    # a head is not width / heads; features of three blocks go into the first three layers
    "qwen3_vl": {"num_hidden_layers": 4, "head_dim": 24}
    | {"rope_parameters": _ROPE | {"mrope_section": [6, 3, 3]}},
    # three layers with a recurrent state, then one with attention
    "qwen3_5": {"num_hidden_layers": 4, "head_dim": 32}
    | {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}}
    | {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_PATCHES_OF_16 = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, **_HALF}
_PROCESSORS = dict.fromkeys(
    ("qwen3_vl", "qwen3_5"), _PATCHES_OF_16 | {"min_pixels": 64 * 64, "max_pixels": 192 * 128}
)


def encoder_for(encoder: Encoder, family: str) -> Encoder:
    """The encoder with the image processor of a family; pictures keep about the same number of tokens."""
    if not (settings := _PROCESSORS.get(family)):
        return encoder
    return dataclasses.replace(encoder, image_processor=Qwen2VLImageProcessorPil(**settings))


def random_model(encoder: Encoder, tied: bool = True, family: str = "qwen2_vl") -> PreTrainedModel:
    """A model of a family with random weights, large enough that each input moves the output."""
    token = encoder.tokenizer.convert_tokens_to_ids
    config_class, model_class = CLASSES[family]
    config = config_class(
        text_config={
            "vocab_size": len(encoder.tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            # 2 + 3 + 3 = half of the head size 16: all three axes take part
            "rope_parameters": _ROPE | {"mrope_section": [2, 3, 3]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "initializer_range": 0.25,
        }
        | _TEXTS.get(family, {}),
        vision_config=_VISION
        | {"patch_size": encoder.image_processor.patch_size, "initializer_range": 0.25}
        | _VISIONS[family],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):  # else 1, which hides that one is left out
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.generation_config.update(
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")], pad_token_id=token("<|endoftext|>")
    )
    return model.train()


def stopping(policy, every=8):
    """The same policy, but every ``every``-th token ends a completion, so that lengths differ."""
    other = Policy(policy.model, policy.encoder, policy.layout)
    ordinary = min(policy.encoder.tokenizer.all_special_ids)
    other.eos_ids = sorted({*policy.eos_ids, *range(0, ordinary, every)})
    return other
