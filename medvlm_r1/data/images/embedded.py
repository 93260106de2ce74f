"""Images inside Parquet files and zip archives.

A handle holds the location of an image; a DataLoader worker reads and decodes that image alone.
"""

import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from medvlm_r1.data.images.decode import ImageFile, decode
from medvlm_r1.data.images.paths import entry_path
from medvlm_r1.data.sample import BadRowError, ImageHandle
from medvlm_r1.runs.shorten import shorten

_BATCH = 32  # rows in memory at a time


class EmbeddedImage:
    """An image inside another file."""

    name: str

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
class ParquetImage(EmbeddedImage):
    """An image in a Parquet file, embedded by the library ``datasets`` as a struct of bytes and path.

    Attributes:
        path, column, row: location of the image; rows are numbered from 0.
        digest: SHA-256 of its bytes when the file was first read.
    """

    path: Path
    column: str
    row: int
    digest: str = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.path.as_posix()}/{self.row}/{self.column}"

    def read(self) -> bytes:
        try:
            return self._bytes()
        except (OSError, pyarrow.ArrowException, IndexError) as error:
            raise BadRowError(f"image {self.name} cannot be read ({error})") from error

    def _bytes(self) -> bytes:
        """Read the pages up to this row."""
        with pyarrow.parquet.ParquetFile(self.path) as file:
            if self.row >= file.metadata.num_rows:
                raise IndexError(f"it has {file.metadata.num_rows} rows")
            left, group = self.row, 0
            while left >= (size := file.metadata.row_group(group).num_rows):
                left, group = left - size, group + 1
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[self.column]):
                if left < batch.num_rows:
                    break
                left -= batch.num_rows
            return batch.column(0)[left]["bytes"].as_py()


class ParquetRows:
    """Reader of Parquet files with embedded images.

    If an image occurs several times, in any row or file, all rows get the handle of its first occurrence:
    equal bytes are one image and one image group.

    Args:
        columns: the columns that hold images; they may be empty in a row.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self._first: dict[str, ParquetImage] = {}

    def read(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the content of every row, with a :class:`ParquetImage` or ``None`` per image.

        Raises:
            BadRowError: the file is unreadable, or lacks an image column.
        """
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                if missing := sorted(set(self.columns) - set(file.schema_arrow.names)):
                    raise BadRowError(
                        f"{path} has no column {missing[0]!r}: it has {', '.join(file.schema_arrow.names)}"
                    )
                for batch in file.iter_batches(_BATCH):
                    for row in batch.to_pylist():
                        row |= {column: self._handle(path, column, number, row) for column in self.columns}
                        yield number, row
                        number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise BadRowError(f"{path} is no readable Parquet file ({error}): fetch it again") from error

    def _handle(self, path: Path, column: str, number: int, row: dict[str, Any]) -> ParquetImage | None:
        data = (row[column] or {}).get("bytes")
        if data is None:
            return None
        digest = hashlib.sha256(data).hexdigest()
        return self._first.setdefault(digest, ParquetImage(path, column, number, digest))


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
