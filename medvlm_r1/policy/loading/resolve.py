"""Find a checkpoint, and check that this machine can run it, before the run begins."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

import medvlm_r1
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
EMBEDDED = Path(medvlm_r1.__file__).parent / "tiny"
GPU_BYTES = 1_000_000_000  # larger weights need a GPU: 500 M parameters in bf16
_SMALL_FILES = ["*.json", "*.txt", "*.jinja"]
_FILES = [*_SMALL_FILES, "*.safetensors"]
_TINY = "take the embedded model: model=tiny data=phantom"
_REMEDIES = f"Give a local copy with model.path=/path/to/checkpoint, or {_TINY}"


class MissingWeightsError(FileNotFoundError):
    """No weights at the path, in the cache or on the hub."""


class MissingGPUError(RuntimeError):
    """The weights need a GPU and none is visible."""


def check_weights(path: str, revision: str | None, accelerator: str) -> None:
    """Check within seconds, before any download, that a model can be loaded and run.

    Args:
        path: a local directory (with an adapter, its base is checked too), a hub id, or ``embedded``.
        revision: commit, tag or branch on the hub.
        accelerator: of the trainer; ``cpu`` allows large weights without a GPU.

    Raises:
        MissingWeightsError: no checkpoint at the path, in the cache, or on the hub.
        UnusableWeightsError: the checkpoint cannot be loaded.
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
            with _naming_adapter(folder):
                check_weights(*base, accelerator)
    if size > GPU_BYTES and accelerator != "cpu" and not torch.cuda.is_available():
        raise MissingGPUError(
            f"{path} has {size / 1e9:.1f} GB of weights, and no GPU is visible.\nRun it on a machine "
            f"with a GPU (trainer.accelerator=cpu runs it here, slowly), or {_TINY}"
        )


def find_weights(path: str, revision: str | None = None) -> Path:
    """Return the local directory of a checkpoint: ``path`` itself, the cache's, or a download from the hub.

    Raises:
        MissingWeightsError, UnusableWeightsError: see :func:`check_weights`.
    """
    folder = _on_disk(path, revision)
    if folder is None:
        check_names(path, _files_on_hub(path, revision))
        # The small files first: an error for another family comes before the download of its weights.
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_SMALL_FILES))
        check_config(folder)
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))
    check_checkpoint(folder)
    return folder


def find_base(folder: Path) -> Path | None:
    """Return the local directory of an adapter's base; ``None`` for a full model.

    Raises:
        MissingWeightsError, UnusableWeightsError: see :func:`check_weights`; or the base is an adapter.
    """
    if (base := _base(folder)) is None:
        return None
    with _naming_adapter(folder):
        return find_weights(*base)


def loaded_commit(path: str, revision: str | None = None) -> str | None:
    """Return the commit (40 hexadecimal digits) of a checkpoint in the hub's cache, else ``None``."""
    folder = _on_disk(path, revision)
    return None if folder is None else base_of(str(folder))[1]


def base_of(loaded_from: str) -> tuple[str, str | None]:
    """Return hub id and commit of a directory in the hub's cache; for another one, its path and ``None``.

    >>> base_of("/cache/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/895c3a4")
    ('Qwen/Qwen2-VL-2B-Instruct', '895c3a4')
    """
    if cached := _CACHED.search(Path(loaded_from).as_posix()):
        owner, name, commit = cached.groups()
        return (f"{owner}/{name}" if name else owner), commit
    return ("embedded" if Path(loaded_from) == EMBEDDED else str(loaded_from)), None


def _on_disk(path: str, revision: str | None) -> Path | None:
    """A directory with a checkpoint, local or cached; ``None`` if only the hub may have it."""
    folder = EMBEDDED if path == "embedded" else Path(path)
    if (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
        return folder
    if path.count("/") != 1 or folder.exists():
        raise MissingWeightsError(f"model.path={path} is no directory with a config.json.\n{_REMEDIES}")
    cached, problem = _in_cache(path, revision)
    return None if problem else cached


def _in_cache(path: str, revision: str | None) -> tuple[Path | None, str | None]:
    """Snapshot in the hub's cache, and why it is missing or incomplete."""
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
    """Names and sizes in bytes of a checkpoint's files on the hub."""
    _, reason = _in_cache(path, revision)
    cache = f"the hub cache ({constants.HF_HUB_CACHE}: {reason})"
    where = f"{path} is neither a local directory nor complete in {cache}"
    if problem := hub_problem():
        raise MissingWeightsError(f"{where}, and the hub cannot be reached ({problem}).\n{_REMEDIES}")
    try:
        files = HfApi().model_info(path, revision=revision, files_metadata=True).siblings or []
    except HfHubHTTPError as error:
        raise MissingWeightsError(f"{where}, and the hub answers: {error}.\n{_REMEDIES}") from None
    return {file.rfilename: file.size or 0 for file in files}


def _base(folder: Path) -> tuple[str, str | None] | None:
    """Path and revision of an adapter's base; an error if that is an adapter too."""
    base = adapter_base(folder)
    if base and (below := Path(base[0])).is_dir() and adapter_base(below):
        raise UnusableWeightsError(
            f"{folder}: {ADAPTER} names {below} as its base, itself an adapter: merge that one first, with "
            "medvlm-r1 export --merge"
        )
    return base


@contextmanager
def _naming_adapter(folder: Path) -> Iterator[None]:
    """Name the adapter in an error about its base."""
    try:
        yield
    except MissingWeightsError as error:
        raise MissingWeightsError(
            f"{folder}: the base of this adapter is missing; write its path or hub id as "
            f"base_model_name_or_path into {ADAPTER}.\n{error}"
        ) from None
