"""Where a checkpoint is, and whether this machine can run it: answered before anything is built."""

from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from medvlm_r1.hub import hub_problem

EMBEDDED = Path(__file__).parents[1] / "tiny"
# Weights above this size are no pastime for a CPU: 1 GB is 500 M parameters in bf16.
GPU_BYTES = 1_000_000_000
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_WAYS_ON = (
    "The two ways on: give a local copy with model.path=/path/to/checkpoint, or take the embedded model: "
    "model=tiny data=phantom"
)


class MissingWeightsError(FileNotFoundError):
    """No weights at the path, in the cache or on the hub."""


class MissingGPUError(RuntimeError):
    """The weights can be had, but they need a GPU and none is visible."""


def check_weights(path: str, revision: str | None, accelerator: str) -> None:
    """Stop within seconds, before any download, where a run cannot begin.

    Args:
        path: a local directory, a hub id such as ``Qwen/Qwen2-VL-2B-Instruct``, or ``embedded``.
        revision: commit, tag or branch on the hub.
        accelerator: the trainer's; ``cpu`` insists on running large weights without a GPU.

    Raises:
        MissingWeightsError: nothing at the path, in the cache, or on the hub.
        MissingGPUError: the weights exceed 1 GB and no GPU is visible.
    """
    folder = _on_disk(path, revision)
    if folder is not None:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    else:
        size = _size_on_hub(path, revision)
    if size > GPU_BYTES and accelerator != "cpu" and not torch.cuda.is_available():
        raise MissingGPUError(
            f"{path} has {size / 1e9:.1f} GB of weights, and no GPU is visible.\nThe two ways on: run it on "
            "a machine with a GPU (trainer.accelerator=cpu insists on this one, slowly), or take the "
            "embedded model: model=tiny data=phantom"
        )


def find_weights(path: str, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: the given one, the cache's, or a download from the hub.

    Raises:
        MissingWeightsError: see :func:`check_weights`.
    """
    folder = _on_disk(path, revision)
    if folder is None:
        _size_on_hub(path, revision)
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))
    return folder


def _on_disk(path: str, revision: str | None) -> Path | None:
    """A directory with weights, given or cached; ``None`` if only the hub may have it."""
    folder = EMBEDDED if path == "embedded" else Path(path)
    if (folder / "config.json").is_file():
        if not list(folder.glob("*.safetensors")):
            raise MissingWeightsError(f"{path} holds a config.json but no *.safetensors weights.\n{_WAYS_ON}")
        return folder
    if path.count("/") != 1 or folder.exists():
        raise MissingWeightsError(f"model.path={path} is no directory with a config.json.\n{_WAYS_ON}")
    try:
        cached = snapshot_download(path, revision=revision, allow_patterns=_FILES, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    complete = (Path(cached) / "model.safetensors").is_file() or _has_all_shards(Path(cached))
    return Path(cached) if complete else None


def _has_all_shards(folder: Path) -> bool:
    """Whether an interrupted download left no shard out; shards are named ``...-00001-of-00002``."""
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    return bool(shards) and len(shards) == int(shards[0].stem.rsplit("-", 1)[-1])


def _size_on_hub(path: str, revision: str | None) -> int:
    """Bytes of the weights on the hub."""
    where = f"{path} is neither a local directory nor in the hub cache ({constants.HF_HUB_CACHE})"
    if problem := hub_problem():
        raise MissingWeightsError(f"{where}, and the hub cannot be reached ({problem}).\n{_WAYS_ON}")
    try:
        files = HfApi().model_info(path, revision=revision, files_metadata=True).siblings or []
    except HfHubHTTPError as error:
        raise MissingWeightsError(f"{where}, and the hub says: {error}.\n{_WAYS_ON}") from None
    return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
