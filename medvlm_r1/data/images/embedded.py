"""Images inside other files: what all share, and images in zip archives.

A handle holds the location of an image; a DataLoader worker reads and decodes that image alone.
"""

import functools
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from medvlm_r1.data.images.decode import ImageFile, decode
from medvlm_r1.data.images.paths import entry_path
from medvlm_r1.data.sample import BadRowError, ImageHandle
from medvlm_r1.runs.shorten import shorten


class EmbeddedImage:
    """An image inside another file."""

    @property
    def name(self) -> str:
        """Stable identifier of the image, used in traces and reports."""
        raise NotImplementedError

    def load(self) -> Image.Image:
        """Read and decode the stored bytes; see :func:`~medvlm_r1.data.images.decode.decode`.

        Raises:
            BadRowError: the file is missing or damaged, or the bytes are no image.
        """
        return decode(io.BytesIO(self.read()), self.name)

    def read(self) -> bytes:
        """Return the stored bytes.

        Raises:
            BadRowError: the file is missing or damaged.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ZipImage(EmbeddedImage):
    """An image inside a zip archive, without unpacking it."""

    archive: Path
    member: str

    def exists(self) -> bool:
        """Whether the archive has the member."""
        return self.member in _opened(self.archive, os.getpid()).NameToInfo

    @property
    def name(self) -> str:
        return f"{self.archive.as_posix()}/{self.member}"

    def read(self) -> bytes:
        try:
            return _opened(self.archive, os.getpid()).read(self.member)
        except KeyError:
            raise BadRowError(f"image {self.name} does not exist") from None
        except (OSError, zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError) as error:
            raise BadRowError(f"image {self.name} cannot be read ({error})") from error


# An archive may list 100,000 members, so each process reads the list once. A forked worker must not share its
# parent's open file: both would move its position.
@functools.lru_cache(maxsize=8)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


class ImageStore:
    """A folder of images, or a zip archive of one: the first of ``paths`` that exists.

    The relative paths of rows start from it. Paths in an archive may equal those of the rows, have one more
    parent folder, or lack the first folder.

    Raises:
        FileNotFoundError: no path exists.
        BadRowError: the archive is damaged.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.path = next((path for path in map(Path, paths) if path.exists()), Path(paths[0]))
        if not self.path.exists():
            raise FileNotFoundError(f"images {self.path} do not exist: give a folder or a .zip of them")
        self._members: frozenset[str] | None = None
        if self.path.is_file():
            try:
                self._members = frozenset(_opened(self.path, os.getpid()).namelist())
            except (OSError, zipfile.BadZipFile) as error:
                raise BadRowError(
                    f"{self.path} is damaged ({error}): fetch it again; or give a folder or a zip archive of "
                    "images"
                ) from error
            self._tops = sorted({name.partition("/")[0] for name in self._members if "/" in name})

    def handle(self, relative: str) -> ImageHandle:
        """Return a handle of the image at this path, without checking that it exists.

        Raises:
            BadRowError: the path leaves the folder. Symbolic links may: the hub's cache consists of them.
        """
        relative = entry_path(relative)
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            raise BadRowError(f"image {shorten(relative)} lies outside {self.path}: correct the data file")
        if self._members is None:
            return ImageFile(self.path / relative)
        names = [relative, *(f"{top}/{relative}" for top in self._tops), relative.partition("/")[2]]
        return ZipImage(self.path, next((name for name in names if name in self._members), relative))
