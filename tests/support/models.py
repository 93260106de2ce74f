"""Small models with random weights, and images of noise for them."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
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


def random_model(
    encoder: Encoder, tied: bool = True, family: str = "qwen2_vl"
) -> Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration:
    """A Qwen2-VL or Qwen2.5-VL with random weights, large enough that each input moves the output."""
    token = encoder.tokenizer.convert_tokens_to_ids
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.25,
    }
    if family == "qwen2_5_vl":
        for key in ("embed_dim", "mlp_ratio"):
            del vision[key]
        # windows of 2 x 2 merged patches: the pictures hold 4 x 4 and more
        vision |= {"depth": 3, "fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 4}
        vision |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
    config_class, model_class = {
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    }[family]
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
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "initializer_range": 0.25,
        },
        vision_config=vision,
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
