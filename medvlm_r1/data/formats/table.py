"""Questions in a table of any layout, with options or open (``conf/data/table.yaml``)."""

import functools
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from medvlm_r1.data.formats.columns import ROLES, Columns, nearest_name
from medvlm_r1.data.formats.mcq_row import MODALITIES, image_handles_of, modality_of, read_row
from medvlm_r1.data.formats.options import answer_letter, answer_text, letter_in, list_in_text, option_texts
from medvlm_r1.data.formats.question_file import FileSplit, QuestionFile, plain_stem, test_files
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import PARQUET, read_table
from medvlm_r1.data.formats.values import id_or_none, text_or_none
from medvlm_r1.data.images.resolve import ImageRoot, with_settings
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample, keep_images
from medvlm_r1.data.sources.fields import Include, includes
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.shorten import clip, shorten

logger = logging.getLogger(__name__)


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
    questions: Include = "all",
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
    wanted = {
        part: RowFilter(where) & RowFilter(own, f"data.{part}_where")
        for part, own in (("train", train_where), ("test", test_where))
    }
    # A constant modality holds for training; a test set named after a modality has that one.
    constant = isinstance(columns.modality, Mapping) and "value" in columns.modality
    tests = {
        name: read(
            path,
            name=name,
            modality=name if constant and name in MODALITIES else None,
            where=wanted["test"],
        )
        for name, path in test_files(test).items()
    }
    return FileSplit(**split).questions(functools.partial(read, where=wanted["train"]), train, tests)


class Table(QuestionFile):
    """Questions of one JSON, JSONL, CSV or Parquet file.

    Args:
        path: the file; its suffix gives the format. Rows are numbered from 0, in CSV below the header.
        columns: which column holds what.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: modality of every row, instead of the column's.
        delimiter, encoding: of CSV; see :func:`~medvlm_r1.data.formats.csv_rows.read_csv`.
        where: the rows to use. Default: all.
        questions: use those with options (``closed``), without (``open``) or ``all``.
        name, n, rows: as for :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.

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
        questions: Include = "all",
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        path, where = Path(path), where or RowFilter()
        wanted = {f"data.columns.{role}": names for role, names in columns.named.items()}
        wanted["data.where"] = list(where.wanted)
        read = {name for names in wanted.values() for name in names}
        table_rows = read_table(path, delimiter, encoding, read, columns.named.get("image", ()))
        _check_columns(path, table_rows, wanted)
        numbered = where.select(path, table_rows)
        source = plain_stem(path)
        root = ImageRoot(path.parent if images is None else images, rows.follow_links, volumes=rows.volumes)
        left_out = Counter({"data.where": len(table_rows) - len(numbered)})

        def parse(row: Any, id: str) -> VQASample | None:
            sample = read_table_row(row, id, columns, name or source, source, root, modality)
            if includes(questions, sample.is_open):
                return sample
            left_out[f"data.questions={questions}"] += 1
            return None

        includes(questions, is_open=False)  # an unknown value is an error whatever the rows
        super().__init__(path, numbered, parse, name, n, rows)
        for key, count in left_out.items():
            if count:
                logger.info("%s: %d of %d rows left out by %s", path, count, len(table_rows), key)


def _check_columns(path: Path, rows: list, wanted: Mapping[str, list[str]]) -> None:
    """Check that the file has the wanted columns, given by the keys that name them."""
    present = set().union(*(row.keys() for row in rows if isinstance(row, dict)))
    missing = [(key, name) for key, names in wanted.items() for name in names if name not in present]
    if not present or not missing:
        return
    key, column = missing[0]
    existing = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    if path.suffix.lower() in PARQUET:  # the others were not read
        existing = pyarrow.parquet.read_schema(path).names
    near = nearest_name(column, existing)
    hint = f"did you mean {shorten(near)}? " if near else ""
    if any(sign in name for name in existing for sign in ";\t") and path.suffix.lower() not in PARQUET:
        hint += "Its names hold other delimiters: set data.delimiter. "
    names = clip(", ".join(map(str, existing)), 500)
    raise BadRowError(f"{path} has no column {shorten(column)} ({key}): {hint}Its columns are {names}")


def read_table_row(
    row: Any, id: str, columns: Columns, name: str, source: str, root: ImageRoot, modality: str | None
) -> VQASample:
    """Parse one row: convert it to the papers' schema, then check it like theirs."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {shorten(row)}, not an object with one key a column")
    images = _entries(row, columns)
    _, handles = image_handles_of(images, root)
    with keep_images(handles):
        value = {role: _value(row, columns, role) for role in ROLES if role != "image"}
        value["image"] = images
        for role in ("image", "question", "answer", *(() if modality else ("modality",))):
            if value[role] is None:
                raise BadRowError(f"has no {role} (column {columns.names(role)}): fill it in")
        options = option_texts(value["options"], columns.separator)
        converted = {
            "image": images,
            "question": value["question"]
            if isinstance(value["question"], str)
            else text_or_none(value["question"]),
            "options": options,
            "qtype": value["question_type"],
            "group": value["group"],
        }
        if options:
            converted["solution"] = _letter(value["answer"], columns, options)
        else:
            converted["answer"] = _open_answer(value["answer"], columns)
        if not modality:
            remedy = "give it with data.columns.modality={column: C, map: {SPELLING: ct}}, or {value: ct}"
            what = f"modality (column {columns.names('modality')})"
            modality = modality_of(value["modality"], what, remedy)
        if (own := id_or_none(value["id"])) is not None:
            id = f"{name}-{own}"
        return read_row(converted, id, source, root, modality, may_be_open=True)


