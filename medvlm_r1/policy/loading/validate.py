"""Can this directory be loaded? Answered from its file names and small files, before a weight is read.

Every refusal is one line that names the directory, the file and the remedy.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

FAMILY = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
RECORD = "medvlm_r1.json"
_LIMITS = ("min_pixels", "max_pixels", "image_size")


class UnusableWeightsError(ValueError):
    """There is a checkpoint, and it cannot be loaded as it is."""


def check_checkpoint(folder: Path) -> None:
    """Refuse a directory that cannot be loaded; reads json files and the heads of the weights.

    Raises:
        UnusableWeightsError: no usable weights, a shard that is missing or cut short, no tokenizer, no
            image processor, a configuration that is no JSON or of another family.
    """
    check_config(folder)
    check_names(str(folder), (file.name for file in folder.iterdir() if file.is_file()))
    if missing := missing_shards(folder):
        raise UnusableWeightsError(
            f"{folder}: {INDEX} lists {_some(missing)}, not there: copy or download the missing files"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):  # reads the head, and compares it with the file's size
                pass
        except SafetensorError as error:
            raise UnusableWeightsError(
                f"{folder}: {file.name} is cut short or no safetensors file ({error}): "
                "copy or download it again"
            ) from None


def check_names(where: str, names: Iterable[str]) -> None:
    """As :func:`check_checkpoint`, from file names alone; ``where`` is what the message calls it."""
    names = set(names)
    pickles = sorted(n for n in names if n.endswith(_PICKLES) and n != "training_args.bin")
    if is_adapter(names):
        if ADAPTER_WEIGHTS not in names:
            found = f"only {_some(pickles)}, a pickle, which can run code" if pickles else "no weights"
            raise UnusableWeightsError(
                f"{where}: an adapter ({ADAPTER}) with {found}: save it anew as {ADAPTER_WEIGHTS}"
            )
        return  # tokenizer and image processor may come from its base
    if "config.json" not in names:
        raise UnusableWeightsError(f"{where}: no config.json: copy or download it")
    if not names & {WEIGHTS, INDEX}:
        if stray := sorted(n for n in names if n.endswith(".safetensors")):
            raise UnusableWeightsError(
                f"{where}: {_some(stray)} without {INDEX}, which says where each tensor is: copy it too"
            )
        if pickles:
            raise UnusableWeightsError(
                f"{where}: weights only as {_some(pickles)}, a pickle, which can run code: convert them to "
                f"{WEIGHTS} with save_pretrained, where you trust their origin"
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
        raise UnusableWeightsError(
            f"{where}: no preprocessor_config.json: copy that of the model that it was trained from"
        )


def check_config(folder: Path) -> None:
    """As :func:`check_checkpoint`, from the json files alone.

    Raises:
        UnusableWeightsError: a file is no JSON, or the model is of another family.
    """
    if is_adapter(file.name for file in folder.iterdir()):
        adapter_base(folder)
        return
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILY:
        what = f"{family!r}" if family else "of no model_type"
        code = ", and wants to run code of its own (auto_map)" if "auto_map" in config else ""
        raise UnusableWeightsError(
            f"{folder}: config.json is {what}{code}: this project loads {' and '.join(FAMILY.values())} "
            f"({', '.join(FAMILY)}), give such a checkpoint"
        )
    processors = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    found = [read_json(path) for path in processors if path.is_file()]
    if found and not processors[0].is_file() and "image_processor" not in found[0]:
        raise UnusableWeightsError(
            f"{folder}: no preprocessor_config.json, and processor_config.json holds no image_processor: "
            "copy preprocessor_config.json of the model that it was trained from"
        )


def missing_shards(folder: Path) -> list[str]:
    """Names of weight files that should be there and are not, e.g. after an interrupted download."""
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        wanted = {ADAPTER_WEIGHTS}
    elif (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        wanted = {WEIGHTS}
    else:
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UnusableWeightsError(f"{folder}: {INDEX} has no weight_map: copy or download it again")
        wanted = set(weight_map.values())
    return sorted(name for name in wanted if not (folder / name).is_file())


def is_adapter(names: Iterable[str]) -> bool:
    """Whether files of these names are a PEFT adapter, without the model that it stands on."""
    names = set(names)
    return ADAPTER in names and "config.json" not in names


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """Path or hub id, and revision, of the model that an adapter stands on; ``None`` for a whole model.

    Raises:
        UnusableWeightsError: the adapter names no model.
    """
    if not is_adapter(file.name for file in folder.iterdir()):
        return None
    config = read_json(folder / ADAPTER)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UnusableWeightsError(
            f"{folder}: {ADAPTER} has no base_model_name_or_path: write the path or hub id of the model "
            "that the adapter was trained on into it"
        )
    return base, config.get("revision")


def check_image_limits(path: str, folder: Path, **limits: int | None) -> None:
    """Refuse to show a model pictures of another resolution than it was trained on.

    Args:
        path: what the message calls the checkpoint.
        folder: a checkpoint; only one that this project trained, with a ``medvlm_r1.json``, is compared.
        limits: ``min_pixels``, ``max_pixels`` and ``image_size`` of this run.

    Raises:
        ValueError: they differ; the message holds the overrides that make them equal.
    """
    record = folder / RECORD
    if not record.is_file():
        return
    trained = read_json(record)
    if differing := [k for k in _LIMITS if k in trained and trained[k] != limits[k]]:
        now = ", ".join(f"{k} {_null(limits[k])}" for k in differing)
        right = " ".join(f"model.recipe.{k}={_null(trained[k])}" for k in differing)
        raise ValueError(
            f"{path}: {RECORD} says that it was trained on images of another size than this run's ({now}), "
            f"and a model answers worse at a size that it does not know: add {right}"
        )


def check_tensors(path: str, file: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit the model, where the libraries would make some up.

    Args:
        path: what the message calls the checkpoint.
        file: what it calls the weights.
        found: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``, as ``from_pretrained`` and
            peft report them.

    Raises:
        UnusableWeightsError: tensors are missing, left over or of another shape.
    """
    wrong = [
        f"{len(found[kind])} {what} ({_some(sorted(map(_tensor, found[kind])))})"
        for kind, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "left over"),
            ("mismatched_keys", "of another shape"),
        )
        if found[kind]
    ]
    if wrong:
        remedy = (
            f"correct base_model_name_or_path in {ADAPTER}, or train it anew where its names are of an older "
            "transformers"
            if file == ADAPTER_WEIGHTS
            else "take weights and config.json from one and the same checkpoint"
        )
        raise UnusableWeightsError(
            f"{path}: the tensors in {file} do not fit the model: {', '.join(wrong)}; {remedy}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file.

    Raises:
        UnusableWeightsError: the file is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        value = error
    if not isinstance(value, dict):
        reason = value if isinstance(value, ValueError) else "it holds no object"
        # A file of the large-file store in place of the file itself is the usual cause.
        raise UnusableWeightsError(
            f"{path.parent}: {path.name} is no JSON ({reason}): copy or download it again"
        ) from None
    return value


def _tensor(key: str | tuple) -> str:
    """The name of a tensor, with both shapes where they differ."""
    if isinstance(key, str):
        return key
    name, there, wanted = key
    return f"{name} {tuple(there)} for {tuple(wanted)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)
