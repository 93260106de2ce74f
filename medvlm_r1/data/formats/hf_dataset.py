"""Multiple-choice questions in a Hugging Face data set (``conf/data/hf_dataset.yaml``).

:mod:`~medvlm_r1.data.formats.hf_load` reads hub sets, folders of Parquet, JSON, CSV or images, and folders of
``save_to_disk`` with the library ``datasets``. The package's own readers stay where the library has a cost:

* ``table``, ``mcq_json`` and the JSON and CSV files of published sets: the library infers one type a column
  and refuses the whole file for one odd row; ours name the file, row and line of each, and can skip them.
* ``vqa_rad``, ``path_vqa`` and ``mmmu_med``, Parquet with embedded images: the library first writes them to
  its cache again, uncompressed.
* zip archives of images: the library unpacks them.
"""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pyarrow

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.hf_load import Files, load_splits
from medvlm_r1.data.formats.mapped_rows import MappedRows, need_columns, read_splits, wanted_columns
from medvlm_r1.data.formats.question_file import FileSplit
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.images.arrow import ArrowImage, image_buffer, open_arrow
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import BadRowError, ImageHandle
from medvlm_r1.data.sources.fields import Include
from medvlm_r1.data.splits import Questions

if TYPE_CHECKING:
    import datasets

_BATCH = 256  # rows whose text is in memory at a time


def hf_dataset(
    path: str,
    train: str,
    test: Mapping[Any, str],
    columns: Columns,
    name: str | None = None,
    revision: str = "main",
    files: Files | None = None,
    images: str | None = None,
    where: Mapping[Any, Any] | None = None,
    train_where: Mapping[Any, Any] | None = None,
    test_where: Mapping[Any, Any] | None = None,
    questions: Include = "all",
    rows: RowPolicy = STRICT,
    **split: Any,
) -> Questions:
    """Load questions from the splits of one Hugging Face data set.

    Args:
        path, name, revision, files: the data set; see :func:`~medvlm_r1.data.formats.hf_load.load_splits`.
        train: split of training questions, e.g. ``train`` or ``train[:80%]``.
        test: splits of test questions by test set name.
        columns: which column holds what, in all splits; ``a.b`` is the field ``b`` of the struct ``a``.
        images: folder or archive that image paths start from, where the images are not embedded. Default:
            ``path``.
        where, train_where, test_where, questions: as for :func:`~medvlm_r1.data.formats.table.table`.
        split: see :class:`~medvlm_r1.data.formats.question_file.FileSplit`.
    """
    splits = HFSplits(path, load_splits(path, name, revision, files), images, rows)
    read = functools.partial(HFDataset, splits=splits, columns=columns, questions=questions, rows=rows)
    filters = {"where": where, "train_where": train_where, "test_where": test_where}
    return read_splits(read, train, test, columns, filters, FileSplit(**split))


class HFSplits:
    """The splits of a data set, and its images: equal bytes are one image, in any row or split.

    Args:
        path: the data set, as messages name it.
        splits: memory-mapped rows by split.
        images: folder or archive that image paths start from. Default: ``path``, if it is a folder.
    """

    def __init__(
        self, path: str, splits: "Mapping[str, datasets.Dataset]", images: str | None, rows: RowPolicy
    ) -> None:
        self.path, self.splits = path, splits
        self.root = _Root(path, images, rows)
        self._first: dict[str, ArrowImage] = {}

    def range(self, spec: str) -> tuple[str, range]:
        """Return the split and the rows of ``train``, ``train[:100]`` or ``train[80%:]``.

        Raises:
            ValueError: there is no such split, or ``spec`` joins several.
        """
        import datasets

        known = {name: len(rows) for name, rows in self.splits.items()}
        name = spec.partition("[")[0]
        if name not in known:
            raise ValueError(f"{self.path} has no split {name!r}: it has {', '.join(known)}")
        if spec == name:
            return name, range(known[name])
        try:
            (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute(known)
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"{self.path} has no rows {spec!r} ({error!s:.200}): give e.g. 'train[:80%]'"
            ) from None
        return name, range(part.from_, part.to)

    def read(self, split: str, numbers: range, columns: Mapping[str, bool]) -> Iterator[tuple[int, dict]]:
        """Yield number and content of rows: embedded images are handles, labels are names.

        Decodes nothing.

        Args:
            columns: names of the columns; ``True`` keeps the integers of a ``ClassLabel``.
        """
        rows = self.splits[split]
        place_of = _ArrowFiles(self.path, rows)
        found = {column: _find(column, rows.features) for column in columns}
        tops = sorted({steps[0] for steps, _ in found.values()})
        tables = rows.select_columns(tops).with_format("arrow")
        for first in range(numbers.start, numbers.stop, _BATCH):
            table = tables[first : min(first + _BATCH, numbers.stop)]
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
                        value, handle = table.column(steps[0])[i], self._handle(split, first + i, place_of)
                        row[column] = _images(_below(value, steps[1:]), steps, handle)
                yield first + i, row

    def _handle(
        self, split: str, number: int, place_of: "_ArrowFiles"
    ) -> Callable[[pyarrow.Buffer, tuple], ArrowImage]:
        def handle(buffer: pyarrow.Buffer, place: tuple[str | int, ...]) -> ArrowImage:
            digest = hashlib.sha256(buffer).hexdigest()
            if digest not in self._first:
                name = "/".join(map(str, (self.path, split, number, *place)))
                self._first[digest] = ArrowImage(name, *place_of(number), place, digest)
            return self._first[digest]

        return handle


