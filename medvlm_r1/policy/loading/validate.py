"""Check a checkpoint by its file names and small files, before loading weights.

Every error is one line with the directory, the file and the remedy.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

FAMILY = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_5": "Qwen3.5",
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
RECORD = "medvlm_r1.json"
IMAGE_LIMITS = ("min_pixels", "max_pixels", "image_size")


class UnusableWeightsError(ValueError):
    """The checkpoint cannot be loaded."""


def check_checkpoint(folder: Path) -> None:
    """Check a directory by its JSON files and the headers of its weight files.

    Raises:
        UnusableWeightsError: no usable weights, a shard that is missing or cut short, no tokenizer, no image
            processor, a configuration that is not JSON or of another family.
    """
    check_config(folder)
    check_names(str(folder), (file.name for file in folder.iterdir() if file.is_file()))
    if missing := missing_shards(folder):
        raise UnusableWeightsError(
            f"{folder}: {INDEX} lists {_some(missing)}, not there: copy or download the missing files"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):  # reads the header, and compares it with the file's size
                pass
        except SafetensorError as error:
            raise UnusableWeightsError(
                f"{folder}: {file.name} is cut short or not a safetensors file ({error}): "
                "copy or download it again"
            ) from None


def check_names(where: str, names: Iterable[str]) -> None:
    """Check file names alone, as :func:`check_checkpoint`; ``where`` is the checkpoint's name in messages."""
    names = set(names)
    pickles = sorted(n for n in names if n.endswith(_PICKLES) and n != "training_args.bin")
    if ADAPTER in names and "config.json" not in names:
        if ADAPTER_WEIGHTS not in names:
            weights = f"only {_some(pickles)}, a pickle, which can run code" if pickles else "no weights"
            raise UnusableWeightsError(
                f"{where}: an adapter ({ADAPTER}) with {weights}: save it again as {ADAPTER_WEIGHTS}"
            )
        return  # its base may have the tokenizer and the image processor
    if "config.json" not in names:
        raise UnusableWeightsError(f"{where}: no config.json: copy or download it")
    if not names & {WEIGHTS, INDEX}:
        if stray := sorted(n for n in names if n.endswith(".safetensors")):
            raise UnusableWeightsError(
                f"{where}: {_some(stray)} without {INDEX}, which maps tensors to files: copy it too"
            )
        if pickles:
            raise UnusableWeightsError(
                f"{where}: weights only as {_some(pickles)}, a pickle, which can run code: convert them to "
                f"{WEIGHTS} with save_pretrained, if you trust their origin"
            )
        raise UnusableWeightsError(
            f"{where}: a config.json but no *.safetensors weights: copy {WEIGHTS}, or {INDEX} and its shards"
        )
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise UnusableWeightsError(
            f"{where}: no tokenizer.json, nor vocab.json and merges.txt: copy the tokenizer's files of the "
            "model that it was trained from"
        )
    if not names & {"preprocessor_config.json", "processor_config.json"}:
        raise UnusableWeightsError(f"{where}: no preprocessor_config.json: copy that of the base model")


def check_config(folder: Path) -> None:
    """Check the JSON files alone, as :func:`check_checkpoint`.

    Raises:
        UnusableWeightsError: a file is not JSON, or the model is of another family.
    """
    if _is_adapter(folder):
        adapter_base(folder)
        return
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILY:
        kind = f"{family!r}" if family else "of no model_type"
        code = ", and loads code of its own (auto_map)" if "auto_map" in config else ""
        raise UnusableWeightsError(
            f"{folder}: config.json is {kind}{code}, and this project loads {', '.join(FAMILY.values())} "
            f"({', '.join(FAMILY)}): serve it with vLLM or SGLang and evaluate it with model=endpoint"
        )
    processors = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    settings = [read_json(path) for path in processors if path.is_file()]
    if settings and not processors[0].is_file() and "image_processor" not in settings[0]:
        raise UnusableWeightsError(
            f"{folder}: no preprocessor_config.json, and processor_config.json holds no image_processor: "
            "copy preprocessor_config.json of the base model"
        )


def missing_shards(folder: Path) -> list[str]:
    """Names of missing weight files, e.g. after an interrupted download."""
    if _is_adapter(folder):
        expected = {ADAPTER_WEIGHTS}
    elif (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        expected = {WEIGHTS}
    else:
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UnusableWeightsError(f"{folder}: {INDEX} has no weight_map: copy or download it again")
        expected = set(weight_map.values())
    return sorted(name for name in expected if not (folder / name).is_file())


def _is_adapter(folder: Path) -> bool:
    """Whether a directory holds a PEFT adapter without its base."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """Return path or hub id, and revision, of an adapter's base; ``None`` for a full model.

    Raises:
        UnusableWeightsError: the adapter names no base.
    """
    if not _is_adapter(folder):
        return None
    config = read_json(folder / ADAPTER)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UnusableWeightsError(
            f"{folder}: {ADAPTER} has no base_model_name_or_path: write the path or hub id of its "
            "base into it"
        )
    return base, config.get("revision")


def check_image_limits(path: str, folder: Path, limits: Mapping[str, int | None]) -> None:
    """Check that a model gets images of the size on which it was trained, if ``medvlm_r1.json`` records it.

    Args:
        path: name of the checkpoint in messages.
        limits: :data:`IMAGE_LIMITS` of this run.

    Raises:
        ValueError: they differ; the message gives the overrides that make them equal.
    """
    record = folder / RECORD
    if not record.is_file():
        return
    trained = read_json(record)
    if differing := [k for k in IMAGE_LIMITS if k in trained and trained[k] != limits[k]]:
        now = ", ".join(f"{k} {json.dumps(limits[k])}" for k in differing)
        overrides = " ".join(f"model.recipe.{k}={json.dumps(trained[k])}" for k in differing)
        raise ValueError(
            f"{path} was trained on images of another size ({RECORD}) than this run's ({now}), which lowers "
            f"its accuracy: add {overrides}"
        )


def check_tensors(path: str, file: str, loading_info: Mapping[str, Any]) -> None:
    """Check that weights fit the model; the libraries initialise missing ones at random.

    Args:
        path, file: names of the checkpoint and of its weights in messages.
        loading_info: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys`` of ``from_pretrained``.

    Raises:
        UnusableWeightsError: tensors are missing, left over or of another shape.
    """
    kinds = {"missing": "missing", "unexpected": "left over", "mismatched": "of another shape"}
    wrong = [
        f"{len(keys)} {problem} ({_some(sorted(map(_tensor, keys)))})"
        for kind, problem in kinds.items()
        if (keys := loading_info.get(f"{kind}_keys"))
    ]
    if wrong:
        remedy = (
            f"correct base_model_name_or_path in {ADAPTER}, or train it again if its names are of an "
            "older transformers"
            if file == ADAPTER_WEIGHTS
            else "take weights and config.json from the same checkpoint"
        )
        raise UnusableWeightsError(
            f"{path}: the tensors in {file} do not fit the model: {', '.join(wrong)}; {remedy}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UnusableWeightsError: the file is not a JSON object.
    """
    try:
        if isinstance(value := json.loads(path.read_text(encoding="utf-8")), dict):
            return value
        reason = "it holds no object"
    except ValueError as error:  # usually a Git LFS pointer
        reason = error
    raise UnusableWeightsError(f"{path.parent}: {path.name} is no JSON ({reason}): copy or download it again")


def _tensor(key: str | tuple) -> str:
    """Name of a tensor, with its shapes in file and model if they differ."""
    if isinstance(key, str):
        return key
    name, in_file, in_model = key
    return f"{name} {tuple(in_file)} for {tuple(in_model)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
