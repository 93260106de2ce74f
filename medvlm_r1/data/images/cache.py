"""Cache of decoded and resized images on disk, shared by processes and runs.

The key of an entry consists of the image's content key (:mod:`~medvlm_r1.data.images.content_key`) and the
final size; its value is 8-bit pixels without loss. The cache writes each entry to a temporary file and
renames it, so concurrent and killed processes leave no partial entry. It recomputes an entry with a bad
checksum. Without a usable folder, runs only take longer.
"""

import contextlib
import hashlib
import logging
import math
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from filelock import FileLock
from PIL import Image

from medvlm_r1.data.images.content_key import image_key
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.digest_cache import DigestCache, cache_folder
from medvlm_r1.data.sample import ImageHandle

logger = logging.getLogger(__name__)

_MIN_FILE_SIZE = 4096  # bytes; smaller image files decode as fast as a cache lookup
_HEAD = struct.Struct("<8s32sB3xII")  # magic, SHA-256 of name and rest, channels, width, height
_MAGIC = b"medvlmP1"
_HOUR, _DAY = 3600.0, 86400.0
_FULL_SECONDS = 600.0  # after this time, check again whether a full cache has room
_SWEEP_TO = 0.9  # fraction of the limit that remains after a sweep
_UNIT = 4096  # bytes in the cache per byte of the counter file


class ImageCache:
    """A folder of images, readable by its user alone and limited in size.

    Args:
        folder: parent of ``pictures/``, which has mode 0700. Default: :func:`cache_folder`.
        limit: maximum size in GB (1e9 bytes). Beyond it, the least recently used entries are deleted, except
            those used within a day: then the cache stores nothing new, since a data set larger than the
            cache would otherwise replace every entry before its next use.

    Raises:
        ValueError: the limit is not positive.
    """

    def __init__(self, folder: str | Path | None = None, limit: float = 20.0) -> None:
        if not limit > 0:
            raise ValueError(f"image_cache.limit is {limit}: give GB above 0, or image_cache=null")
        self.folder = Path(folder or cache_folder()) / "pictures"
        self.limit = int(limit * 1e9)
        self.known = DigestCache(batch=64)
        self._full_until = 0.0
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # also for an existing folder; fails for another user's
        except OSError as error:
            self._give_up(error)

    def get(
        self, handle: ImageHandle, size: tuple[int | str | None, ...], make: Callable[[], Image.Image]
    ) -> Image.Image:
        """Return the image at its final size, from the cache or from ``make``.

        Args:
            size: everything that determines the final size and the resizing.
            make: loads and resizes the image; returns RGB. Its errors pass.
        """
        off = self._full_until == math.inf or _is_small(handle)
        if off or (key := image_key(handle, self.known)) is None:
            return make()
        name = hashlib.sha256(repr((key, size)).encode()).hexdigest()
        image = self._read(name)
        if image is None:
            image = make()
            if image_key(handle, self.known) == key:  # the file may have changed in between
                self._write(name, image)
        return image

    def _read(self, name: str) -> Image.Image | None:
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data, used = file.read(), os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        if len(data) < _HEAD.size:
            return None
        magic, digest, channels, width, height = _HEAD.unpack_from(data)
        if magic != _MAGIC or digest != _digest(name, data):
            logger.info("%s is damaged: recomputing it", path)
            return None
        if time.time() - used > _HOUR:
            with contextlib.suppress(OSError):
                os.utime(path)
        pixels = pyarrow.decompress(
            memoryview(data)[_HEAD.size :], width * height * channels, codec="zstd", asbytes=True
        )
        return Image.frombytes("RGB" if channels == 3 else "L", (width, height), pixels).convert("RGB")

    def _write(self, name: str, image: Image.Image) -> None:
        values = np.asarray(image)
        grey = (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all()
        channels, values = (1, values[..., 0]) if grey else (3, values)
        pixels = pyarrow.compress(np.ascontiguousarray(values), codec="zstd", asbytes=True)
        blank = _HEAD.pack(_MAGIC, bytes(32), channels, *image.size) + pixels
        data = _HEAD.pack(_MAGIC, _digest(name, blank), channels, *image.size) + pixels
        path = self._path(name)
        try:
            if not self._has_room(len(data)):
                return
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(partial, path)
        except OSError as error:
            self._give_up(error)

    def _has_room(self, size: int) -> bool:
        """Whether the cache has room for so many bytes; if so, count them."""
        if time.monotonic() < self._full_until:
            return False
        counter = self.folder / "size"
        taken = counter.stat().st_size if counter.exists() else self._sweep()
        if (taken + _units(size)) * _UNIT > self.limit:
            taken = self._sweep()
        if (taken + _units(size)) * _UNIT > self.limit:
            self._full_until = time.monotonic() + _FULL_SECONDS
            return False
        with counter.open("ab") as file:  # appends of several processes add up
            file.write(bytes(_units(size)))
        return True

    def _sweep(self) -> int:
        """Delete the least recently used entries if necessary, and temporary files of killed processes.

        Returns:
            Size of the remaining entries, in units.
        """
        with FileLock(self.folder / "sweep.lock"):
            entries, now = [], time.time()
            for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if not path.name.startswith("."):
                    entries.append((status.st_mtime, _units(status.st_size), path))
                elif now - status.st_mtime > _HOUR:
                    path.unlink(missing_ok=True)
            taken = sum(size for _, size, _ in entries)
            if taken * _UNIT > _SWEEP_TO * self.limit:
                for used, size, path in sorted(entries):
                    if taken * _UNIT <= _SWEEP_TO * self.limit or now - used < _DAY:
                        break
                    path.unlink(missing_ok=True)
                    taken -= size
            with (self.folder / "size").open("ab") as file:
                file.truncate(taken)
        return taken

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _give_up(self, error: OSError) -> None:
        """Stop using the cache: full disk, or a folder that is read-only, deleted or another user's."""
        logger.warning("%s: cannot store images (%s); set image_cache=null", self.folder, error)
        self._full_until = math.inf


def _is_small(handle: ImageHandle) -> bool:
    try:
        return isinstance(handle, ImageFile) and handle.path.stat().st_size < _MIN_FILE_SIZE
    except (OSError, ValueError):  # load() reports it
        return True


def _units(size: int) -> int:
    return -(-size // _UNIT)


def _digest(name: str, data: bytes) -> bytes:
    """Return the SHA-256 of the name and all bytes after the digest field: a renamed entry is invalid too."""
    digest = hashlib.sha256(name.encode())
    digest.update(memoryview(data)[len(_MAGIC) + 32 :])
    return digest.digest()