class HFDataset(MappedRows):
    """Questions of one split.

    Args:
        spec: the split, or rows of it: ``train``, ``train[80%:]``. Rows are numbered from 0 in the whole
            split.
        splits: the data set.
        columns, modality, name, where, questions, n, rows: as for
            :class:`~medvlm_r1.data.formats.mapped_rows.MappedRows`.

    Raises:
        BadRowError: also if the split lacks a column of the mapping.
    """

    def __init__(
        self,
        spec: str,
        splits: HFSplits,
        columns: Columns,
        modality: str | None = None,
        name: str | None = None,
        where: RowFilter | None = None,
        questions: Include = "all",
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        split, numbers = splits.range(spec)
        place, wanted = Path(f"{splits.path}[{split}]"), wanted_columns(columns, where)
        need_columns(place, list(_all_columns(splits.splits[split].features)), wanted)
        as_number = columns.named.get("answer", []) if columns.answer_is in ("index", "number") else []
        read = {column: column in as_number for names in wanted.values() for column in names}
        numbered = list(splits.read(split, numbers, read))
        super().__init__(
            place, numbered, columns, splits.root, modality, name or split, where, questions, n, rows
        )


class _Root(ImageRoot):
    """An ImageRoot that also takes embedded images, and files that the library fetched into its caches."""

    def __init__(self, path: str, images: str | None, rows: RowPolicy) -> None:
        import datasets

        hub, local = huggingface_hub.constants.HF_HUB_CACHE, Path(path).expanduser()
        folder = images or (local if local.is_dir() else local.parent if local.is_file() else hub)
        super().__init__(folder, rows.follow_links, volumes=rows.volumes)
        caches = (hub, datasets.config.HF_DATASETS_CACHE)
        self._caches = [ImageRoot(os.path.abspath(cache), volumes=rows.volumes) for cache in caches]

    def images(self, entry: Any) -> tuple[ImageHandle, ...]:
        if isinstance(entry, ArrowImage):
            return (entry,)
        root = self._of(entry)
        return super().images(entry) if root is self else root.images(entry)

    def identity(self, entry: Any) -> str:
        if isinstance(entry, ArrowImage):
            return entry.digest[:16]
        root = self._of(entry)
        return super().identity(entry) if root is self else root.identity(entry)

    def _of(self, entry: Any) -> ImageRoot:
        path = entry.get("path") if isinstance(entry, dict) else entry
        if isinstance(path, ArrowImage):
            raise BadRowError("has a slice or window, but its image is embedded: leave the column empty")
        if not isinstance(path, str) or not os.path.isabs(path):
            return self
        above = (root for root in self._caches if path.startswith(f"{root.folder}{os.sep}"))
        return next(above, self)


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


def _all_columns(features: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the names of all columns, and of the fields of structs below them."""
    for name, feature in features.items():
        yield f"{above}{name}"
        if isinstance(feature, Mapping):
            yield from _all_columns(feature, f"{above}{name}.")


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
    return binary or isinstance(feature, datasets.Image)


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
