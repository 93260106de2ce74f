"""Images in the Arrow files that the library ``datasets`` maps into memory."""

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow

from medvlm_r1.data.images.embedded import EmbeddedImage
from medvlm_r1.data.sample import BadRowError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class ArrowImage(EmbeddedImage):
    """An image whose bytes are in an Arrow file of a data set; a handle has some 200 bytes.

    A process maps the file into memory on its first image. Reading an image reads its bytes alone.

    Attributes:
        name: data set, split, row and column, e.g. ``ORG/NAME/train/12/image``.
        file: the Arrow file, in the cache of ``datasets`` or a folder of ``save_to_disk``.
        row: number of the row in that file, from 0.
        place: the column, then the fields and list positions below it.
        digest: SHA-256 of the bytes when the file was first read.
    """

    name: str = field(compare=False)
    file: str
    row: int
    place: tuple[str | int, ...]
    digest: str = field(compare=False)

    def read(self) -> bytes:
        column, *steps = self.place
        try:
            value = open_arrow(self.file, os.getpid())[self.row].column(column)[0]
            for step in steps:
                value = value[step]
            return image_buffer(value).to_pybytes()
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
def open_arrow(file: str, process: int) -> "datasets.Dataset":
    """Return the rows of an Arrow file as Arrow tables, mapped into memory; nothing is decoded."""
    import datasets

    return datasets.Dataset.from_file(file).with_format("arrow")
