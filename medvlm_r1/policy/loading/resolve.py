"""Where a checkpoint is, and whether this machine can run it: answered before anything is built."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from medvlm_r1.policy.loading.validate import (
    ADAPTER,
    UnusableWeightsError,
    adapter_base,
    check_checkpoint,
    check_config,
    check_names,
    missing_shards,
)
from medvlm_r1.runs.hub import hub_problem

_CACHED = re.compile(r"models--([^/]+?)(?:--([^/]+))?/snapshots/([0-9a-f]{40})/?$")
EMBEDDED = Path(__file__).parents[2] / "tiny"
# Weights above this size are no pastime for a CPU: 1 GB is 500 M parameters in bf16.
GPU_BYTES = 1_000_000_000
_SMALL_FILES = ["*.json", "*.txt", "*.jinja"]
_FILES = [*_SMALL_FILES, "*.safetensors"]
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
        path: a local directory, a hub id such as ``Qwen/Qwen2-VL-2B-Instruct``, or ``embedded``. A PEFT
            adapter's directory is checked together with the model that it stands on.
        revision: commit, tag or branch on the hub.
        accelerator: the trainer's; ``cpu`` insists on running large weights without a GPU.

    Raises:
        MissingWeightsError: nothing at the path, in the cache, or on the hub.
        UnusableWeightsError: something is there that cannot be loaded.
        MissingGPUError: the weights exceed 1 GB and no GPU is visible.
    """
    folder = _on_disk(path, revision)
    if folder is None:
        files = _files_on_hub(path, revision)
        check_names(path, files)
        size = sum(size for name, size in files.items() if name.endswith(".safetensors"))
    else:
        check_checkpoint(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if base := _base(folder):
            with _asked_by(folder):
                check_weights(*base, accelerator)
    if size > GPU_BYTES and accelerator != "cpu" and not torch.cuda.is_available():
        raise MissingGPUError(
            f"{path} has {size / 1e9:.1f} GB of weights, and no GPU is visible.\nThe two ways on: run it on "
            "a machine with a GPU (trainer.accelerator=cpu insists on this one, slowly), or take the "
            "embedded model: model=tiny data=phantom"
        )


def find_weights(path: str, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: the given one, the cache's, or a download from the hub.

    Raises:
        MissingWeightsError, UnusableWeightsError: see :func:`check_weights`.
    """
    folder = _on_disk(path, revision)
    if folder is None:
        check_names(path, _files_on_hub(path, revision))
        # The small files first: another family is refused before its gigabytes come.
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_SMALL_FILES))
        check_config(folder)
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))
    check_checkpoint(folder)
    return folder


def find_base(folder: Path) -> Path | None:
    """The local directory of the model that an adapter stands on; ``None`` for a whole model.

    Raises:
        MissingWeightsError, UnusableWeightsError: see :func:`check_weights`; or the base is an adapter.
    """
    if (base := _base(folder)) is None:
        return None
    with _asked_by(folder):
        return find_weights(*base)


def loaded_commit(path: str, revision: str | None = None) -> str | None:
    """The commit of a checkpoint on this machine that came from the hub, whatever ``revision`` calls it.

    Returns:
        Its 40 hexadecimal digits, which name the cache's snapshot folder; ``None`` for any other directory.
    """
    folder = _on_disk(path, revision)
    return None if folder is None else base_of(str(folder))[1]


def base_of(loaded_from: str) -> tuple[str, str | None]:
    """Hub id and commit of a directory of the hub's cache; another directory is its own name.

    >>> base_of("/cache/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/895c3a4")
    ('Qwen/Qwen2-VL-2B-Instruct', '895c3a4')
    """
    if cached := _CACHED.search(Path(loaded_from).as_posix()):
        owner, name, commit = cached.groups()
        return (f"{owner}/{name}" if name else owner), commit
    return ("embedded" if Path(loaded_from) == EMBEDDED else str(loaded_from)), None


def _on_disk(path: str, revision: str | None) -> Path | None:
    """A directory with a checkpoint, given or cached; ``None`` if only the hub may have it."""
    folder = EMBEDDED if path == "embedded" else Path(path)
    if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
        return folder
    if path.count("/") != 1 or folder.exists():
        raise MissingWeightsError(f"model.path={path} is no directory with a config.json.\n{_WAYS_ON}")
    cached, fault = _in_cache(path, revision)
    return None if fault else cached


def _in_cache(path: str, revision: str | None) -> tuple[Path | None, str | None]:
    """The cache's snapshot, and what an interrupted download left out of it."""
    try:
        cached = snapshot_download(path, revision=revision, allow_patterns=_FILES, local_files_only=True)
    except LocalEntryNotFoundError:
        return None, "not there"
    folder = Path(cached)
    try:
        check_names(cached, (file.name for file in folder.iterdir()))
        missing = missing_shards(folder)
    except UnusableWeightsError as error:
        return folder, str(error)
    return folder, f"without {', '.join(missing)}" if missing else None


def _files_on_hub(path: str, revision: str | None) -> dict[str, int]:
    """Names and bytes of a checkpoint's files on the hub."""
    _, fault = _in_cache(path, revision)
    cache = f"the hub cache ({constants.HF_HUB_CACHE}: {fault})"
    where = f"{path} is neither a local directory nor complete in {cache}"
    if problem := hub_problem():
        raise MissingWeightsError(f"{where}, and the hub cannot be reached ({problem}).\n{_WAYS_ON}")
    try:
        files = HfApi().model_info(path, revision=revision, files_metadata=True).siblings or []
    except HfHubHTTPError as error:
        raise MissingWeightsError(f"{where}, and the hub says: {error}.\n{_WAYS_ON}") from None
    return {file.rfilename: file.size or 0 for file in files}


def _base(folder: Path) -> tuple[str, str | None] | None:
    """What an adapter stands on, refusing another adapter."""
    base = adapter_base(folder)
    if base and (below := Path(base[0])).is_dir() and adapter_base(below):
        raise UnusableWeightsError(
            f"{folder}: {ADAPTER} names {below} as its base, itself an adapter: merge that one first, with "
            "python -m medvlm_r1.export --merge"
        )
    return base


@contextmanager
def _asked_by(folder: Path) -> Iterator[None]:
    """Say which adapter wanted the weights that are missing."""
    try:
        yield
    except MissingWeightsError as error:
        raise MissingWeightsError(
            f"{folder}: the base of this adapter is missing; write where it is, a path or hub id, as "
            f"base_model_name_or_path into {ADAPTER}.\n{error}"
        ) from None
