"""Keys that identify an image by its content, the settings that select it, and the decoder versions."""

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from medvlm_r1.data.images.arrow import ArrowImage
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.dicom import DicomImage
from medvlm_r1.data.images.digest_cache import DigestCache, file_digest
from medvlm_r1.data.images.embedded import ZipImage
from medvlm_r1.data.images.nifti import NiftiImage
from medvlm_r1.data.sample import ImageHandle

VERSION = 2  # of the decoding code: increase it when the same file decodes to other pixels
_DECODERS = ("pillow", "numpy", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel")


def image_key(handle: ImageHandle, known: DigestCache, unread: bool = False) -> str | None:
    """Content key: equal only if both handles decode to the same image under the same privacy setting.

    Args:
        known: digests of files; files that it does not know are read.
        unread: do not read them; return ``None``.

    Returns:
        A SHA-256; ``None`` for an image without a file (e.g. a rendered one), or a missing file.

    Raises:
        BadRowError: the Parquet file or archive that holds the image is damaged.
    """
    try:
        content, settings = _content(handle, known, unread)
    except OSError:  # load() reports it
        return None
    if content is None:
        return None
    return hashlib.sha256(json.dumps([_versions(), content, settings]).encode()).hexdigest()


def image_digest(handle: ImageHandle, known: DigestCache | None = None) -> str | None:
    """Digest of the image's source, whatever part of it is shown.

    Returns:
        SHA-256 of the file's bytes, the same for all slices of a volume; of the files' digests for a folder;
        of size and pixels for an image without a file; ``None`` for a missing file.
    """
    digest = (known and known.digest) or file_digest
    if isinstance(handle, ImageFile | DicomImage | NiftiImage):
        if handle.path.is_dir():
            files = sorted(map(str, (digest(path) for path in handle.path.iterdir() if path.is_file())))
            return hashlib.sha256("".join(files).encode()).hexdigest()
        return digest(handle.path) if handle.path.is_file() else None
    image = handle.load()
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _content(handle: ImageHandle, known: DigestCache, unread: bool) -> tuple[str | list | None, dict]:
    """Return the digest of the file, and the settings that select a part of it."""
    if isinstance(handle, ImageFile):
        content = known.digest(handle.path, unread) if handle.path.is_file() else None
        return content, {"frame": handle.frame} if handle.frame else {}
    if isinstance(handle, ArrowImage):
        return handle.digest, {}
    if isinstance(handle, ZipImage):
        return known.digest_inside(handle.archive, handle.name, handle.read, unread), {}
    if isinstance(handle, DicomImage | NiftiImage):
        is_folder = handle.path.is_dir()
        content = _folder(handle.path, known, unread) if is_folder else known.digest(handle.path, unread)
        # nibabel also depends on the suffix
        return content, vars(handle) | {"path": handle.path.suffix.lower(), "format": type(handle).__name__}
    return None, {}


def _folder(folder: Path, known: DigestCache, unread: bool) -> list[tuple[str, str]] | None:
    """Return names and digests of the files: names may determine the order of slices."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    digests = [(ascii(file.name), known.digest(file, unread)) for file in files]
    return None if any(digest is None for _, digest in digests) else digests


@functools.cache
def _versions() -> str:
    """Return the versions of this package's decoding code and of the decoders: both may change the pixels."""
    return f"{VERSION} {[(name, _version(name)) for name in _DECODERS]}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
