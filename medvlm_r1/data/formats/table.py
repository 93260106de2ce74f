"""Multiple-choice questions in a table of any layout: a mapping says which column is what."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet

from medvlm_r1.data.formats.mcq_row import MODALITIES, read_row
from medvlm_r1.data.formats.question_file import QuestionFile, plain_stem
from medvlm_r1.data.formats.rows import PARQUET, read_table
from medvlm_r1.data.images.resolve import ImageRoot, with_settings
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample

Column = str | Sequence[str] | Mapping[str, Any]
"""A column's name; several columns whose values make a list; or ``{value: V}``, the same V in every row."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what. Each may also be ``{value: V}``, one value for all rows.

    Attributes:
        image: path of the image, or several; one column or a list of columns. In the place of a path may
            stand an object with ``path`` and settings, in CSV as JSON.
        question: text.
        options: one column with all options, or a list of columns with one each.
        answer: the gold option.
        answer_is: how: its ``text``, its ``letter``, its ``index`` (from 0) or its ``number`` (from 1).
        modality: acquisition modality, in one of the spellings that the papers' files use, or short.
        question_type: e.g. Disease Diagnosis. Default: unknown.
        group: what must not be torn apart by a split, e.g. the patient. Default: the image.
        id: names the question in all records; different in every row. Default: the row's number.
        slice: of a row's DICOM and NIfTI files, an index from 0 or another value of ``slices``. Default, and
            where a row leaves it empty: what :class:`~medvlm_r1.data.images.volume.Volumes` says.
        window: of a row's DICOM files: one column, or two with centre and width. Default: likewise.
        separator: parts several images or options that stand in one field of text; a JSON list in the
            field is understood too.

    Raises:
        ValueError: a column is given as something else.
    """

    image: Column = "image"
    question: Column = "question"
    options: Column = "options"
    answer: Column = "answer"
    answer_is: Literal["text", "letter", "index", "number"] = "text"
    modality: Column = "modality"
    question_type: Column | None = None
    group: Column | None = None
    id: Column | None = None
    slice: Column | None = None
    window: Column | None = None
    separator: str = "|"

    def __post_init__(self) -> None:
        if self.answer_is not in ("text", "letter", "index", "number"):
            raise ValueError(
                f"data.columns.answer_is is {self.answer_is!r}: use 'text', 'letter', 'index' (from 0) or "
                "'number' (from 1)"
            )
        for role in ROLES:
            column = getattr(self, role)
            several = isinstance(column, Sequence) and not isinstance(column, str) and len(column) > 0
            if column is None and role in ("question_type", "group", "id", "slice", "window"):
                continue
            if isinstance(column, Mapping) and set(column) == {"value"}:
                continue
            if isinstance(column, str) or (several and role in LISTS):
                continue
            lists = ", a list of names" if role in LISTS else ""
            raise ValueError(
                f"data.columns.{role} is {column!r}: give a column's name{lists}, or {{value: V}} for one "
                "value in all rows"
            )

    @property
    def named(self) -> dict[str, list[str]]:
        """Names of the columns that are read, by role."""
        found = {}
        for role in ROLES:
            column = getattr(self, role)
            if column is not None and not isinstance(column, Mapping):
                found[role] = [column] if isinstance(column, str) else list(column)
        return found


LISTS = ("image", "options", "window")  # of these a role may have several columns
ROLES = tuple(f.name for f in fields(Columns) if f.name not in ("answer_is", "separator"))


class Table(QuestionFile):
    """Questions of one JSON, JSONL, CSV or Parquet file.

    Args:
        path: the file; its suffix tells the format. Rows count from 0, in CSV below the header.
        columns: which column holds what.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: of every row, instead of the column's.
        name: what sample ids begin with. Default: the file's stem.
        delimiter: of CSV. Default: a comma, in .tsv and .tab a tab.
        encoding: of CSV.
        follow_links: take images outside their folder too; see :class:`ImageRoot`.
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.
        window: ``n``, ``offset``, ``exclude``, ``seed``, ``on_bad_row``, ``check_images`` and ``workers``
            of :class:`QuestionFile`.

    Raises:
        BadRowError: a row, or the whole file, cannot be used, or has no column that the mapping names.
        ValueError: more questions are asked for than there are.
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
        follow_links: bool = False,
        volumes: Volumes | None = None,
        **window: Any,
    ) -> None:
        path = Path(path)
        wanted = {column for names in columns.named.values() for column in names}
        rows = read_table(path, delimiter, encoding, wanted)
        if missing := _missing(rows, columns):
            role, column = missing
            there = _there(path, rows)
            near = get_close_matches(column, there, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadRowError(
                f"{path} has no column {column!r} (data.columns.{role}): {hint}Its columns are "
                f"{', '.join(there)}"
            )
        name = name or plain_stem(path)
        read = functools.partial(
            read_table_row,
            columns=columns,
            name=name,
            source=plain_stem(path),
            root=ImageRoot(path.parent if images is None else images, follow_links, volumes=volumes),
            modality=modality,
        )
        super().__init__(path, enumerate(rows), read, name, **window)


def _there(path: Path, rows: list) -> list[str]:
    """Every column of the file, also those that were not asked for."""
    if path.suffix.lower() in PARQUET:
        return pyarrow.parquet.read_schema(path).names
    return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def _missing(rows: list, columns: Columns) -> tuple[str, str] | None:
    there = set().union(*(row.keys() for row in rows if isinstance(row, dict)))
    for role, names in columns.named.items():
        for column in names:
            if there and column not in there:
                return role, column
    return None


def read_table_row(
    row: Any,
    id: str,
    columns: Columns,
    name: str,
    source: str,
    root: ImageRoot,
    modality: str | None = None,
) -> VQASample:
    """One question; the row is put into the papers' layout and judged as theirs are.

    Raises:
        BadRowError: the row is unusable; the message names value and remedy, the caller adds the place.
    """
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object with one key a column")
    value = {role: _value(row, getattr(columns, role)) for role in ROLES}
    for role in ("image", "question", "options", "answer", *(() if modality else ("modality",))):
        if value[role] is None or value[role] == []:
            column = columns.named.get(role, ["value"])
            raise BadRowError(f"has no {role} (column {', '.join(column)}): fill it in")
    options = _listed(value["options"], columns.separator)
    if isinstance(options, list):
        options = [_text(option) for option in options]
    images = _listed(value["image"], columns.separator)
    images = images if isinstance(images, list) else [images]
    plain = {
        "image": [with_settings(entry, value["slice"], value["window"]) for entry in images],
        "question": value["question"],
        "options": options,
        "subset": value["modality"],
        "qtype": value["question_type"],
        "group": value["group"],
    }
    if columns.answer_is == "text":
        plain["answer"] = _text(value["answer"])
    else:
        plain["solution"] = _letter(value["answer"], columns, options)
    if value["id"] is not None:
        id = f"{name}-{value['id']}"
    return read_row(plain, id, source, root, modality)


def _value(row: dict, column: Column | None) -> Any:
    if column is None:
        return None
    if isinstance(column, Mapping):
        return column["value"]
    if isinstance(column, str):
        return _known(row.get(column))
    values = [_known(row.get(name)) for name in column]
    while values and values[-1] is None:  # a question with fewer options than there are columns
        values.pop()
    return values


def _known(value: Any) -> Any:
    """Parquet written from pandas has NaN in the place of gaps."""
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
    """Whole numbers count as text, as they do in CSV; all else is for the judge of the row."""
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


def modality_of_test(name: str, columns: Columns) -> str | None:
    """A test set that is called by a modality has it, where the mapping gives all files the same one."""
    return name if isinstance(columns.modality, Mapping) and name in MODALITIES else None
