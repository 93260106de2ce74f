"""Multiple-choice questions in a table of any layout (``conf/data/table.yaml``)."""

import functools
import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow.parquet

from medvlm_r1.data.formats.columns import ROLES, Column, Columns
from medvlm_r1.data.formats.mcq_row import MODALITIES, read_row
from medvlm_r1.data.formats.question_file import FileSplit, QuestionFile, plain_stem
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import PARQUET, read_table
from medvlm_r1.data.images.resolve import ImageRoot, with_settings
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample
from medvlm_r1.data.splits import Questions


def table(
    train: str,
    test: Mapping[str, str],
    columns: Columns,
    images: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8-sig",
    rows: RowPolicy = STRICT,
    **split: Any,
) -> Questions:
    """Load questions from JSON, JSONL, CSV or Parquet files of any layout.

    Args:
        train: file of training questions.
        test: files of test questions by test set name.
        columns: which column holds what, in all files.
        images, delimiter, encoding, rows: see :class:`Table`, also for errors.
        split: see :class:`~medvlm_r1.data.formats.question_file.FileSplit`.
    """
    read = functools.partial(
        Table, columns=columns, images=images, delimiter=delimiter, encoding=encoding, rows=rows
    )
    # A constant modality holds for training; a test set named after a modality has that one.
    constant = isinstance(columns.modality, Mapping)
    tests = {
        name: read(path, name=name, modality=name if constant and name in MODALITIES else None)
        for name, path in test.items()
    }
    return FileSplit(**split).questions(read, train, tests)


class Table(QuestionFile):
    """Questions of one JSON, JSONL, CSV or Parquet file.

    Args:
        path: the file; its suffix gives the format. Rows are numbered from 0, in CSV below the header.
        columns: which column holds what.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: modality of every row, instead of the column's.
        delimiter: of CSV. Default: a comma, in .tsv and .tab a tab.
        encoding: of CSV.
        name, n, rows: as for :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.

    Raises:
        BadRowError: also if the file lacks a column of the mapping.
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
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        path = Path(path)
        wanted = {column for names in columns.named.values() for column in names}
        table_rows = read_table(path, delimiter, encoding, wanted)
        present = set().union(*(row.keys() for row in table_rows if isinstance(row, dict)))
        missing = [(role, c) for role, names in columns.named.items() for c in names if c not in present]
        if present and missing:
            role, column = missing[0]
            existing = _column_names(path, table_rows)
            near = get_close_matches(column, existing, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadRowError(
                f"{path} has no column {column!r} (data.columns.{role}): {hint}Its columns are "
                f"{', '.join(existing)}"
            )
        source = plain_stem(path)
        root = ImageRoot(path.parent if images is None else images, rows.follow_links, volumes=rows.volumes)

        def parse(row: Any, id: str) -> VQASample:
            return read_table_row(row, id, columns, name or source, source, root, modality)

        super().__init__(path, enumerate(table_rows), parse, name, n, rows)


def _column_names(path: Path, rows: list) -> list[str]:
    """Return all column names of the file, including those that were not read."""
    if path.suffix.lower() in PARQUET:
        return pyarrow.parquet.read_schema(path).names
    return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def read_table_row(
    row: Any, id: str, columns: Columns, name: str, source: str, root: ImageRoot, modality: str | None
) -> VQASample:
    """Parse one row: convert it to the papers' schema, then check it like theirs."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object with one key a column")
    value = {role: _value(row, getattr(columns, role)) for role in ROLES}
    for role in ("image", "question", "options", "answer", *(() if modality else ("modality",))):
        if value[role] is None or value[role] == []:
            column = columns.named.get(role, ["value"])
            raise BadRowError(f"has no {role} (column {', '.join(column)}): fill it in")
    options, images = (_listed(value[role], columns.separator) for role in ("options", "image"))
    if isinstance(options, list):
        options = [_text(option) for option in options]
    images = images if isinstance(images, list) else [images]
    converted = {
        "image": [with_settings(entry, value["slice"], value["window"]) for entry in images],
        "question": value["question"],
        "options": options,
        "subset": value["modality"],
        "qtype": value["question_type"],
        "group": value["group"],
    }
    if columns.answer_is == "text":
        converted["answer"] = _text(value["answer"])
    else:
        converted["solution"] = _letter(value["answer"], columns, options)
    if value["id"] is not None:
        id = f"{name}-{value['id']}"
    return read_row(converted, id, source, root, modality)


def _value(row: dict, column: Column | None) -> Any:
    if column is None:
        return None
    if isinstance(column, Mapping):
        return column["value"]
    if isinstance(column, str):
        return _or_none(row.get(column))
    values = [_or_none(row.get(name)) for name in column]
    while values and values[-1] is None:  # a question with fewer options than there are columns
        values.pop()
    return values


def _or_none(value: Any) -> Any:
    """Map empty values to ``None``; pandas writes missing values to Parquet as NaN."""
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _listed(value: Any, separator: str) -> Any:
    if not isinstance(value, str):
        return [value] if isinstance(value, int) else value
    if value.lstrip().startswith(("[", "{")):
        try:
            parts = json.loads(value)
        except ValueError:
            parts = None  # e.g. a file named "[1].png"
        if isinstance(parts, list | dict):
            return parts
    return [part.strip() for part in value.split(separator)] if separator and separator in value else [value]


def _text(value: Any) -> Any:
    """Convert integers to text, as in CSV; :func:`read_row` checks all other types."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _letter(answer: Any, columns: Columns, options: Any) -> str:
    n = len(options) if isinstance(options, list) else 0
    column = ", ".join(columns.named.get("answer", ["value"]))
    if columns.answer_is == "letter":
        letter = answer.strip().upper() if isinstance(answer, str) else ""
        if len(letter) == 1 and letter in LETTERS[:n]:
            return letter
        raise BadRowError(
            f"{column} is {answer!r}: give one of the letters {', '.join(LETTERS[:n])} "
            "(data.columns.answer_is=letter)"
        )
    first = 0 if columns.answer_is == "index" else 1
    try:
        position = int(answer) - first if float(answer) == int(answer) else -1
    except (TypeError, ValueError, OverflowError):
        position = -1
    if not 0 <= position < n or isinstance(answer, bool):
        raise BadRowError(
            f"{column} is {answer!r}: give a number from {first} to {n - 1 + first} "
            f"(data.columns.answer_is={columns.answer_is})"
        )
    return LETTERS[position]
