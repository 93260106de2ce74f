"""Rows whose columns are mapped to the parts of a question: what tables and Hugging Face data sets share."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.columns import ROLES, Columns, nearest_name
from medvlm_r1.data.formats.mcq_row import MODALITIES, MOST_IMAGES, image_handles_of, modality_of, read_row
from medvlm_r1.data.formats.options import answer_letter, answer_text, letter_in, list_in_text, option_texts
from medvlm_r1.data.formats.question_file import FileSplit, QuestionFile, plain_stem, test_files
from medvlm_r1.data.formats.row_filter import RowFilter
from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.rows import CSV
from medvlm_r1.data.formats.values import id_or_none, text_or_none
from medvlm_r1.data.images.resolve import ImageRoot, with_settings
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample, keep_images
from medvlm_r1.data.sources.fields import Include, includes
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.shorten import clip, shorten


def read_splits(
    read: Callable[..., QuestionFile],
    train: str,
    test: Mapping[Any, str],
    columns: Columns,
    filters: Mapping[str, Mapping[Any, Any] | None],
    split: FileSplit,
) -> Questions:
    """Read training and test questions with ``read(place, name=..., columns=..., modality=..., where=...)``.

    Args:
        filters: the settings ``where``, ``train_where`` and ``test_where`` of
            :func:`~medvlm_r1.data.formats.table.table`.
    """
    where, train_where, test_where = (filters[key] for key in ("where", "train_where", "test_where"))
    wanted = {
        part: RowFilter(where) & RowFilter(own, f"data.{part}_where")
        for part, own in (("train", train_where), ("test", test_where))
    }
    # A constant modality holds for training; a test set named after a modality has that one.
    constant = isinstance(columns.modality, Mapping) and "value" in columns.modality

    def read_part(path: str, name: str, **rest: Any) -> QuestionFile:
        """Only training questions need rationales, so the other files may lack their column."""
        own = columns if name == "train" else replace(columns, rationale=None)
        return read(path, name=name, columns=own, **rest)

    tests = {
        name: read_part(
            path,
            name=name,
            modality=name if constant and name in MODALITIES else None,
            where=wanted["test"],
        )
        for name, path in test_files(test).items()
    }
    return split.questions(functools.partial(read_part, where=wanted["train"]), train, tests)


class MappedRows(QuestionFile):
    """Questions of rows whose columns are mapped.

    Args:
        path: the file or data set, as messages name it.
        numbered: number and content of the rows.
        columns: which column holds what.
        root: where image paths start from.
        modality: modality of every row, instead of the column's.
        where: the rows to use. Default: all.
        questions: use those with options (``closed``), without (``open``) or ``all``.
        name, n, rows: as for :class:`~medvlm_r1.data.formats.question_file.QuestionFile`.
    """

    def __init__(
        self,
        path: Path,
        numbered: Sequence[tuple[int, Any]],
        columns: Columns,
        root: ImageRoot,
        modality: str | None = None,
        name: str | None = None,
        where: RowFilter | None = None,
        questions: Include = "all",
        n: int | None = None,
        rows: RowPolicy = STRICT,
    ) -> None:
        used = (where or RowFilter()).select(path, numbered)
        source, left_out = plain_stem(path), Counter({"data.where": len(numbered) - len(used)})

        def parse(row: Any, id: str) -> VQASample | None:
            sample = read_table_row(row, id, columns, name or source, source, root, modality)
            if includes(questions, sample.is_open):
                return sample
            left_out[f"data.questions={questions}"] += 1
            return None

        includes(questions, is_open=False)  # an unknown value is an error whatever the rows
        super().__init__(path, used, parse, name, n, rows, left_out)


def wanted_columns(columns: Columns, where: RowFilter | None) -> dict[str, list[str]]:
    """Return the names of the columns to read, by the keys that name them."""
    wanted = {f"data.columns.{role}": names for role, names in columns.named.items()}
    for column, key in (where.keys if where else {}).items():
        wanted.setdefault(key, []).append(column)
    return wanted


def need_columns(path: Path, existing: Sequence[str], wanted: Mapping[str, list[str]]) -> None:
    """Check that a table has the wanted columns, given by the keys that name them.

    Raises:
        BadRowError: one is missing; the message has the nearest name and all names.
    """
    missing = [(key, name) for key, names in wanted.items() for name in names if name not in existing]
    if not missing:
        return
    key, column = missing[0]
    near = nearest_name(column, existing)
    hint = f"did you mean {shorten(near)}? " if near else ""
    if path.suffix.lower() in CSV and any(";" in name or "\t" in name for name in existing):
        hint += "Its names hold another delimiter: set data.delimiter. "
    if key == "data.columns.options":
        hint += "If the questions are open, set data.columns.options=null. "
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
        question = value["question"]
        converted = {
            "image": images,
            "question": question if isinstance(question, str) else text_or_none(question),
            "options": options,
            "qtype": value["question_type"],
            "group": value["group"],
            "rationale": value["rationale"],
        }
        if options:
            converted["solution"] = _letter(value["answer"], columns, options)
        else:
            converted["answer"] = _open_answer(value["answer"], columns)
        if not modality:
            modality = _modality(value["modality"], columns)
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
    separator = columns.separator
    if isinstance(image, str) and (parsed := list_in_text(image)) is not None:
        image = parsed  # None e.g. for a file named "[1].png"
    elif isinstance(image, str) and separator and separator in image:
        image = [part.strip() for part in image.split(separator)]
    entries = list(image) if isinstance(image, list | tuple) else [image]
    if len(entries) > MOST_IMAGES:
        return entries  # which image_handles_of refuses
    slice, window = (_value(row, columns, role) for role in ("slice", "window"))
    return [with_settings(entry, slice, window) for entry in entries]


def _modality(value: Any, columns: Columns) -> str:
    try:
        return modality_of(value)
    except BadRowError:  # which names the papers' column and setting
        remedy = "give it with data.columns.modality={column: C, map: {SPELLING: ct}}, or {value: ct}"
        return modality_of(value, f"modality (column {columns.names('modality')})", remedy)


def _open_answer(answer: Any, columns: Columns) -> str | None:
    if columns.answer_is != "text":
        raise BadRowError(
            f"has no options (column {columns.names('options')}), but data.columns.answer_is="
            f"{columns.answer_is} needs them: fill them in, or leave such rows out with data.where"
        )
    return answer_text(answer)


def _letter(answer: Any, columns: Columns, options: list[str]) -> str:
    n, text = len(options), answer_text(answer)
    if columns.answer_is == "text":
        remedy = "give an option's text"
        if letter_in(text) in tuple(LETTERS[:n]):
            remedy += ", or set data.columns.answer_is=letter"
        elif text and text.isdecimal():
            remedy += ", or set data.columns.answer_is to index or number"
        return answer_letter(answer, options, remedy)
    if columns.answer_is == "letter":
        if (letter := letter_in(text)) in tuple(LETTERS[:n]):
            return letter
        raise BadRowError(
            f"{columns.names('answer')} is {shorten(answer)}: give one of the letters "
            f"{', '.join(LETTERS[:n])} (data.columns.answer_is=letter)"
        )
    first = 0 if columns.answer_is == "index" else 1
    number = id_or_none(text)
    position = int(number) - first if number and number.isdecimal() and len(number) < 4 else -1
    if not 0 <= position < n:
        raise BadRowError(
            f"{columns.names('answer')} is {shorten(answer)}: give a number from {first} to {n - 1 + first} "
            f"(data.columns.answer_is={columns.answer_is})"
        )
    return LETTERS[position]
