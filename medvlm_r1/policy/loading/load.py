"""Load a checkpoint as a :class:`~medvlm_r1.policy.policy.Policy`."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, Qwen2VLImageProcessorPil
from transformers.utils import logging

from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.loading.resolve import find_base, find_weights
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.loading.validate import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    IMAGE_LIMITS,
    UnusableWeightsError,
    check_image_limits,
    check_tensors,
    read_json,
)
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.prompt_record import PromptRecord


@dataclass(frozen=True)
class Recipe:
    """Settings that depend on the model and not on the experiment; methods interpolate them.

    Attributes:
        grpo_lr: peak learning rate of GRPO, for all weights.
        sft_lr: peak learning rate of SFT, for all weights.
        epochs: passes over the training questions.
        max_prompt_tokens: a longer prompt is an error.
        max_completion_tokens: limit of a completion, in training and in evaluation.
        min_pixels, max_pixels: limits of a resized image, in training and in evaluation; the aspect ratio is
            kept.
        dtype: of weights and arithmetic, ``float32`` or ``bfloat16``.
        prompts_per_step: questions of one step, over all devices.
        group_size: completions per prompt, G.
        micro_batch: prompts in one forward and backward pass.
        evaluation_batch: prompts per batch in evaluation.
        image_size: side in pixels of the square to which every image is resized before the pixel limits
            apply; ``None`` keeps the aspect ratio.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        ValueError: a value is out of range.
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
                f"model.recipe.dtype is {self.dtype!r}: use 'float32' or 'bfloat16' (fp16 needs scaled "
                "gradients, which clipping would truncate)"
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.recipe: min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}"
            )


def load_policy(
    path: str,
    recipe: Recipe | PromptRecord,
    revision: str | None = None,
    tuning: Tuning | None = None,
    layout: Literal["packed", "repeated"] = "packed",
) -> Policy:
    """Load weights, tokenizer and image processor; safetensors only, no remote code.

    A PEFT adapter is merged into its base in ``recipe.dtype``. The merged model can be evaluated, or all its
    weights can be trained; for another adapter or for 4-bit weights, merge it on disk first.

    Args:
        path: a local directory or a hub id.
        revision: commit on the hub.
        tuning: which weights are trained; all by default.
        layout: of log-probability passes, see :class:`~medvlm_r1.policy.policy.Policy`.

    Raises:
        MissingWeightsError: there is no checkpoint.
        UnusableWeightsError: the checkpoint cannot be loaded, e.g. is of another family.
        ValueError: the checkpoint was trained on images of another size, or is an adapter and ``tuning`` adds
            another adapter or 4-bit weights; or the token limits exceed the model's context.
    """
    tuning = tuning or Tuning()
    folder = find_weights(path, revision)
    check_image_limits(path, folder, {key: getattr(recipe, key) for key in IMAGE_LIMITS})
    base = find_base(folder)
    if base and (tuning.adapter or tuning.quantize):
        raise ValueError(
            f"{path} is an adapter, and peft=... adds another or quantizes its base to 4 bits: merge it "
            "first, with medvlm-r1 export --merge, and give the merged model as model.path"
        )
    logging.disable_progress_bar()
    dtype = getattr(torch, recipe.dtype)
    model = load_model(path, base or folder, dtype=dtype, **tuning.quantization(dtype))
    if base:
        model = merge_adapter_weights(path, model, base, folder)
    context = model.config.get_text_config().max_position_embeddings
    if isinstance(recipe, Recipe) and recipe.max_prompt_tokens + recipe.max_completion_tokens > context:
        raise ValueError(
            f"{path} has a context of {context} tokens: lower model.recipe.max_prompt_tokens="
            f"{recipe.max_prompt_tokens} or model.recipe.max_completion_tokens={recipe.max_completion_tokens}"
        )
    # The model comes in evaluation mode. It has no dropout: only gradient checkpointing depends on the mode.
    policy = Policy(tuning.apply(model).train(), load_encoder(folder, recipe, base), layout)
    if recipe.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


def load_model(path: str, folder: Path, **options: Any) -> PreTrainedModel:
    """Load the model class of config.json with exactly the tensors of the checkpoint.

    ``path`` is its name in messages; ``options`` are those of ``from_pretrained``.

    Raises:
        UnusableWeightsError: tensors are missing, left over or of another shape.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # check_tensors gives one line instead
    try:
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # check_tensors raises
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    check_tensors(path, "*.safetensors", loading_info)
    return model


def merge_adapter_weights(path: str, model: PreTrainedModel, base: Path, folder: Path) -> PreTrainedModel:
    """Add the adapter in ``folder`` to the weights of ``model``, which was loaded from ``base``.

    Raises:
        UnusableWeightsError: the adapter's tensors do not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # seconds, and only adapters need it

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # check_tensors raises
            peft_model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UnusableWeightsError(
            f"{path}: the tensors in {ADAPTER_WEIGHTS} have other shapes than the layers of its base: "
            f"correct base_model_name_or_path in {ADAPTER}"
        ) from None
    # PEFT reads the size of the base's vocabulary there, from the hub if this is a hub id.
    peft_model.active_peft_config.base_model_name_or_path = str(base)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        in_file = set(file.keys())
    in_model = set(get_peft_model_state_dict(peft_model))
    differing = {"missing_keys": in_model - in_file, "unexpected_keys": in_file - in_model}
    check_tensors(path, ADAPTER_WEIGHTS, differing)
    # PEFT froze the base's weights; `tuning` chooses again which are trained.
    return peft_model.merge_and_unload(safe_merge=True).requires_grad_(True)


def load_encoder(folder: Path, recipe: Recipe | PromptRecord, base: Path | None = None) -> Encoder:
    """Load tokenizer and image processor of a local checkpoint, with the recipe's limits.

    The class of the image processor is fixed, because ``AutoProcessor`` silently returns only a tokenizer
    without torchvision, and with it a class that resizes to other pixels.

    Args:
        base: of an adapter; its files are used for those that the adapter's directory lacks.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    tokenizer_folder = _folder_with(folder, base, "tokenizer.json", "vocab.json")
    image_folder = _folder_with(folder, base, "preprocessor_config.json", "processor_config.json")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, padding_side="left", trust_remote_code=False)
    template = tokenizer_folder / "chat_template.json"  # the file of the first releases
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = read_json(template)["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer in {tokenizer_folder} has no chat template: take an Instruct checkpoint"
        )
    # Not as `size`: min_pixels and max_pixels in the checkpoint's file would override it.
    processor = Qwen2VLImageProcessorPil.from_pretrained(
        image_folder, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
    )
    return Encoder(tokenizer, processor, recipe.max_prompt_tokens, recipe.image_size)


def _folder_with(folder: Path, base: Path | None, *names: str) -> Path:
    return folder if base is None or any((folder / name).is_file() for name in names) else base
