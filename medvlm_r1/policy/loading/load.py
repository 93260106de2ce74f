"""Load a checkpoint of the Qwen2-VL family as a :class:`Policy`."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    Qwen2VLImageProcessorPil,
)
from transformers.utils import logging

from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.loading.resolve import find_base, find_weights
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.loading.validate import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    UnusableWeightsError,
    check_image_limits,
    check_tensors,
    read_json,
)
from medvlm_r1.policy.policy import Policy


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


@runtime_checkable
class Limits(Protocol):
    """What loading needs of a :class:`Recipe`."""

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]: ...
    @property
    def min_pixels(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def max_prompt_tokens(self) -> int: ...
    @property
    def gradient_checkpointing(self) -> bool: ...


def load_policy(
    path: str,
    recipe: Limits,
    revision: str | None = None,
    tuning: Tuning | None = None,
    layout: Literal["packed", "repeated"] = "packed",
) -> Policy:
    """Load weights, tokenizer and image processor; safetensors only, no remote code.

    The directory of a PEFT adapter is read as the whole model that it makes: its base, with the adapter
    merged in ``recipe.dtype``. That model is evaluated, or trained on in its own weights; another adapter
    on top, or 4 bits below, wants it merged on disk first.

    Args:
        path: a local directory or a hub id.
        recipe: dtype, pixel and prompt limits are taken from here.
        revision: commit on the hub.
        tuning: what is trained; all weights where it is not given.
        layout: of log-probability passes, see :class:`~medvlm_r1.policy.policy.Policy`.

    Raises:
        MissingWeightsError: nothing to load.
        UnusableWeightsError: a checkpoint that cannot be loaded, e.g. of another family.
        ValueError: it was trained on images of another size, or is an adapter and ``tuning`` wants another.
    """
    tuning = tuning or Tuning()
    folder = find_weights(path, revision)
    check_image_limits(
        path,
        folder,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
        image_size=recipe.image_size,
    )
    base = find_base(folder)
    if base and (tuning.adapter or tuning.quantize):
        raise ValueError(
            f"{path} is an adapter, and peft=... puts another on it or holds its base in 4 bits: merge it "
            "first, with python -m medvlm_r1.export --merge, and give the merged model as model.path"
        )
    logging.disable_progress_bar()
    dtype = getattr(torch, recipe.dtype)
    model = load_model(path, base or folder, dtype=dtype, **tuning.quantization(dtype))
    if base:
        model = merge_adapter_weights(path, model, base, folder)
    # Loading leaves evaluation mode; there is no dropout, so the mode only matters to checkpointing.
    policy = Policy(tuning.apply(model).train(), load_encoder(folder, recipe, base), layout)
    if recipe.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


def load_model(path: str, folder: Path, **how: Any) -> PreTrainedModel:
    """The class that the checkpoint's config.json names, with exactly the tensors of the checkpoint.

    Raises:
        UnusableWeightsError: tensors are missing, left over or of another shape.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # check_tensors says it in one line
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # named with the others, and refused
            output_loading_info=True,
            **how,
        )
    finally:
        logging.set_verbosity(verbosity)
    check_tensors(path, "*.safetensors", found)
    return model


def merge_adapter_weights(path: str, model: PreTrainedModel, base: Path, folder: Path) -> PreTrainedModel:
    """``model``, which was loaded from ``base``, with the adapter in ``folder`` added to its weights.

    Raises:
        UnusableWeightsError: the adapter's tensors do not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict  # seconds, for those who have an adapter

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # named below, and refused
            adapted = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UnusableWeightsError(
            f"{path}: the tensors in {ADAPTER_WEIGHTS} have other shapes than the layers of its base: "
            f"correct base_model_name_or_path in {ADAPTER}"
        ) from None
    # Where peft looks for the size of the base's vocabulary, on the hub if that is what this names.
    adapted.active_peft_config.base_model_name_or_path = str(base)
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        there = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    check_tensors(
        path,
        ADAPTER_WEIGHTS,
        {
            "missing_keys": sorted(wanted - there),
            "unexpected_keys": sorted(there - wanted),
            "mismatched_keys": [],
        },
    )
    # peft froze what it adapted; what of it is trained is for `tuning` to say.
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(True)


def load_encoder(folder: Path, recipe: Limits, base: Path | None = None) -> Encoder:
    """Tokenizer and image processor of a local checkpoint, with the recipe's limits.

    The image processor is named here, because ``AutoProcessor`` needs torchvision and without it
    silently returns only a tokenizer, and because the variant that it picks beside torchvision resizes
    to other pixels.

    Args:
        folder: the checkpoint.
        recipe: pixel and prompt limits are taken from here.
        base: what an adapter stands on; has what an adapter's directory leaves out.

    Raises:
        ValueError: the tokenizer brings no chat template.
    """
    words = _holder(folder, base, "tokenizer.json", "vocab.json")
    images = _holder(folder, base, "preprocessor_config.json", "processor_config.json")
    tokenizer = AutoTokenizer.from_pretrained(words, padding_side="left", trust_remote_code=False)
    if tokenizer.chat_template is None and (words / "chat_template.json").is_file():
        # where processors of the first releases kept it
        tokenizer.chat_template = read_json(words / "chat_template.json")["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer in {words} has no chat template: take an Instruct checkpoint")
    # Not as `size`, which a checkpoint's own min_pixels and max_pixels (the hub's have them) would override.
    processor = Qwen2VLImageProcessorPil.from_pretrained(
        images, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels
    )
    return Encoder(tokenizer, processor, recipe.max_prompt_tokens, recipe.image_size)


def _holder(folder: Path, base: Path | None, *names: str) -> Path:
    return folder if base is None or any((folder / name).is_file() for name in names) else base
