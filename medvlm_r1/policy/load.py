"""Load a checkpoint of the Qwen2-VL family as a :class:`Policy`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import logging

from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.tuning import Tuning
from medvlm_r1.policy.weights import find_weights

FAMILY = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Recipe:
    """What goes with a model, whatever the experiment; methods refer to it.

    Attributes:
        grpo_lr: peak learning rate of GRPO, for all weights.
        sft_lr: peak learning rate of SFT, for all weights.
        epochs: passes over the training questions.
        max_prompt_tokens: a longer prompt is an error.
        max_completion_tokens: limit of a completion, in training and in evaluation.
        min_pixels, max_pixels: an image is resized, keeping its shape, to between these many pixels,
            in training and in evaluation alike.
        dtype: of weights and arithmetic, ``float32`` or ``bfloat16``.
        prompts_per_step: prompts in one optimiser step, over all devices.
        group_size: completions per prompt, G.
        micro_batch: prompts in one forward and backward pass.
        evaluation_batch: prompts answered at once in evaluation.
        image_size: side of the square, in pixels, that every image is resized to before the pixel
            limits apply; ``None`` keeps its shape.
        gradient_checkpointing: recompute activations in the backward pass.
    """

    grpo_lr: float
    sft_lr: float
    epochs: int
    max_prompt_tokens: int
    max_completion_tokens: int
    min_pixels: int
    max_pixels: int
    dtype: Literal["float32", "bfloat16"]
    prompts_per_step: int
    group_size: int
    micro_batch: int
    evaluation_batch: int
    image_size: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"model.recipe.{field.name} is {value}: it must be positive")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"model.recipe.dtype is {self.dtype!r}: use 'float32' or 'bfloat16' (fp16 would need its "
                "gradients scaled, which clipping would cut)"
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.recipe: min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}"
            )


def load_policy(
    path: str, recipe: Recipe, revision: str | None = None, tuning: Tuning | None = None
) -> Policy:
    """Load weights, tokenizer and image processor; safetensors only, no remote code.

    Args:
        path: a local directory or a hub id.
        recipe: dtype, pixel and prompt limits are taken from here.
        revision: commit on the hub.
        tuning: what is trained; all weights where it is not given.

    Raises:
        MissingWeightsError: nothing to load.
        ValueError: a checkpoint of another family.
    """
    tuning = tuning or Tuning()
    folder = find_weights(path, revision)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in FAMILY:
        raise ValueError(
            f"{path} is a {config.model_type!r} checkpoint: this project trains {', '.join(FAMILY)}"
        )
    logging.disable_progress_bar()
    dtype = getattr(torch, recipe.dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=tuning.quantization(dtype),
        use_safetensors=True,
        trust_remote_code=False,
    )
    # Loading leaves evaluation mode; there is no dropout, so the mode only matters to checkpointing.
    policy = Policy(tuning.apply(model).train(), load_encoder(folder, recipe))
    if recipe.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


def load_encoder(folder: Path, recipe: Recipe) -> Encoder:
    """Tokenizer and image processor of a local checkpoint, with the recipe's limits.

    The image processor is named here, because ``AutoProcessor`` needs torchvision and without it
    silently returns only a tokenizer.

    Raises:
        ValueError: the tokenizer brings no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer in {folder} has no chat template: take an Instruct checkpoint")
    processor = Qwen2VLImageProcessorPil.from_pretrained(
        folder, size={"shortest_edge": recipe.min_pixels, "longest_edge": recipe.max_pixels}
    )
    return Encoder(tokenizer, processor, recipe.max_prompt_tokens, recipe.image_size)
