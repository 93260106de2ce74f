"""Questions in a table of any layout, with options or open (``conf/data/table.yaml``)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from medvlm_r1.data.formats.columns import Columns
from medvlm_r1.data.formats.mapped_rows import MappedRows, need_columns, read_splits, wanted_columns
from medvlm_r1.data.formats.question_file import FileSplit
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import PARQUET, read_table
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sources.fields import Include
from medvlm_r1.data.splits import Questions


def table(
    train: str,
    test: Mapping[Any, str],
    columns: Columns,
    images: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8-sig",
    where: Mapping[Any, Any] | None = None,
    train_where: Mapping[Any, Any] | None = None,
    test_where: Mapping[Any, Any] | None = None,
    questions: Include | None = None,
    rows: RowPolicy = STRICT,
    **split: Any,
) -> Questions:
    """Load questions from JSON, JSONL, CSV or Parquet files of any layout.

    A test file with questions of both kinds becomes the test sets ``<name>`` and ``<name>_open``.

    Args:
        train: file of training questions.
        test: files of test questions by test set name.
        columns: which column holds what, in all files.
        where: column -> value, or values, of the rows to use, in all files; see
            :class:`~medvlm_r1.data.formats.row_filter.RowFilter`.
        train_where, test_where: the same for the training file and the test files, which may be one file.
        images, delimiter, encoding, questions, rows: see :class:`Table`, also for errors.
        split: see :class:`~medvlm_r1.data.formats.question_file.FileSplit`.
    """
    read = functools.partial(
        Table,
        columns=columns,
        images=images,
        delimiter=delimiter,
        encoding=encoding,
        questions=questions,
        rows=rows,
    )
    filters = {"where": where, "train_where": train_where, "test_where": test_where}
    return read_splits(read, train, test, columns, filters, FileSplit(**split))


class Table(MappedRows):
    """Questions of one JSON, JSONL, CSV or Parquet file.

    Args:
        path: the file; its suffix gives the format. Rows are numbered from 0, in CSV below the header.
        images: folder that image paths start from. Default: the folder of ``path``.
        delimiter, encoding: of CSV; see :func:`~medvlm_r1.data.formats.csv_rows.read_csv`.
        questions: use those with options (``closed``), without (``open``) or ``all``. With the last two
            the file may lack the column of options; by default all are used, and it may not.
        columns, modality, name, where, n, rows: as for :class:`MappedRows`.

    Raises:
        BadRowError: also if the file lacks a column of the mapping or of ``where``, or no row is used.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Columns,
        images: str | Path | None = None,
        modality: str | None = None,
        name: str | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8-sig",
        where: RowFilter | None = None,
        questions: Include | None = None,
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        path = Path(path)
        wanted = wanted_columns(columns, where)
        read = {name for names in wanted.values() for name in names}
        table_rows = read_table(path, delimiter, encoding, read, columns.named.get("image", ()))
        existing = dict.fromkeys(name for row in table_rows if isinstance(row, dict) for name in row)
        if path.suffix.lower() in PARQUET:  # the others were not read
            existing = pyarrow.parquet.read_schema(path).names
        if questions in ("open", "all"):
            wanted.pop("data.columns.options", None)
        if existing:
            need_columns(path, list(existing), wanted)
        root = ImageRoot(path.parent if images is None else images, rows.follow_links, volumes=rows.volumes)
        numbered = list(enumerate(table_rows))
        super().__init__(path, numbered, columns, root, modality, name, where, questions or "all", n, rows)
