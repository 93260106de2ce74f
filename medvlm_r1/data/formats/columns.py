"""The mapping from a table's columns to the parts of a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

Column = str | Sequence[str] | Mapping[str, Any]
"""A column's name; several columns whose values make a list; or ``{value: V}``, the same V in every row."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what. Each may also be ``{value: V}``, the same value in every row.

    Attributes:
        image: path of the image, or several; one column or a list of columns. An object with ``path`` and
            settings (in CSV as JSON) may replace a path.
        question: text of the question.
        options: one column with all options, or a list of columns with one option each.
        answer: the gold option.
        answer_is: form of the answer: ``text``, ``letter``, ``index`` (from 0) or ``number`` (from 1).
        modality: acquisition modality: a short name, or a spelling of the papers' files.
        question_type: e.g. Disease Diagnosis. Default: unknown.
        group: e.g. the patient; a split keeps a group together. Default: the image.
        id: unique id of the question. Default: the row's number.
        slice: slice of DICOM and NIfTI files: an index from 0, or another value of ``slices``. Default, and
            for empty fields: :attr:`Volumes.slices <medvlm_r1.data.images.volume.Volumes>`.
        window: window of DICOM files: one column, or two with centre and width. Default: ``Volumes.window``.
        separator: separates several images or options in one field of text; a field may also be a JSON list.

    Raises:
        ValueError: a role has neither a column nor a value.
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
        """Names of the columns to read, by role."""
        names = {}
        for role in ROLES:
            column = getattr(self, role)
            if column is not None and not isinstance(column, Mapping):
                names[role] = [column] if isinstance(column, str) else list(column)
        return names


LISTS = ("image", "options", "window")  # roles that may have several columns
ROLES = tuple(f.name for f in fields(Columns) if f.name not in ("answer_is", "separator"))
