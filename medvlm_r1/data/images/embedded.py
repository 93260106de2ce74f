"""Pictures that are no files of their own: embedded in parquet, or inside an archive.

All are handles: what travels to a DataLoader worker is where the picture is, and the worker reads and
decodes that one.
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
from medvlm_r1.data.sample import BadRowError, ImageHandle

_BATCH = 32  # rows read together: bounds what of a shard is in memory at a time


@dataclass(frozen=True)
class ParquetImage:
    """A picture in a row of a parquet file, as the library ``datasets`` embeds it (struct of bytes, path).

    Attributes:
        path, column, row: where it is; rows count from 0.
        digest: SHA-256 of its bytes, as the file was read first.
    """

    path: Path
    column: str
    row: int
    digest: str = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.path.as_posix()}/{self.row}/{self.column}"

    def load(self) -> Image.Image:
        """Read the pages up to this row, and decode it as :func:`~medvlm_r1.data.images.decode.decode` does.

        Raises:
            BadRowError: the file is gone or damaged, or the bytes are no picture.
        """
        return decode(io.BytesIO(self.read()), self.name)

    def read(self) -> bytes:
        """The picture as it is stored.

        Raises:
            BadRowError: the file is gone or damaged.
        """
        try:
            return self._bytes()
        except (OSError, pyarrow.ArrowException, IndexError) as error:
            raise BadRowError(f"image {self.name} cannot be read ({error})") from error

    def _bytes(self) -> bytes:
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
    """Rows of parquet files with embedded pictures, read in batches.

    A picture that occurs again, in whatever row or file, is given as its first occurrence, so that equal
    bytes are one picture and one image group.

    Args:
        columns: those that hold a picture, or nothing.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self._first: dict[str, ParquetImage] = {}

    def read(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and content of every row, with a :class:`ParquetImage` or ``None`` for each picture.

        Raises:
            BadRowError: the file is unreadable, or lacks a picture's column.
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
            raise BadRowError(f"{path} is no readable parquet ({error}): fetch it again") from error

    def _handle(self, path: Path, column: str, number: int, row: dict[str, Any]) -> ParquetImage | None:
        data = (row[column] or {}).get("bytes")
        if data is None:
            return None
        digest = hashlib.sha256(data).hexdigest()
        return self._first.setdefault(digest, ParquetImage(path, column, number, digest))


@dataclass(frozen=True)
class ZipImage:
    """A picture inside a zip archive, which need not be unpacked."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        return f"{self.archive.as_posix()}/{self.member}"

    def load(self) -> Image.Image:
        """Read the member, and decode it as :func:`~medvlm_r1.data.images.decode.decode` does.

        Raises:
            BadRowError: archive or member is missing or damaged, or the bytes are no picture.
        """
        return decode(io.BytesIO(self.read()), self.name)

    def read(self) -> bytes:
        """The picture as it is stored.

        Raises:
            BadRowError: archive or member is missing or damaged.
        """
        try:
            return _opened(self.archive, os.getpid()).read(self.member)
        except KeyError:
            raise BadRowError(f"image {self.name} does not exist") from None
        except (OSError, zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError) as error:
            raise BadRowError(f"image {self.name} cannot be read ({error})") from error


# An archive's directory may list 100,000 members: it is read once in each process. A forked worker must
# not share its parent's open file, whose position both would move.
@functools.lru_cache(maxsize=8)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


class PictureFolder:
    """Where the relative image paths of rows start from: a folder, or an archive of one.

    An archive may hold the paths as the rows spell them, below one more folder, or without the first one.

    Args:
        path: the folder or the ``.zip``.

    Raises:
        FileNotFoundError: there is neither.
        BadRowError: the archive is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"images {self.path} do not exist: give a folder or a .zip of them")
        self._members: frozenset[str] | None = None
        if self.path.is_file():
            try:
                self._members = frozenset(_opened(self.path, os.getpid()).namelist())
            except (OSError, zipfile.BadZipFile) as error:
                raise BadRowError(f"{self.path} is damaged ({error}): fetch it again") from error
            self._tops = sorted({name.partition("/")[0] for name in self._members if "/" in name})

    def handle(self, relative: str) -> ImageHandle:
        """The picture at this path; whether it exists shows when it is loaded.

        Raises:
            BadRowError: the path leaves the folder. Links are followed: the hub's cache consists of them.
        """
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            raise BadRowError(f"image {relative!r} lies outside {self.path}: correct the data file")
        if self._members is None:
            return ImageFile(self.path / relative)
        places = [relative, *(f"{top}/{relative}" for top in self._tops), relative.partition("/")[2]]
        return ZipImage(self.path, next((p for p in places if p in self._members), relative))

    @classmethod
    def among(cls, *places: Path) -> "PictureFolder":
        """The first of these that exists.

        Raises:
            FileNotFoundError: none does.
        """
        return cls(next((place for place in places if place.exists()), places[0]))
