"""The architecture of a checkpoint without its weights, for plans and random models."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from medvlm_r1.policy.forward.decoding import CacheShape, KVCache
from medvlm_r1.policy.loading.resolve import EMBEDDED, MissingWeightsError
from medvlm_r1.runs.hub import hub_problem

_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
# Language model: width, MLP width, layers, heads, key-value heads, vocabulary, tied head.
_LANGUAGE = {
    "Qwen/Qwen2-VL-2B-Instruct": (1536, 8960, 28, 12, 2, 151936, True),
    "Qwen/Qwen2-VL-7B-Instruct": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen2-VL-72B-Instruct": (8192, 29568, 80, 64, 8, 152064, False),
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen3-VL-2B-Instruct": (2048, 6144, 28, 16, 8, 151936, True),
    "Qwen/Qwen3-VL-4B-Instruct": (2560, 9728, 36, 32, 8, 151936, True),
    "Qwen/Qwen3-VL-8B-Instruct": (4096, 12288, 36, 32, 8, 151936, False),
}
# Checkpoints with the architecture of another: fine-tunes, and the Thinking editions.
_SAME = {"JZPeterPan/MedVLM-R1": "Qwen/Qwen2-VL-2B-Instruct"} | {
    f"Qwen/Qwen3-VL-{size}-Thinking": f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B")
}
PUBLISHED = (*_LANGUAGE, *_SAME)


def load_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """Read the configuration of a checkpoint in a local directory, on the hub, or ``embedded``.

    Returns:
        The configuration in the directory or in the hub's cache; else, for a checkpoint in
        :data:`PUBLISHED`, the one in this file; else the hub's.

    Raises:
        MissingWeightsError: there is no configuration.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if folder.exists() or path.count("/") != 1:
        raise MissingWeightsError(f"model.path={path} is no directory with a config.json")
    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if isinstance(cached, str):
        return AutoConfig.from_pretrained(Path(cached).parent, trust_remote_code=False)
    if path in PUBLISHED:
        return _published(_SAME.get(path, path))
    if problem := hub_problem():
        raise MissingWeightsError(
            f"the architecture of {path} is neither in a local directory nor in the hub's cache, and the hub "
            f"cannot be reached ({problem}). Known without it: {', '.join(PUBLISHED)}"
        )
    return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)


def with_depth(config: PreTrainedConfig, layers: int, blocks: int) -> PreTrainedConfig:
    """The same architecture with another number of language layers and vision blocks.

    At :func:`smallest_depth` and with further multiples of :func:`block_period` blocks, it has the full
    model's DeepStack features and ratio of windowed to full attention.
    """
    changed = type(config).from_dict(config.to_dict())
    changed.text_config.num_hidden_layers = layers
    if kinds := getattr(config.text_config, "layer_types", None):
        changed.text_config.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    changed.vision_config.depth = blocks
    if features := _deepstack_features(config):
        changed.vision_config.deepstack_visual_indexes = list(range(min(features, blocks)))
    return changed


def block_period(config: PreTrainedConfig) -> int:
    """Vision blocks from one with full attention to the next: 1 for towers in which all have it."""
    full = getattr(config.vision_config, "fullatt_block_indexes", None)
    return full[0] + 1 if full else 1


def smallest_depth(config: PreTrainedConfig) -> tuple[int, int]:
    """Language layers and vision blocks below which further ones add more than their own cost.

    Qwen3-VL's first layers each add one DeepStack feature, which each come from another vision block.
    """
    features = _deepstack_features(config)
    return max(2, features), max(1, features) * block_period(config)


def image_token_width(config: PreTrainedConfig) -> int:
    """Numbers per image token that the vision tower hands to the language model: DeepStack adds features."""
    return config.text_config.hidden_size * (1 + _deepstack_features(config))


def _deepstack_features(config: PreTrainedConfig) -> int:
    return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def cache_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    return KVCache.size(config, CacheShape(1, 1, 1, 0)) * dtype.itemsize


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model on the meta device: shapes without storage.

    ``.to_empty(device=...)`` allocates storage for random weights; tie a tied head again after it.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def _published(path: str) -> PreTrainedConfig:
    """The part of the checkpoint's config.json that determines the architecture."""
    width, inner, layers, heads, kv_heads, vocabulary, tied = _LANGUAGE[path]
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    vision: dict[str, Any] = {"depth": 32, "num_heads": 16, "in_channels": 3}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if "Qwen2-VL" in path:
        family = Qwen2VLConfig
        text |= {"max_position_embeddings": 32768, "use_sliding_window": False}
        vision |= {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": width}
    elif "Qwen2.5-VL" in path:
        family = Qwen2_5_VLConfig
        text |= {"max_position_embeddings": 128000, "use_sliding_window": False}
        vision |= {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": width}
        vision |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    else:
        family = Qwen3VLConfig
        text |= {"max_position_embeddings": 262144, "head_dim": 128}
        rope |= {"rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        vision |= {"patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": width}
        depth, size, inner = (27, 1152, 4304) if "8B" in path else (24, 1024, 4096)
        vision |= {"depth": depth, "hidden_size": size, "intermediate_size": inner}
        vision["deepstack_visual_indexes"] = [8, 16, 24] if "8B" in path else [5, 11, 17]
    text["rope_parameters"] = rope
    return family(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_IDS)


def text_tokens(path: str, revision: str | None, chat: list[dict]) -> tuple[int, bool]:
    """Count the tokens of a chat without its image tokens.

    Without the checkpoint's tokenizer on this machine, the count is characters / 3.8, which is right within
    6 % for Qwen2's tokenizer and the papers' prompts.

    Returns:
        The count, and whether it is the tokenizer's.
    """
    folder = EMBEDDED if path == "embedded" else Path(path)
    if path.count("/") == 1:
        cached = try_to_load_from_cache(path, "tokenizer.json", revision=revision)
        folder = Path(cached).parent if isinstance(cached, str) else folder
    own = (folder / "tokenizer.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if own else EMBEDDED, trust_remote_code=False)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "")
    if own:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]), True
    return round(len(text) / 3.8), False
