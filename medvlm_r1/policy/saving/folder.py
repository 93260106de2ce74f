"""Model directories for other programs: write them atomically, inspect them."""

import copy
import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from medvlm_r1.policy.forward.model import Model, base_model
from medvlm_r1.policy.loading.resolve import base_of
from medvlm_r1.policy.loading.validate import ADAPTER, read_json
from medvlm_r1.runs.durable import replace_folder

if TYPE_CHECKING:
    from medvlm_r1.policy.encode import Encoder

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class ModelFolderError(ValueError):
    """A directory that cannot be passed on. The message names the directory and the remedy."""


@dataclass(frozen=True)
class ModelFolder:
    """Description of a model directory, read without loading the model.

    Attributes:
        kind: ``weights`` of a full model, or ``adapter`` (PEFT's).
        base: hub id, path or ``embedded`` of an adapter's base; ``None`` for a full model.
        revision: the base's commit on the hub, if known.
        parameters: numbers in the weight files; tied weights count once.
        dtype: the most frequent one among them, e.g. ``bfloat16``.
        size: bytes of all files.
    """

    path: Path
    kind: Literal["weights", "adapter"]
    base: str | None
    revision: str | None
    parameters: int
    dtype: str
    size: int


def save_model(folder: Path, model: Model, encoder: "Encoder", config: GenerationConfig) -> None:
    """Replace ``folder`` with a Hugging Face directory: model or adapter, tokenizer, image processor."""
    has_adapter = hasattr(model, "disable_adapter")
    with replace_folder(folder) as partial:
        # Otherwise PEFT requests the vocabulary size of the base from the hub.
        options = {"save_embedding_layers": False} if has_adapter else {}
        model.save_pretrained(partial, **options)
        _save_processors(partial, model, encoder)
        if has_adapter:
            base, revision = base_of(model.get_base_model().name_or_path)
            named = {"base_model_name_or_path": base, "revision": revision}
            _update_json(partial / ADAPTER, named)
            (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        config.save_pretrained(partial)


def save_without_weights(folder: Path, model: Model, encoder: "Encoder") -> None:
    """Write the directory of a full model, but not its weights: config, tokenizer, image processor.

    The config is that of a model whose head is not tied to its embeddings.
    """
    base = base_model(model)
    config = copy.deepcopy(base.config)
    config.update({"architectures": [type(base).__name__], "tie_word_embeddings": False})
    config.save_pretrained(folder)
    _save_processors(folder, model, encoder)


def greedy_config(
    eos_ids: list[int], pad_id: int, banned_ids: list[int] | None, max_new_tokens: int | None
) -> GenerationConfig:
    """The generation config of our evaluation: greedy, without ``banned_ids``."""
    return GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
        suppress_tokens=banned_ids,
        max_new_tokens=max_new_tokens,
    )


def inspect_folder(folder: Path) -> ModelFolder:
    """Read the config of a model directory and the headers of its weight files.

    Raises:
        ModelFolderError: not a model directory, or without readable safetensors weights.
    """
    is_adapter = (folder / ADAPTER).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder} holds neither a config.json nor an adapter_config.json")
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("adapter_model*.safetensors" if is_adapter else "model*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    part = weights.get_slice(name)
                    dtype = _DTYPES.get(part.get_dtype(), part.get_dtype().lower())
                    counts[dtype] += prod(part.get_shape())
        except SafetensorError as error:
            raise ModelFolderError(f"{file} cannot be read ({error}): it was cut short") from None
    if not counts:
        raise ModelFolderError(f"{folder} holds no safetensors weights: the save was interrupted")
    config = read_json(folder / ADAPTER) if is_adapter else {}
    return ModelFolder(
        path=folder,
        kind="adapter" if is_adapter else "weights",
        base=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
        parameters=counts.total(),
        dtype=max(counts, key=lambda dtype: counts[dtype]),
        size=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
    )


def _save_processors(folder: Path, model: Model, encoder: "Encoder") -> None:
    encoder.tokenizer.save_pretrained(folder)
    encoder.image_processor.save_pretrained(folder)
    # AutoProcessor takes an adapter's directory for a tokenizer's unless a processor class is named.
    processor = {"processor_class": PROCESSOR_MAPPING_NAMES[model.config.model_type]}
    _update_json(folder / "preprocessor_config.json", processor)


def _update_json(path: Path, values: dict) -> None:
    text = json.dumps(read_json(path) | values, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
