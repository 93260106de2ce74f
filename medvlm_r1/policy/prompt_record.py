"""How a model is to be asked: as its own record says, or as the configuration says for its kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from medvlm_r1.policy.loading.validate import read_json
from medvlm_r1.prompts import PromptStyle

RECORD = "medvlm_r1.json"
CONF = Path(__file__).parents[2] / "conf"
_LIMITS = ("min_pixels", "max_pixels", "image_size", "dtype", "max_completion_tokens")
_STYLE = {"name", "train", "evaluate", "layout", "tags"}


class UnknownPromptError(ValueError):
    """It cannot be told how a model is to be asked. The message says why and names the remedy."""


@dataclass(frozen=True)
class PromptRecord:
    """What training and evaluation showed a model, and in which words; stands where a recipe does.

    Attributes:
        prompt: the style.
        min_pixels, max_pixels, image_size, dtype, max_completion_tokens: see
            :class:`~medvlm_r1.policy.loading.load.Recipe`.
        rounded: the model was an adapter over weights in 4 bits.
        max_prompt_tokens: no limit; the model's context is one.
    """

    prompt: PromptStyle
    min_pixels: int
    max_pixels: int
    image_size: int | None
    dtype: Literal["float32", "bfloat16"]
    max_completion_tokens: int
    rounded: bool = False
    max_prompt_tokens: int = 10**9
    gradient_checkpointing: bool = False


def read_record(folder: Path) -> PromptRecord | None:
    """As ``medvlm_r1.json`` of a checkpoint says; ``None`` where there is none.

    Raises:
        UnusableWeightsError: the file is no JSON.
        UnknownPromptError: it lacks something.
    """
    if not (folder / RECORD).is_file():
        return None
    said = read_json(folder / RECORD)
    style = said.get("prompt")
    if (
        (lacking := [key for key in ("prompt", *_LIMITS) if key not in said])
        or not isinstance(style, dict)
        or (lacking := sorted(_STYLE - style.keys()))
    ):
        raise UnknownPromptError(
            f"{folder}: {RECORD} lacks {', '.join(lacking) or 'a prompt'}, so how the model was asked is "
            "unknown: copy the file again, or remove it and choose with --prompt"
        )
    rounded = bool((said.get("training") or {}).get("quantize"))
    return _asked(PromptStyle(**{key: style[key] for key in _STYLE}, open=style.get("open")), said, rounded)


def record_from_config(path: str, prompt: str, recipe: str | None = None) -> tuple[PromptRecord, str]:
    """As the options ``prompt`` and ``model`` of ``conf/`` say, for a checkpoint without a record.

    Args:
        path: the model's, as given.
        prompt: an option's name.
        recipe: a model option's name; by default the one with this path, or else ``qwen2_vl_2b``.

    Returns:
        How to ask, and the name of the model option.

    Raises:
        UnknownPromptError: there is no ``conf/``, or no such option.
    """
    if not CONF.is_dir():
        raise UnknownPromptError(
            f"{path} has no {RECORD}, and there are no prompts and limits to choose from at {CONF}: run this "
            "from the project's repository"
        )
    recipe = recipe or next((name for name, model in _models() if model.get("path") == path), "qwen2_vl_2b")
    style = {key: value for key, value in _option("prompt", prompt).items() if key in {*_STYLE, "open"}}
    limits = _option("model", recipe)["recipe"]
    return _asked(PromptStyle(**style), limits), recipe


def configured_revision(path: str) -> str | None:
    """The revision that the configuration's model options give for a hub id; ``None`` for anything else."""
    return next((model["revision"] for _, model in _models() if model.get("path") == path), None)


def _asked(prompt: PromptStyle, said: Mapping[str, Any], rounded: bool = False) -> PromptRecord:
    return PromptRecord(prompt, *(said[key] for key in _LIMITS), rounded=rounded)


def _files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def _models() -> list[tuple[str, dict[str, Any]]]:
    return [(file.stem, _option("model", file.stem)) for file in _files("model")]


def _option(group: str, name: str) -> dict[str, Any]:
    """An option of a group, with the options that it builds on below it."""
    if name not in (names := [file.stem for file in _files(group)]):
        raise UnknownPromptError(f"there is no {group} option {name!r}: take one of {', '.join(names)}")
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    values = OmegaConf.to_container(node, resolve=False)  # other groups stay names: ${peft}
    below = [_option(group, other) for other in values.pop("defaults", []) if other != "_self_"]
    return OmegaConf.to_container(OmegaConf.merge(*below, values), resolve=False)
