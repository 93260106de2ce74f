"""Resolve a row's ``image`` entry, a path or an object with a path and settings, to image handles."""

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image

from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.dicom_header import is_dicom
from medvlm_r1.data.images.embedded import ImageStore, ZipImage
from medvlm_r1.data.images.nifti import SUFFIXES, NiftiImage
from medvlm_r1.data.images.paths import entry_path, other_forms
from medvlm_r1.data.images.volume import Volumes, picks, require
from medvlm_r1.data.sample import BadRowError, ImageHandle
from medvlm_r1.runs.shorten import shorten

_DICOM_SUFFIXES = (".dcm", ".dicom")
# Settings that a row may have, by format.
_SETTINGS = {
    "plain image": ("frame",),
    "DICOM": ("slice", "slices", "volume", "window", "allow_identifying"),
    "NIfTI": ("slice", "slices", "plane", "volume", "range", "percentiles"),
}


class ImageRoot:
    """A folder, or a zip archive of one, that the image paths of a data file start from, and may not leave.

    Args:
        folder: the folder or the archive; see :class:`~medvlm_r1.data.images.embedded.ImageStore`.
        follow_links: accept images outside ``folder``, reached by ``..``, an absolute path or a link.
        key: the setting that names the folder, for messages.
        volumes: how DICOM and NIfTI files are shown where an entry does not set it.
    """

    def __init__(
        self,
        folder: str | Path,
        follow_links: bool = False,
        key: str = "data.images",
        volumes: Volumes | None = None,
    ) -> None:
        self.folder, self.follow_links, self.key = Path(folder), follow_links, key
        self.volumes = volumes or Volumes()
        self._real, self._absolute = os.path.realpath(folder), os.path.abspath(folder)
        self._archive = ImageStore(folder) if self.folder.is_file() else None
        self._parents: dict[str, str] = {}
        # caches, since many questions may show one image
        self._identities: dict[str, str] = {}
        self._handles: dict[str, tuple[ImageHandle, ...]] = {}

    def images(self, entry: Any) -> tuple[ImageHandle, ...]:
        """Return the images of an entry, a path or an object; see :func:`image_handles`.

        Does not check that the files exist.

        Raises:
            BadRowError: a path contains a NUL character or leaves the folder, or a setting is invalid.
        """
        self.identity(entry)
        if isinstance(entry, str) and entry in self._handles:
            return self._handles[entry]
        given, path = entry, self._spelling(entry_path(entry))
        entry = {**entry, "path": path} if isinstance(entry, dict) else path
        if self._archive is None:
            images = tuple(image_handles(entry, self.folder, self.volumes))
        else:
            images = (self._member(self._archive, entry),)
        if isinstance(given, str):
            self._handles[given] = images
        return images

    def identity(self, entry: Any) -> str:
        """Return the file name and a hash of the real path: two folders may both have an ``images/1.png``."""
        path = entry_path(entry)
        if path not in self._identities:
            self._identities[path] = self._checked_identity(self._spelling(path))
        return self._identities[path]

    def _spelling(self, path: str) -> str:
        """Return the path, or its other form of accented letters if that is the one that exists."""
        forms = other_forms(path)
        for form in (path, *forms) if forms else ():
            file = self.folder / form if self._archive is None else self._archive.handle(form)
            if isinstance(file, Path | ZipImage) and file.exists():
                return form
        return path

    def _checked_identity(self, path: str) -> str:
        if "\0" in path:
            raise BadRowError(f"image {shorten(path)} holds a NUL character: correct the file's name")
        if not path.isprintable() and any("\ud800" <= c <= "\udfff" for c in path):
            raise BadRowError(f"image {shorten(path)} holds an unpaired surrogate: correct the file's name")
        if self._archive is not None:
            member = self._archive.handle(path).name
            return f"{Path(path).name}-{zlib.crc32(os.fsencode(os.path.realpath(member))):08x}"
        file = self.folder / path
        real = self._real_path(file)
        if not self.follow_links:
            remedy = "if you trust the data file, set data.rows.follow_links=true"
            if not _inside(os.path.abspath(file), self._absolute):
                raise BadRowError(
                    f"image {shorten(path)} lies outside the folder that image paths start from, "
                    f"{self.folder}: set {self.key} to a folder above all images and write the paths from "
                    f"there; {remedy}"
                )
            if not _inside(real, self._real):
                raise BadRowError(
                    f"image {shorten(path)} is a symbolic link out of the folder {self.folder}, to {real}: "
                    f"copy the images, or set {self.key} to their real folder; {remedy}"
                )
        return f"{file.name}-{zlib.crc32(os.fsencode(real)):08x}"

    def _member(self, archive: ImageStore, entry: Any) -> ImageHandle:
        """Return an image in the archive, whose DICOM and NIfTI files are not read."""
        path, settings = Path(entry_path(entry)), isinstance(entry, dict) and set(entry) - {"path"}
        if settings or path.name.lower().endswith((*SUFFIXES, *_DICOM_SUFFIXES)):
            what = "has settings" if settings else "is a DICOM or NIfTI file"
            raise BadRowError(
                f"image {shorten(entry)} {what} in an archive, where only other images are read, as a whole: "
                f"unpack {self.folder} and set {self.key} to the folder"
            )
        return archive.handle(path.as_posix())

    def _real_path(self, file: Path) -> str:
        """Return the path without symbolic links; those of its folder are cached."""
        if file.name in ("", "..") or os.path.islink(file):
            return os.path.realpath(file)
        parent, name = os.path.split(file)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], name)


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def with_settings(entry: Any, slice: Any, window: Any) -> Any:
    """Add the slice and window columns of a row to its image entry; the entry's own settings take precedence.

    Args:
        slice: an index from 0, or another value of ``slices``; empty sets nothing. Numbers and lists may be
            text, as in CSV.
        window: a name, or centre and width; empty sets nothing.
    """
    slice, window = _parsed(slice), _parsed(window)
    index = isinstance(slice, int) and not isinstance(slice, bool)
    settings = {"slice" if index else "slices": slice, "window": window}
    settings = {key: value for key, value in settings.items() if value not in (None, "", [])}
    if not settings:
        return entry
    own = entry if isinstance(entry, dict) else {"path": entry}
    if own.keys() & {"slice", "slices"}:
        settings = {key: value for key, value in settings.items() if key == "window"}
    return {**settings, **own}


