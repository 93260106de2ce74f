"""Locate the files of a published set: a local copy, the hub's cache, or a download from the hub."""

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from medvlm_r1.runs.hub import hub_problem

logger = logging.getLogger(__name__)


def find_set(
    hub_id: str, root: str | Path | None, revision: str, needed: Sequence[str], layout: str = ""
) -> Path:
    """Return the folder of a set: ``root`` itself, or the hub's snapshot in the cache, after a download.

    Args:
        hub_id: id of the data set on the hub.
        root: a local copy; ``None`` uses the cache, then the hub.
        revision: commit, tag or branch on the hub.
        needed: glob patterns of the files, as the hub lays them out.
        layout: description of a local copy, for messages. Default: ``needed``.

    Raises:
        FileNotFoundError: the files are missing; the message says what to put where.
    """
    layout = layout or f"a folder that holds {', '.join(needed)} as they come from {hub_id}"
    if root is not None:
        if not Path(root).exists():
            raise FileNotFoundError(f"data.root={root} does not exist: give {layout}")
        return Path(root)
    fetch = functools.partial(
        huggingface_hub.snapshot_download, hub_id, repo_type="dataset", revision=revision
    )
    try:
        folder = Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        folder = None
    if folder is None or not all(files_of(folder, pattern) for pattern in needed):
        problem = hub_problem()
        if problem is None:
            try:
                folder = Path(fetch(allow_patterns=list(needed)))
            except OSError as error:  # every error of the hub client, and a full disk
                problem = str(error)
        if problem is not None:
            raise FileNotFoundError(
                f"{hub_id} (revision {revision}) is not in the cache and cannot be fetched ({problem}). "
                f"Set data.root=DIR to {layout}; or use the embedded data with data=phantom"
            ) from None
    logger.info("%s: commit %s", hub_id, folder.name)
    return folder


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Return the sorted files of a glob pattern; none if a shard (``-00000-of-00003``) is missing.

    Hidden files do not count: macOS leaves a ``._x.json`` beside an ``x.json`` that it copies.
    """
    files = sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))
    shards = [int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.stem))]
    return files if all(count == len(files) for count in shards) else []


def need_files(folder: Path, *patterns: str) -> list[Path]:
    """Return the files of the first pattern that matches any.

    Raises:
        FileNotFoundError: no pattern matches, or shards are missing.
    """
    for pattern in patterns:
        if files := files_of(folder, pattern):
            return files
    raise FileNotFoundError(f"{folder} holds no complete {' or '.join(patterns)}: set data.root to the set")
