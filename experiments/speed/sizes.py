"""Inputs of both sides: a random Qwen2-VL, its tokenizer, images, and questions of an exact length."""

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from genuine import qwen2_tokenizer
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2VLImageProcessorPil,
)

from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import EncodedPrompt, Encoder
from medvlm_r1.policy.loading.architecture import load_config, with_depth
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.resize import PATCH
from medvlm_r1.prompts import PromptStyle

GENUINE = "Qwen/Qwen2-VL-2B-Instruct"
STYLE = PromptStyle("plain", train="{Question}", evaluate="{Question}")


@dataclass(frozen=True)
class Size:
    """The work of one optimiser step.

    Attributes:
        model: ``small`` (the 2B model's widths), ``half`` (half of them, and a quarter of its vocabulary),
            ``2b`` (all of it) or ``quick`` (the embedded model's).
        layers, blocks: layers of the language model, blocks of the vision tower.
        prompts, group: prompts per step, completions per prompt.
        image_tokens, text_tokens: tokens of a prompt; each prompt has an image of its own.
        new_tokens: token limit of a completion.
        lengths: with ``full`` every completion reaches ``new_tokens``; with ``drawn`` each row has a length
            drawn once, uniformly between a quarter of ``new_tokens`` and all of it.
        dtype: dtype of weights and computation.
        tune: ``lora`` (adapters on the language model) or ``full``.
        beta: weight of the KL term; 0 computes no reference.
        device: ``cpu`` or ``cuda``.
    """

    model: str
    layers: int
    blocks: int
    prompts: int
    group: int
    image_tokens: int
    text_tokens: int
    new_tokens: int
    lengths: str
    dtype: str
    tune: str
    beta: float
    device: str

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def prompt_tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    def row_lengths(self, ragged: bool | None = None) -> Tensor:
        """Return the tokens of each row's completion, prompt-major; above ``new_tokens`` the row never ends.

        Args:
            ragged: draw the lengths (default: if ``lengths`` is ``drawn``).
        """
        if not (self.lengths == "drawn" if ragged is None else ragged):
            return torch.full((self.rows,), self.new_tokens + 1)
        least = max(1, self.new_tokens // 4)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(least, self.new_tokens + 1, (self.rows,), generator=generator)


@dataclass(frozen=True)
class Noise:
    """An image of random pixels."""

    seed: int
    width: int
    height: int

    @property
    def name(self) -> str:
        return f"noise-{self.seed}"

    def load(self) -> Image.Image:
        return _noise(self.seed, self.width, self.height)


@functools.cache  # so that no side draws pixels while it is timed
def _noise(seed: int, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def config_of(size: Size) -> PreTrainedConfig:
    """Return the configuration of the 2B model (``quick``: the embedded model) with this size's depths."""
    path = "embedded" if size.model == "quick" else GENUINE
    config = with_depth(load_config(path), size.layers, size.blocks)
    if size.model == "half":
        narrow(config, load_config("embedded"))
    elif size.model != "quick":
        config.text_config.pad_token_id = 151643
    return config


def narrow(config: PreTrainedConfig, ids: PreTrainedConfig) -> None:
    """Halve the widths and quarter the vocabulary: a quarter of a layer's work, an eighth of the head's.

    Args:
        ids: configuration with the special tokens' ids of the tokenizer that fits this vocabulary.
    """
    text, vision = config.text_config, config.vision_config
    text.vocab_size //= 4
    for part, names in (
        (text, ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")),
        (vision, ("embed_dim", "hidden_size", "num_heads")),
    ):
        for name in names:
            setattr(part, name, getattr(part, name) // 2)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, getattr(ids, name))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, getattr(ids.text_config, name))


def random_model(size: Size) -> PreTrainedModel:
    """Return a model with transformers' random initialisation and a fixed seed."""
    torch.manual_seed(0)
    with torch.device(size.device):
        model = AutoModelForImageTextToText.from_config(config_of(size), dtype=getattr(torch, size.dtype))
    text = model.config.text_config
    model.generation_config.update(eos_token_id=[text.eos_token_id], pad_token_id=text.pad_token_id)
    if size.tune == "lora":
        model.requires_grad_(False)
    return model.train()


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules but share the weights, so that each side can patch its modules."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def other_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a frozen copy with other weights: equal weights would make the KL term 0."""
    reference = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        reference.model.language_model.norm.weight.mul_(2.0)
    return reference


def adapter() -> LoraConfig:
    """Adapters as ``peft=lora`` puts them, but with random weights on both sides: fresh ones add nothing."""
    return LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        init_lora_weights=False,
    )


def encoder(model: str) -> Encoder:
    """The genuine tokenizer (the embedded model's for a small vocabulary); pictures keep their size."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=PATCH**2, max_pixels=PATCH**2 * 16384
    )
    tokenizer = (
        AutoTokenizer.from_pretrained(EMBEDDED, padding_side="left")
        if model in ("quick", "half")
        else qwen2_tokenizer()
    )
    return Encoder(tokenizer, processor, max_prompt_tokens=32768)


def questions(size: Size, n: int, encoder: Encoder, first: int = 0) -> list[VQASample]:
    """``n`` questions of exactly ``size.prompt_tokens`` tokens, each with a picture of its own.

    Args:
        first: number of the first one; equal numbers have equal pictures.

    Raises:
        ValueError: the chat's own words alone are more than ``size.text_tokens``.
    """
    down, across = cells(size.image_tokens)

    def question(number: int, filler: int) -> VQASample:
        return _question(number, filler, (Noise(number, across * PATCH, down * PATCH),))

    least = len(encoder.encode(question(0, 0), "train", STYLE).ids)
    filler = size.prompt_tokens - least
    if filler < 0:
        raise ValueError(
            f"--text-tokens {size.text_tokens}: the chat takes {least - size.image_tokens} at least"
        )
    made = [question(number, filler) for number in range(first, first + n)]
    assert len(encoder.encode(made[0], "train", STYLE).ids) == size.prompt_tokens
    return made


def of_words(tokens: int, encoder: Encoder) -> EncodedPrompt:
    """Return a question of this many tokens without an image."""
    least = len(encoder.encode(_question(0, 0, ()), "train", STYLE).ids)
    return encoder.encode(_question(0, tokens - least, ()), "train", STYLE)


def _question(number: int, filler: int, pictures: tuple[Noise, ...]) -> VQASample:
    text = "What does this" + " image" * filler + " show?"
    name = f"q{number}"
    return VQASample(name, pictures, text, ("one", "two"), "A", "mri", "test", "train", name)


def cells(image_tokens: int) -> tuple[int, int]:
    """Return rows and columns of the grid of image tokens, as square as possible."""
    down = math.isqrt(image_tokens)
    while image_tokens % down:
        down -= 1
    return down, image_tokens // down


def describe(size: Size, model: Any) -> dict[str, Any]:
    """Describe the size for the results."""
    vision = sum(p.numel() for p in model.model.visual.parameters())
    return {
        **vars(size),
        "prompt_tokens": size.prompt_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_vision": vision,
    }
