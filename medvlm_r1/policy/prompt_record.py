"""Prompt and limits of a checkpoint: from its ``medvlm_r1.json``, or from the options in ``conf/``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from medvlm_r1.policy.loading.validate import RECORD, read_json
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.runs.places import CONF

LIMITS = ("min_pixels", "max_pixels", "image_size", "dtype", "max_completion_tokens")
_STYLE = {"name", "train", "evaluate", "layout", "tags"}


class UnknownPromptError(ValueError):
    """The prompt of a model is unknown. The message gives the reason and the remedy."""


@dataclass(frozen=True)
class PromptRecord:
    """Prompt, image and completion limits of training and evaluation; has what loading needs of a recipe.

    Attributes:
        min_pixels, max_pixels, image_size, dtype, max_completion_tokens: see
            :class:`~medvlm_r1.policy.loading.load.Recipe`.
        quantized: the model is an adapter that was trained on 4-bit weights.
        max_prompt_tokens: no limit here; the model's context is one.
    """

    prompt: PromptStyle
    min_pixels: int
    max_pixels: int
    image_size: int | None
    dtype: Literal["float32", "bfloat16"]
    max_completion_tokens: int
    quantized: bool = False
    max_prompt_tokens: int = 10**9
    gradient_checkpointing: bool = False


def read_record(folder: Path) -> PromptRecord | None:
    """Read ``medvlm_r1.json`` of a checkpoint; ``None`` if there is none.

    Raises:
        UnusableWeightsError: the file is not JSON.
        UnknownPromptError: keys are missing, or a parser outside this package reads the answers.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_json(folder / RECORD)
    style = record.get("prompt")
    if (
        (missing := [key for key in ("prompt", *LIMITS) if key not in record])
        or not isinstance(style, dict)
        or (missing := sorted(_STYLE - style.keys()))
    ):
        raise UnknownPromptError(
            f"{folder}: {RECORD} lacks {', '.join(missing) or 'a prompt'}: copy the file again, or remove it "
            "and choose a prompt with --prompt"
        )
    if parser := style.get("class"):
        raise UnknownPromptError(
            f"{folder}: {parser}, a prompt outside this package, reads its answers: evaluate it with "
            f"method=zero_shot model.path={folder} prompt={style['name']} --config-dir CONF"
        )
    quantized = bool((record.get("training") or {}).get("quantize"))
    prompt = PromptStyle(**{key: style[key] for key in _STYLE}, open=style.get("open"))
    return _record(prompt, record, quantized)


def record_from_config(path: str, prompt: str, recipe: str | None = None) -> tuple[PromptRecord, str]:
    """Take prompt and limits from ``conf/prompt`` and ``conf/model``, for a checkpoint without a record.

    Args:
        recipe: name of a model option; by default the one with this path, else ``qwen2_vl_2b``.

    Returns:
        The record, and the name of the model option.

    Raises:
        UnknownPromptError: there is no such option.
    """
    recipe = recipe or next((name for name, model in _models() if model.get("path") == path), "qwen2_vl_2b")
    style = {key: value for key, value in _option("prompt", prompt).items() if key in {*_STYLE, "open"}}
    return _record(PromptStyle(**style), _option("model", recipe)["recipe"]), recipe


def configured_revision(path: str) -> str | None:
    """Revision of a hub id in ``conf/model``; ``None`` for another path."""
    return next((model["revision"] for _, model in _models() if model.get("path") == path), None)


def _record(prompt: PromptStyle, limits: Mapping[str, Any], quantized: bool = False) -> PromptRecord:
    return PromptRecord(prompt, *(limits[key] for key in LIMITS), quantized=quantized)


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _models() -> list[tuple[str, dict[str, Any]]]:
    return [(file.stem, _option("model", file.stem)) for file in _files("model")]


def _option(group: str, name: str) -> dict[str, Any]:
    """An option of a group, merged over the options in its defaults list."""
    if name not in (names := [file.stem for file in _files(group)]):
        raise UnknownPromptError(f"there is no {group} option {name!r}: take one of {', '.join(names)}")
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    values = OmegaConf.to_container(node, resolve=False)  # keeps interpolations such as ${peft}
    bases = [_option(group, base) for base in values.pop("defaults", []) if base != "_self_"]
    return OmegaConf.to_container(OmegaConf.merge(*bases, values), resolve=False)
