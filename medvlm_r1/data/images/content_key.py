"""What determines a picture: the content of its file, what of it is shown, and the code that decodes it."""

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.digest_cache import DigestCache, file_digest
from medvlm_r1.data.images.embedded import ParquetImage, ZipImage
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.sample import ImageHandle

VERSION = 1  # of the decoding code: raise it when the same file would be shown otherwise
_DECODERS = ("pillow", "numpy", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel")


def image_key(handle: ImageHandle, known: DigestCache, unread: bool = False) -> str | None:
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


def image_digest(handle: ImageHandle, known: DigestCache | None = None) -> str | None:
    """SHA-256 that two handles share if they show the same picture.

    Args:
        handle: the picture.
        known: asked first, for the digests of files.

    Returns:
        The digest of the file's bytes, so that all slices of a volume share it; for a folder, of its
        files' digests; of size and pixels for a picture that is no file; ``None`` where the file is not
        there.
    """
    digest = (known and known.digest) or file_digest
    if isinstance(handle, ImageFile | DicomImage | NiftiImage):
        if handle.path.is_dir():
            files = sorted(map(str, (digest(path) for path in handle.path.iterdir() if path.is_file())))
            return hashlib.sha256("".join(files).encode()).hexdigest()
        return digest(handle.path) if handle.path.is_file() else None
    picture = handle.load()
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _content(handle: ImageHandle, known: DigestCache, unread: bool) -> tuple[str | list | None, dict]:
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


def _folder(folder: Path, known: DigestCache, unread: bool) -> list[tuple[str, str]] | None:
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