def _value(row: dict, columns: Columns, role: str) -> Any:
    try:
        return columns.value(row, role)
    except BadRowError as error:
        if "bytes" in str(error):
            raise BadRowError(f"column {columns.names(role)} {error}") from None
        raise


def _entries(row: dict, columns: Columns) -> list[Any] | None:
    """Return the image entries of a row, with the settings of its columns; ``None`` if it has no image."""
    image = _value(row, columns, "image")
    if image is None:
        return None
    if isinstance(image, str):
        parsed = list_in_text(image)  # None e.g. for a file named "[1].png"
        separator = columns.separator
        parts = image.split(separator) if separator and separator in image else [image]
        image = (
            parsed if parsed is not None else [part.strip() for part in parts] if len(parts) > 1 else parts
        )
    elif hasattr(image, "tolist"):
        image = image.tolist()
    entries = list(image) if isinstance(image, list | tuple) else [image]
    settings = (
        _value(row, columns, role) if getattr(columns, role) else None for role in ("slice", "window")
    )
    slice, window = settings
    return [with_settings(entry, slice, window) for entry in entries]


def _open_answer(answer: Any, columns: Columns) -> str | None:
    if columns.answer_is != "text":
        raise BadRowError(
            f"has no options (column {columns.names('options')}), but data.columns.answer_is="
            f"{columns.answer_is} needs them: fill them in, or leave such rows out with data.where"
        )
    return answer_text(answer)


def _letter(answer: Any, columns: Columns, options: list[str]) -> str:
    n, column = len(options), columns.names("answer")
    text = answer_text(answer)
    if columns.answer_is == "text":
        if letter_in(text) in tuple(LETTERS[:n]):
            return answer_letter(
                answer, options, "give an option's text, or set data.columns.answer_is=letter"
            )
        if text and text.isdecimal():
            return answer_letter(
                answer, options, "give an option's text, or set data.columns.answer_is=index"
            )
        return answer_letter(answer, options)
    if columns.answer_is == "letter":
        if (letter := letter_in(text)) in tuple(LETTERS[:n]):
            return letter
        raise BadRowError(
            f"{column} is {shorten(answer)}: give one of the letters {', '.join(LETTERS[:n])} "
            "(data.columns.answer_is=letter)"
        )
    first = 0 if columns.answer_is == "index" else 1
    number = id_or_none(text)
    position = int(number) - first if number and number.isdecimal() and len(number) < 4 else -1
    if not 0 <= position < n:
        raise BadRowError(
            f"{column} is {shorten(answer)}: give a number from {first} to {n - 1 + first} "
            f"(data.columns.answer_is={columns.answer_is})"
        )
    return LETTERS[position]
