"""Pictures as the model takes them, kept on disk: each is decoded and resized once, whoever asks again.

An entry is named by what determines it (:mod:`~medvlm_r1.data.images.content_key` and the final size)
and holds 8-bit pixels without loss. It is written beside and then takes its name, so that processes and
runs may share the folder and be killed at any time; one whose checksum does not fit is made anew. What
goes wrong with the folder costs time alone.
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

_WORTH_KEEPING = 4096  # bytes of a picture file; a smaller one is decoded as soon as its entry is found
_HEAD = struct.Struct("<8s32sB3xII")  # magic, SHA-256 of name and rest, channels, width, height
_MAGIC = b"medvlmP1"
_HOUR, _DAY = 3600.0, 86400.0
_LOOK_AGAIN = 600.0  # seconds after which a full cache may have room again
_SWEPT = 0.9  # share of the limit that is left when it is exceeded
_UNIT = 4096  # bytes in the cache for each byte in the length of the file that counts them


class ImageCache:
    """A folder of pictures, readable by its user alone and bounded in size.

    Args:
        folder: where ``pictures/`` is made, with mode 0700. Default: :func:`cache_folder`.
        limit: GB (1e9 bytes) in all. Beyond it, what was not used for longest goes, unless it was used
            within a day: then nothing new is kept, since going through more pictures than fit, in
            turns, would replace every one before its next use.

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
            self.folder.chmod(0o700)  # one made by hand is closed too; one of somebody else's is not used
        except OSError as error:
            self._give_up(error)

    def get(
        self, handle: ImageHandle, size: tuple[int | str | None, ...], make: Callable[[], Image.Image]
    ) -> Image.Image:
        """The picture at its final size, made where it is not kept.

        Args:
            handle: the picture.
            size: all that determines the final size, and how it is brought to it.
            make: loads and resizes; gives RGB.

        Raises:
            BadRowError: as ``make`` does.
        """
        if self._full_until == math.inf or _is_small(handle):
            return make()
        if (key := image_key(handle, self.known)) is None:
            return make()
        name = hashlib.sha256(repr((key, size)).encode()).hexdigest()
        kept = self._read(name)
        if kept is None:
            kept = make()
            if image_key(handle, self.known) == key:  # the file may have changed meanwhile
                self._write(name, kept)
        return kept

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
            logger.info("%s is damaged: made anew", path)
            return None
        if time.time() - used > _HOUR:
            with contextlib.suppress(OSError):
                os.utime(path)
        pixels = pyarrow.decompress(
            memoryview(data)[_HEAD.size :], width * height * channels, codec="zstd", asbytes=True
        )
        return Image.frombytes("RGB" if channels == 3 else "L", (width, height), pixels).convert("RGB")

    def _write(self, name: str, picture: Image.Image) -> None:
        values = np.asarray(picture)
        grey = (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all()
        channels, values = (1, values[..., 0]) if grey else (3, values)
        pixels = pyarrow.compress(np.ascontiguousarray(values), codec="zstd", asbytes=True)
        blank = _HEAD.pack(_MAGIC, bytes(32), channels, *picture.size) + pixels
        data = _HEAD.pack(_MAGIC, _digest(name, blank), channels, *picture.size) + pixels
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
        """Whether so many bytes may be added; if so, they are counted."""
        if time.monotonic() < self._full_until:
            return False
        counter = self.folder / "size"
        taken = counter.stat().st_size if counter.exists() else self._sweep()
        if (taken + _units(size)) * _UNIT > self.limit:
            taken = self._sweep()
        if (taken + _units(size)) * _UNIT > self.limit:
            self._full_until = time.monotonic() + _LOOK_AGAIN
            return False
        with counter.open("ab") as file:  # appending adds up over processes
            file.write(bytes(_units(size)))
        return True

    def _sweep(self) -> int:
        """Remove what was not used for longest, if that is needed, and what killed processes left.

        Returns:
            What is left, in units.
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
            if taken * _UNIT > _SWEPT * self.limit:
                for used, size, path in sorted(entries):
                    if taken * _UNIT <= _SWEPT * self.limit or now - used < _DAY:
                        break
                    path.unlink(missing_ok=True)
                    taken -= size
            with (self.folder / "size").open("ab") as file:
                file.truncate(taken)
        return taken

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _give_up(self, error: OSError) -> None:
        """A full disk or a folder that is read-only, taken away or somebody else's."""
        logger.warning("%s: cannot store images (%s); set image_cache=null", self.folder, error)
        self._full_until = math.inf


def _is_small(handle: ImageHandle) -> bool:
    try:
        return isinstance(handle, ImageFile) and handle.path.stat().st_size < _WORTH_KEEPING
    except (OSError, ValueError):  # told when it is loaded
        return True


def _units(size: int) -> int:
    return -(-size // _UNIT)


def _digest(name: str, data: bytes) -> bytes:
    """Of all behind the digest's own place, so that an entry under another name does not fit either."""
    whole = hashlib.sha256(name.encode())
    whole.update(memoryview(data)[len(_MAGIC) + 32 :])
    return whole.digest()
