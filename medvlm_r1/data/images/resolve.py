"""What a row gives as ``image``, turned into handles: a path, or an object with a path and settings."""

import dataclasses
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image

from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.dicom_header import is_dicom
from medvlm_r1.data.images.nifti import SUFFIXES, NiftiImage
from medvlm_r1.data.images.volume import Volumes, picks, require
from medvlm_r1.data.sample import BadRowError, ImageFile, ImageHandle

# What a row may set, by format. Whether patients may be named is for the whole run to say.
_SETTINGS = {
    "DICOM": ("slice", "slices", "window"),
    "NIfTI": ("slice", "slices", "plane", "volume", "range", "percentiles"),
}


def entry_path(entry: Any) -> str:
    """The path of one entry.

    Raises:
        BadRowError: there is none.
    """
    path = entry.get("path") if isinstance(entry, dict) else entry
    if not isinstance(path, str) or not path:
        raise BadRowError(f"image is {entry!r}: give a path, or an object with one as 'path'")
    return path


def with_settings(entry: Any, slice: Any, window: Any) -> Any:
    """An entry with what other columns of its row set; what it sets itself stays.

    Args:
        entry: a path, or an object with ``path`` and settings.
        slice: an index from 0, or any other value of ``slices``; empty sets nothing. Numbers and lists may be
            written as text, as CSV has them.
        window: a name, or centre and width; empty sets nothing.
    """
    slice, window = _written(slice), _written(window)
    index = isinstance(slice, int) and not isinstance(slice, bool)
    given = {"slice": slice} if index else {"slices": slice}
    given = {key: value for key, value in {**given, "window": window}.items() if value not in (None, "", [])}
    if not given:
        return entry
    own = entry if isinstance(entry, dict) else {"path": entry}
    if own.keys() & {"slice", "slices"}:
        given = {key: value for key, value in given.items() if key == "window"}
    return {**given, **own}


def _written(value: Any) -> Any:
    if isinstance(value, list):
        return [_written(part) for part in value]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value.strip()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_image(path: Path) -> bool:
    """Whether a file that nobody named is an image: by its suffix, or as DICOM by its magic."""
    return _kind(path) != "picture" or path.suffix.lower() in Image.registered_extensions()


def is_dicom_file(path: Path) -> bool:
    """Whether a file would be read as DICOM."""
    return _kind(path) == "DICOM"


def image_handles(entry: Any, folder: Path, volumes: Volumes) -> Iterator[ImageHandle]:
    """The pictures of one entry, in order; several where several slices are asked for.

    DICOM goes by the suffixes ``.dcm`` and ``.dicom``, by being a folder, or, behind a suffix that is no
    picture's, by its magic; NIfTI by ``.nii`` and ``.nii.gz``.

    Args:
        entry: a path, or an object with ``path`` and settings of :class:`Volumes`; ``slice`` is one index.
        folder: where paths start from.
        volumes: what holds where the entry sets nothing.

    Raises:
        BadRowError: a setting is unknown or cannot be; the message names value and remedy.
        ValueError: the package that reads the format is not installed.
    """
    path = folder / entry_path(entry)
    kind = _kind(path)
    own = {k: v for k, v in entry.items() if k != "path" and v is not None} if isinstance(entry, dict) else {}
    known = _SETTINGS.get(kind, ())
    for key in own.keys() - known:
        near = get_close_matches(key, known, n=1)
        hint = f"rename it to {near[0]!r}" if near else f"it takes {', '.join(known) or 'none'}"
        raise BadRowError(f"image {path} has the setting {key!r}, which a {kind} file does not take: {hint}")
    if "slice" in own:
        if "slices" in own:
            raise BadRowError(f"image {path} has slice and slices: give one")
        own["slices"] = [own.pop("slice")]
    if own.keys() & {"range", "percentiles"}:
        own = {"range": None, "percentiles": None, **own}
    try:
        shown = dataclasses.replace(volumes, **own) if own else volumes
    except (TypeError, ValueError) as error:
        raise BadRowError(f"image {path}: {error}") from None
    if kind == "picture":
        yield ImageFile(path)
    elif kind == "DICOM":
        require("pydicom", "dicom")
        for pick in picks(shown.slices):
            yield DicomImage(path, pick, shown.window, shown.allow_identifying)
    else:
        require("nibabel", "nifti")
        for pick in picks(shown.slices):
            yield NiftiImage(path, pick, shown.plane, shown.volume, shown.range, shown.percentiles)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return "NIfTI"
    if name.endswith((".dcm", ".dicom")) or path.is_dir():
        return "DICOM"
    try:
        known = path.suffix.lower() in Image.registered_extensions()
        return "DICOM" if not known and path.is_file() and is_dicom(path) else "picture"
    except OSError:  # told when the picture is decoded, as of any other file
        return "picture"
