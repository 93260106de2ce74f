"""Load a Hugging Face data set: a folder, a file, the caches, or the hub, as memory-mapped splits.

The library ``datasets`` reads everything and converts it to Arrow files in its cache (``$HF_HOME/datasets``).
Scripts of a data set are never run.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pyarrow
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.hub import hub_problem
from medvlm_r1.runs.shorten import clip

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Splits = Mapping[str, "datasets.Dataset"]
Files = Mapping[str, str | Sequence[str]]

_BUILDERS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".zip": "imagefolder",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(.*)")


def load_splits(
    path: str, name: str | None = None, revision: str = "main", files: Files | None = None
) -> Splits:
    """Return the splits of a data set by name.

    Args:
        path: id on the hub, a folder (of data files, of images, or written by ``save_to_disk``), or a file.
        name: the configuration (subset), where there are several.
        revision: commit, tag or branch on the hub; unused for a folder or a file.
        files: data files by split, as patterns relative to ``path``. Default: by the files' names.

    Raises:
        FileNotFoundError: the set is neither local, nor in a cache, nor on the hub; or shards are missing.
        BadRowError: a file is damaged, or has no format that ``datasets`` reads.
        ValueError: the configuration does not exist, or several exist and none is named.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _from_folder(place, name, files)
    if place.is_file():
        builder = _BUILDERS.get(place.suffix.lower())
        if builder is None:
            raise BadRowError(
                f"data.path={path} has the suffix {place.suffix!r}: give a folder, or one of "
                f"{', '.join(_BUILDERS)}"
            )
        more = {"sep": "\t"} if place.suffix.lower() == ".tsv" else {}
        return _load(builder, path, data_files={"train": str(place.absolute())}, **more)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise FileNotFoundError(
            f"data.path={clip(path)} does not exist: give a folder, a file, or ORG/NAME of the hub"
        )
    return _from_hub(path, name, revision, files)


def load_parquet(path: Path) -> "datasets.Dataset":
    """Return the rows of one Parquet file, converted once into the cache.

    Raises:
        BadRowError: the file is damaged, or the cache cannot be written.
    """
    try:
        return _load("parquet", str(path), data_files={"train": str(path.absolute())})["train"]
    except BadRowError as error:
        raise BadRowError(
            f"{path} is no readable Parquet file ({clip(str(error), 400)}): fetch it again"
        ) from error


def _from_folder(folder: Path, name: str | None, files: Files | None) -> Splits:
    import datasets

    if files is None and (folder / "dataset_dict.json").is_file():
        return _guarded(folder, lambda: datasets.load_from_disk(str(folder), keep_in_memory=False))
    if files is None and (folder / "state.json").is_file():
        whole = _guarded(folder, lambda: datasets.load_from_disk(str(folder), keep_in_memory=False))
        return {str(whole.split or "train"): whole}
    saved = sorted(child for child in folder.iterdir() if (child / "state.json").is_file())
    if files is None and saved:
        return {
            child.name: _guarded(child, lambda c=child: datasets.load_from_disk(str(c), keep_in_memory=False))
            for child in saved
        }
    _need_shards(folder)
    return _load(str(folder.absolute()), str(folder), name=name, data_files=_patterns(files))


def _patterns(files: Files | None) -> dict[str, list[str]] | None:
    if files is None:
        return None
    return {str(split): [named] if isinstance(named, str) else list(named) for split, named in files.items()}


def _need_shards(folder: Path) -> None:
    """Check that of files such as ``train-00000-of-00003.parquet`` all are there."""
    shards: dict[tuple[Path, str, str], tuple[int, set[str]]] = {}
    for file in folder.rglob("*-of-*"):
        if (match := _SHARD.fullmatch(file.name)) and not file.name.startswith("."):
            key = (file.parent, match[1], match[2])
            shards.setdefault(key, (int(match[2]), set()))[1].add(file.name)
    for (parent, stem, _), (count, found) in shards.items():
        if len(found) < count:
            raise FileNotFoundError(
                f"{parent} has {len(found)} of {count} files {stem}-*: copy the set again"
            )


