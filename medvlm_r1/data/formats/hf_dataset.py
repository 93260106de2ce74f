"""Multiple-choice questions in a Hugging Face data set (``conf/data/hf_dataset.yaml``).

:mod:`~medvlm_r1.data.formats.hf_load` reads hub sets, folders of Parquet, JSON, CSV or images, and folders of
``save_to_disk`` with the library ``datasets``. The package's own readers stay where the library has a cost:

* ``table``, ``mcq_json`` and the JSON and CSV files of published sets: the library infers one type a column
  and refuses the whole file for one odd row; ours name the file, row and line of each, and can skip them.
* zip archives of images: the library unpacks them into its cache, 10.7 GB for OmniMedVQA.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.hf_load import Files, load_splits
from medvlm_r1.data.formats.mapped_rows import MappedRows, need_columns, read_splits, wanted_columns
from medvlm_r1.data.formats.question_file import FileSplit
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.images.arrow import ArrowImage, ArrowRows, all_columns, is_image_column
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
        self.path, self.splits = path.rstrip("/") or path, splits
        self.root = _Root(path, images, rows)
        self._rows = ArrowRows()

    def find(self, spec: str) -> tuple[str, range]:
        """Return the split and the rows of ``train``, ``train[:100]`` or ``train[80%:]``.

        Raises:
            ValueError: there is no such split, or ``spec`` joins several.
        """
        import datasets

        known = {name: len(rows) for name, rows in self.splits.items()}
        name = spec.partition("[")[0]
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise ValueError(f"{self.path} has no split {name!r}: {hint} has {', '.join(known)}")
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
        """Yield number and content of rows; see :meth:`~medvlm_r1.data.images.arrow.ArrowRows.read`."""
        return self._rows.read(self.splits[split], f"{self.path}/{split}", columns, numbers)


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
        split, numbers = splits.find(spec)
        place, wanted = Path(f"{splits.path}[{split}]"), wanted_columns(columns, where)
        features = splits.splits[split].features
        need_columns(place, list(all_columns(features)), wanted)
        for key, names in wanted.items():
            if key != "data.columns.image" and (held := [c for c in names if is_image_column(c, features)]):
                raise BadRowError(f"{place}: {key} is {held[0]!r}, which holds images: name a column of text")
        as_number = columns.named.get("answer", []) if columns.answer_is in ("index", "number") else []
        read = {column: column in as_number for names in wanted.values() for column in names}
        if not len(numbers):
            raise BadRowError(
                f"{splits.path} has no rows {spec!r}: the split has {len(splits.splits[split])}"
            )
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
