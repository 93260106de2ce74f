"""Images in the Arrow files that the library ``datasets`` maps into memory, and the rows around them."""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow

from medvlm_r1.data.images.embedded import EmbeddedImage
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import clip

if TYPE_CHECKING:
    import datasets

_BATCH = 256  # rows whose text is in memory at a time


@dataclass(frozen=True)
class ArrowImage(EmbeddedImage):
    """An image whose bytes are in an Arrow file of a data set; a handle has some 200 bytes.

    A process maps the file into memory on its first image. Reading an image reads its bytes alone.

    Attributes:
        data: data set and split, e.g. ``ORG/NAME/train``.
        number: number of the row in the split, from 0.
        file: the Arrow file, in the cache of ``datasets`` or a folder of ``save_to_disk``.
        row: number of the row in that file, from 0.
        place: the column, then the fields and list positions below it.
        digest: SHA-256 of the bytes when the file was first read.
    """

    data: str = field(compare=False)
    number: int = field(compare=False)
    file: str
    row: int
    place: tuple[str | int, ...]
    digest: str = field(compare=False)

    @property
    def name(self) -> str:
        return "/".join(map(str, (self.data, self.number, *self.place)))

    def read(self) -> bytes:
        column, *steps = self.place
        try:
            value = open_arrow(self.file, os.getpid())[self.row].column(column)[0]
            for step in steps:
                value = value[step]
            if (buffer := image_buffer(value)) is None:
                raise LookupError("it is empty there")
            return buffer.to_pybytes()
        except (OSError, pyarrow.ArrowException, LookupError, AttributeError) as error:
            raise BadRowError(
                f"image {self.name} cannot be read from {self.file} ({error!s:.200})"
            ) from error


def image_buffer(value: Any) -> pyarrow.Buffer | None:
    """Return the bytes of an Arrow value without a copy: a struct of bytes and path, or bytes alone."""
    if isinstance(value, pyarrow.StructScalar):
        value = value["bytes"] if value.is_valid else None
    return value.as_buffer() if value is not None and value.is_valid else None


# A forked worker maps the file itself, as for archives.
@functools.lru_cache(maxsize=64)
def open_arrow(file: str, process: int) -> Any:
    """Return the rows of an Arrow file as Arrow tables, mapped into memory; nothing is decoded."""
    import datasets

    return datasets.Dataset.from_file(file).with_format("arrow")


class ArrowRows:
    """Reader of memory-mapped data sets with embedded images: equal bytes are one image.

    If an image occurs several times, in any row or data set, all rows get the handle of its first occurrence.
    """

    def __init__(self) -> None:
        self._first: dict[str, ArrowImage] = {}

    def read(
        self,
        rows: "datasets.Dataset",
        name: str,
        columns: Mapping[str, bool],
        numbers: range | None = None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and content of rows: embedded images are handles, labels are names.

        Decodes nothing, and copies no image.

        Args:
            name: of the data set; begins the names of its images.
            columns: the columns to read, ``a.b`` for the field ``b`` of the struct ``a``; ``True`` keeps the
                integers of a ``ClassLabel``.
            numbers: the rows to read. Default: all.

        Raises:
            BadRowError: a column is missing, or the rows are not in files.
        """
        existing = list(all_columns(rows.features))
        if missing := [column for column in columns if column not in existing]:
            raise BadRowError(f"{name} has no column {missing[0]!r}: it has {clip(', '.join(existing), 500)}")
        place_of = _ArrowFiles(name, rows)
        found = {column: _find(column, rows.features) for column in columns}
        tops = sorted({steps[0] for steps, _ in found.values()})
        tables = rows.select_columns(tops).with_format("arrow")
        numbers = range(len(rows)) if numbers is None else numbers
        for first in range(numbers.start, numbers.stop, _BATCH):
            table: Any = tables[first : min(first + _BATCH, numbers.stop)]  # of pyarrow
            texts = {
                column: table.column(steps[0]).to_pylist()
                for column, (steps, feature) in found.items()
                if not _holds_images(feature)
            }
            for i in range(len(table)):
                row = {}
                for column, (steps, feature) in found.items():
                    if column in texts:
                        row[column] = _named(_below(texts[column][i], steps[1:]), feature, columns[column])
                    else:
                        value = _below(table.column(steps[0])[i], steps[1:])
                        handle = functools.partial(self._handle, name, first + i, place_of)
                        row[column] = _images(value, steps, handle)
                yield first + i, row

    def _handle(
        self,
        name: str,
        number: int,
        place_of: "_ArrowFiles",
        buffer: pyarrow.Buffer,
        place: tuple[str | int, ...],
    ) -> ArrowImage:
        digest = hashlib.sha256(buffer).hexdigest()
        if digest not in self._first:
            self._first[digest] = ArrowImage(name, number, *place_of(number), place, digest)
        return self._first[digest]


class _ArrowFiles:
    """The Arrow files of a split: ``number of a row -> (file, row in it)``."""

    def __init__(self, place: str, rows: "datasets.Dataset") -> None:
        self.files = [file["filename"] for file in rows.cache_files]
        self.ends = list(itertools.accumulate(len(open_arrow(file, os.getpid())) for file in self.files))
        if len(rows) != (self.ends[-1] if self.ends else 0):
            raise BadRowError(
                f"{place} is not in Arrow files as a whole: give a folder that save_to_disk wrote"
            )

    def __call__(self, number: int) -> tuple[str, int]:
        i = bisect.bisect_right(self.ends, number)
        return self.files[i], number - (self.ends[i - 1] if i else 0)


def _find(column: str, features: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Return the steps to a column (``a.b`` is the field ``b`` of the struct ``a``) and its feature."""
    if column in features:
        return (column,), features[column]
    top, _, rest = column.partition(".")
    steps, feature = _find(rest, features[top])
    return (top, *steps), feature


def is_image_column(column: str, features: Mapping[str, Any]) -> bool:
    """Whether a column holds embedded images, or lists of them; ``a.b`` is the field ``b`` of ``a``."""
    return _holds_images(_find(column, features)[1])


def all_columns(features: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the names of all columns, and of the fields of structs below them."""
    for name, feature in features.items():
        yield f"{above}{name}"
        if isinstance(feature, Mapping):
            yield from all_columns(feature, f"{above}{name}.")


def _below(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if value is None or (isinstance(value, pyarrow.Scalar) and not value.is_valid):
            return None
        value = value[step]
    return value


def _holds_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_images(feature.feature)
    binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
    # a struct that another library wrote, without the mark of an image
    plain = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
    return binary or plain or isinstance(feature, datasets.Image)


def _images(value: Any, place: tuple, handle: Callable[[pyarrow.Buffer, tuple], ArrowImage]) -> Any:
    """Return a handle of embedded bytes, the path of a file, a list of such, or ``None``."""
    if value is None or not value.is_valid:
        return None
    if pyarrow.types.is_nested(value.type) and not pyarrow.types.is_struct(value.type):
        parts = (_images(part, (*place, i), handle) for i, part in enumerate(value))
        return [part for part in parts if part is not None]
    if (buffer := image_buffer(value)) is not None:
        return handle(buffer, place)
    return value["path"].as_py() if pyarrow.types.is_struct(value.type) else None


def _named(value: Any, feature: Any, raw: bool) -> Any:
    """Replace the integers of a ClassLabel, or of a list of them, by the labels' names; -1 is no label."""
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_named(part, feature.feature, raw) for part in value]
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
        return None if value < 0 else value if raw else feature.int2str(value)
    return value