def _from_hub(hub_id: str, name: str | None, revision: str, files: Files | None) -> Splits:
    """Load from the cache of ``datasets``, else from the hub, else from the cache of the hub's client."""
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(
                hub_id, repo_type="dataset", revision=revision, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError):
        snapshot = None
    commit = snapshot.name if snapshot else revision if _COMMIT.fullmatch(revision) else None
    prepared = _prepared(hub_id, commit) if files is None and (commit or revision == "main") else {}
    if (chosen := name or (next(iter(prepared)) if len(prepared) == 1 else "default")) in prepared:
        return _from_cache(hub_id, chosen, prepared[chosen])
    problem = hub_problem()
    if problem is None:
        return _load(hub_id, hub_id, name=name, revision=revision, data_files=_patterns(files))
    if snapshot is not None:
        logger.info("%s: commit %s", hub_id, snapshot.name)
        return _from_folder(snapshot, name, files)
    known = f"; the cache has the configurations {', '.join(prepared)}: set data.name" if prepared else ""
    raise FileNotFoundError(
        f"data.path={hub_id} (revision {revision}) is no folder, is not in the cache and cannot be fetched "
        f"({clip(problem)}){known}. Set data.path=DIR to a copy of its files or to a folder of save_to_disk; "
        "or use the embedded data with data=phantom"
    )


def _prepared(hub_id: str, commit: str | None) -> dict[str, Path]:
    """Return the folders of a commit that an earlier run converted to Arrow, by configuration.

    Without a commit, those of the newest: the library would take them whatever revision is wanted.
    """
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, short = hub_id.split("/")
    top = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(short)])
    # <configuration>/<version>/<commit>/; incomplete ones have a suffix
    found = [
        info.parent
        for info in top.glob(f"*/*/{commit or '*'}/dataset_info.json")
        if _COMMIT.fullmatch(info.parent.name) and _is_whole(info)
    ]
    newest = max(found, key=lambda folder: folder.stat().st_mtime, default=None)
    return {f.parents[1].name: f for f in sorted(found) if newest and f.name == newest.name}


def _from_cache(hub_id: str, name: str, folder: Path) -> Splits:
    from datasets.packaged_modules.cache.cache import Cache

    logger.info("%s, configuration %s: commit %s", hub_id, name, folder.name)
    cache = Cache(
        repo_id=hub_id,
        dataset_name=hub_id.rpartition("/")[2],
        config_name=name,
        version=folder.parent.name,
        hash=folder.name,
    )
    return _guarded(hub_id, cache.as_dataset)


def _is_whole(info: Path) -> bool:
    """Whether a prepared configuration has all of its files: the name of another one has a suffix."""
    try:
        return json.loads(info.read_text(encoding="utf-8"))["config_name"] == info.parents[2].name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _load(path: str, shown: str, **settings: Any) -> Splits:
    import datasets

    settings = {key: value for key, value in settings.items() if value is not None}
    splits = _guarded(shown, lambda: datasets.load_dataset(path, keep_in_memory=False, **settings))
    pyarrow.default_memory_pool().release_unused()  # a conversion reads row groups as a whole
    for origin in next(iter(splits.values())).info.download_checksums or ():
        if match := re.search(r"@([0-9a-f]{40})/", origin):
            logger.info("%s: commit %s", shown, match[1])
            break
    return splits


def _guarded(shown: str | Path, load: Any) -> Any:
    """Call the library; turn its errors into one line that names the data set."""
    import datasets

    try:
        return load()
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException) as error:
        cause = error.__cause__ or error
        raise BadRowError(
            f"data.path={shown} cannot be read ({type(cause).__name__}: {clip(str(cause))}): a file is "
            "damaged, or its rows differ in type: name files of one kind, data.files={train: X}; data=table "
            "names the row of a JSON or CSV file"
        ) from error
    except PermissionError as error:
        raise PermissionError(
            f"{error.filename or datasets.config.HF_DATASETS_CACHE} cannot be written, where data sets are "
            "converted: set the environment variable HF_DATASETS_CACHE to a folder of your own"
        ) from error
    except (FileNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise FileNotFoundError(
            f"data.path={shown} cannot be loaded ({clip(str(error), 400)}): check data.path, data.name, "
            "data.files and data.revision"
        ) from error
    except RuntimeError as error:
        raise BadRowError(
            f"data.path={shown}: {clip(str(error))}. Scripts of a data set are never run: give its data "
            "files, e.g. with data.revision=refs/convert/parquet"
        ) from error
    except ValueError as error:
        message = clip(" ".join(str(error).split()), 600)
        raise ValueError(f"data.path={shown}: {message} (data.name, data.files)") from error