def _parsed(value: Any) -> Any:
    if isinstance(value, list):
        return [_parsed(part) for part in value]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value.strip()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_image(path: Path) -> bool:
    """Whether a file of a folder is an image, by its suffix, or by DICOM's magic number."""
    return _kind(path) != "plain image" or path.suffix.lower() in Image.registered_extensions()


def is_dicom_file(path: Path) -> bool:
    """Whether :func:`image_handles` reads a file as DICOM."""
    return _kind(path) == "DICOM"


def image_handles(entry: Any, folder: Path, volumes: Volumes) -> Iterator[ImageHandle]:
    """Yield the images of an entry, in order; several if it selects several slices.

    DICOM: folders, the suffixes ``.dcm`` and ``.dicom``, and files with DICOM's magic number and no image
    suffix. NIfTI: ``.nii`` and ``.nii.gz``.

    Args:
        entry: a path, or an object with ``path`` and settings of :class:`Volumes`; ``slice`` is one index.
        volumes: settings where the entry has none.

    Raises:
        BadRowError: a setting is unknown or invalid; the message names value and remedy.
        ValueError: the package that reads the format is not installed.
    """
    path = folder / entry_path(entry)
    kind = _kind(path)
    own = {k: v for k, v in entry.items() if k != "path" and v is not None} if isinstance(entry, dict) else {}
    known = _SETTINGS.get(kind, ())
    for key in own.keys() - known:
        near = get_close_matches(key[:50], known, n=1)
        hint = f"rename it to {near[0]!r}" if near else f"it takes {', '.join(known) or 'none'}"
        raise BadRowError(
            f"image {path} has the setting {shorten(key)}, which a {kind} file does not take: {hint}"
        )
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
    if kind == "plain image":
        yield ImageFile(path, shown.frame)
    elif kind == "DICOM":
        require("pydicom", "dicom")
        for pick in picks(shown.slices):
            yield DicomImage(path, pick, shown.window, shown.allow_identifying, shown.volume)
    else:
        require("nibabel", "nifti")
        for pick in picks(shown.slices):
            yield NiftiImage(path, pick, shown.plane, shown.volume, shown.range, shown.percentiles)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return "NIfTI"
    if name.endswith(_DICOM_SUFFIXES) or path.is_dir():
        return "DICOM"
    try:
        known = path.suffix.lower() in Image.registered_extensions()
        return "DICOM" if not known and path.is_file() and is_dicom(path) else "plain image"
    except OSError:  # load() reports it, as for any other file
        return "plain image"
