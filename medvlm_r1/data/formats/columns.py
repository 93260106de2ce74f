"""The mapping from a table's columns to the parts of a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

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
