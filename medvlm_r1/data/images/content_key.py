"""What determines a picture: the content of its file, what of it is shown, and the code that decodes it."""

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from medvlm_r1.data.images.containers import ParquetImage, ZipImage
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.known_files import KnownFiles
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.sample import ImageFile, ImageHandle

VERSION = 1  # of the decoding code: raise it when the same file would be shown otherwise
_DECODERS = ("pillow", "numpy", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel")


def picture_key(handle: ImageHandle, known: KnownFiles, unread: bool = False) -> str | None:
    """SHA-256 that two handles share only if they load the same picture, and both may.

    Whether a DICOM file may name its patient is part of it, so what was allowed once is not allowed always.

    Args:
        handle: the picture.
        known: digests of files; what is not known yet is read.
        unread: do not read it then.

    Returns:
        ``None`` for a picture that is no file, e.g. a rendered one, and where the file is not there, or
        not known and not read.

    Raises:
        BadRowError: what holds the picture is damaged.
    """
    try:
        content, shown = _content(handle, known, unread)
    except OSError:  # told when the picture is loaded
        return None
    if content is None:
        return None
    return hashlib.sha256(json.dumps([_rules(), content, shown]).encode()).hexdigest()


def _content(handle: ImageHandle, known: KnownFiles, unread: bool) -> tuple[str | list | None, dict]:
    """What the file holds, and what is shown of it."""
    if isinstance(handle, ImageFile):
        return known.digest(handle.path, unread) if handle.path.is_file() else None, {}
    if isinstance(handle, ParquetImage | ZipImage):
        file = handle.path if isinstance(handle, ParquetImage) else handle.archive
        return known.digest_inside(file, handle.name, handle.read, unread), {}
    if isinstance(handle, DicomImage | NiftiImage):
        is_folder = handle.path.is_dir()
        content = _folder(handle.path, known, unread) if is_folder else known.digest(handle.path, unread)
        # nibabel goes by the suffix too
        return content, vars(handle) | {"path": handle.path.suffix.lower(), "format": type(handle).__name__}
    return None, {}


def _folder(folder: Path, known: KnownFiles, unread: bool) -> list[tuple[str, str]] | None:
    """Names too: they order slices that nothing else orders."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    found = [(ascii(file.name), known.digest(file, unread)) for file in files]
    return None if any(digest is None for _, digest in found) else found


@functools.cache
def _rules() -> str:
    """Of this package and of the decoders: either may change what is shown, or refused."""
    return f"{VERSION} {[(name, _version(name)) for name in _DECODERS]}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
