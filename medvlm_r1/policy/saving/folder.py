"""Model directories for others to load: written whole or not at all, looked into."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from medvlm_r1.policy.loading.resolve import base_of

# Without a processor's name, AutoProcessor takes an adapter's directory for a tokenizer's.
_PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class ModelFolderError(ValueError):
    """A directory that cannot be handed on. The message names the directory and the remedy."""


@dataclass(frozen=True)
class ModelFolder:
    """What a model directory holds, read without loading it.

    Attributes:
        path: where it lies.
        kind: ``weights`` (all of a model's) or ``adapter`` (PEFT's, on top of a base).
        base: hub id, path or ``embedded`` of the adapter's base; ``None`` for all weights.
        revision: the base's commit on the hub, if it is known.
        parameters: numbers in the weight files, tied ones once.
        dtype: the type that most of them are stored in, e.g. ``bfloat16``.
        size: of all its files, in bytes.
    """

    path: Path
    kind: Literal["weights", "adapter"]
    base: str | None
    revision: str | None
    parameters: int
    dtype: str
    size: int


def greedy_config(
    eos_ids: list[int], pad_id: int, banned_ids: list[int], max_new_tokens: int | None
) -> GenerationConfig:
    """Our evaluation as a generation config: the likeliest token, and never a vision token."""
    return GenerationConfig(
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
        suppress_tokens=banned_ids,
        max_new_tokens=max_new_tokens,
    )


def write_processor_class(folder: Path, model_type: str) -> None:
    """Name the processor class beside the image processor's settings, where ``AutoProcessor`` looks."""
    path = folder / "preprocessor_config.json"
    path.write_text(_pretty({**_json(path), "processor_class": _PROCESSORS[model_type]}), encoding="utf-8")


def write_adapter_base(folder: Path, loaded_from: str) -> None:
    """Name an adapter's base as others can find it, and remove PEFT's empty model card."""
    base, revision = base_of(loaded_from)
    path = folder / "adapter_config.json"
    named = {**_json(path), "base_model_name_or_path": base, "revision": revision}
    path.write_text(_pretty(named), encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def inspect_folder(folder: Path) -> ModelFolder:
    """Read a model directory's own description and its weight files' headers.

    Raises:
        ModelFolderError: no model directory, or one without readable safetensors weights.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder} holds neither a config.json nor an adapter_config.json")
    counts: dict[str, int] = {}
    files = sorted(folder.glob("adapter_model*.safetensors" if is_adapter else "model*.safetensors"))
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    part = weights.get_slice(name)
                    dtype = _DTYPES.get(part.get_dtype(), part.get_dtype().lower())
                    counts[dtype] = counts.get(dtype, 0) + prod(part.get_shape())
        except SafetensorError as error:
            raise ModelFolderError(f"{file} cannot be read ({error}): it was cut short") from None
    if not counts:
        raise ModelFolderError(f"{folder} holds no safetensors weights: the save was interrupted")
    config = _json(folder / "adapter_config.json") if is_adapter else {}
    return ModelFolder(
        path=folder,
        kind="adapter" if is_adapter else "weights",
        base=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
        parameters=sum(counts.values()),
        dtype=max(counts, key=lambda dtype: counts[dtype]),
        size=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
    )


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _pretty(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
