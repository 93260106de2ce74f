"""The tiny model: a Qwen2-VL of 1.8 million parameters, its image processor, and how both are saved."""

from pathlib import Path

from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

SIDE = 112
PATCH, MERGE, TEMPORAL = 14, 2, 2


def build_model(
    tokenizer: Qwen2Tokenizer, depth: int = 2, embed: int = 128
) -> Qwen2VLForConditionalGeneration:
    """Build a Qwen2-VL with the parts and proportions of the real one and four layers."""
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # 4 + 6 + 6 = head size / 2: the same ratio of time, height and width as in Qwen2-VL
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": depth,
            "embed_dim": embed,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    return model


def image_processor() -> Qwen2VLImageProcessorPil:
    """Build the image processor: about 112 x 112 pixels, i.e. 16 image tokens, per image."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )


def save(model: Qwen2VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Save a Hugging Face directory, weights in fp32."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    image_processor().save_pretrained(out)
