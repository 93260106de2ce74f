"""Locate HuatuoGPT-Vision's evaluation bundle: a local copy, the hub's cache, or a download from the hub.

The bundle (hub id ``FreedomIntelligence/Medical_Multimodal_Evaluation_Data``, Apache-2.0) is one JSON
array and one ``images.zip``; the image paths of its rows start with ``images/``.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet
from filelock import FileLock

from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.digest_cache import cache_folder
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.data.sources.locate import files_of, find_set
from medvlm_r1.data.sources.unzip import unzip

logger = logging.getLogger(__name__)

HUB_ID = "FreedomIntelligence/Medical_Multimodal_Evaluation_Data"
ROWS = "medical_multimodel_evaluation_data.json"  # the bundle's spelling
IMAGES = "images.zip"

LAYOUT = f"""a folder that holds
    {ROWS}  (or data/*.parquet, or test*.json)
    images/  (or {IMAGES})
as they come from {HUB_ID}"""
_ROW_FILES = (ROWS, "data/*.parquet", "*.parquet", "test*.json", "test*.jsonl")


def find_bundle(root: str | Path | None, revision: str, with_images: bool) -> Path:
    """Return the folder of the bundle; see :func:`~medvlm_r1.data.sources.locate.find_set`."""
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"data.root={root} is no folder: give {LAYOUT}")
    return find_set(HUB_ID, root, revision, (ROWS, IMAGES) if with_images else (ROWS,), LAYOUT)


def bundle_rows(root: Path) -> tuple[Path, list[Any]]:
    """Return the file that messages name, and all rows of the bundle in order.

    Raises:
        FileNotFoundError: the folder has no file of rows.
        BadRowError: the file cannot be read.
    """
    files = next(filter(None, (files_of(root, pattern) for pattern in _ROW_FILES)), None)
    if files is None:
        raise FileNotFoundError(f"data.root={root} holds no rows: give {LAYOUT}")
    if files[0].suffix != ".parquet":
        return files[0], read_json(files[0])
    try:
        return files[0], [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    except (OSError, pyarrow.ArrowException) as error:
        raise BadRowError(f"{files[0].parent} has unreadable Parquet ({error}): copy it again") from error


def bundle_images(root: Path, cache: str | Path | None = None) -> Path:
    """Return the folder that image paths such as ``images/brain000001.png`` start from.

    Unpacks ``images.zip`` once into ``cache`` (default: ``$HF_HOME/medvlm_r1``).

    Raises:
        FileNotFoundError: there are neither images nor an archive.
        BadRowError: the archive is damaged or unsafe.
    """
    if (root / "images").is_dir():
        return root
    archive = root / IMAGES
    if not archive.is_file():
        raise FileNotFoundError(f"{root} holds neither images/ nor {IMAGES}: give {LAYOUT}")
    status = archive.stat()
    key = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = Path(cache or cache_folder()) / f"images-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # the ranks of a run arrive together
        if not target.is_dir():
            logger.info("Unpacking %s into %s", archive, target)
            unzip(archive, target, below="images")
    tops = [folder.parent for folder in target.rglob("images") if folder.is_dir()]
    return min(tops, key=lambda top: len(top.parts))
