"""The mapping from a table's columns to the parts of a question."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

from medvlm_r1.data.formats.row_filter import comparable
from medvlm_r1.data.formats.values import is_missing
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import clip, shorten

Column = str | Sequence[str] | Mapping[str, Any]
"""A column's name; several columns whose values make a list; ``{value: V}``, the same V in every row; or
``{column: C, map: {SPELLING: V}}``, the V of the column's value."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Each may also be ``{value: V}``, the same value in every row, or ``{column: C, map: {SPELLING: V}}``, a
    value for each spelling in the column C: ``modality={column: organ, map: {HEAD: mri, CHEST: xray}}``.
    Spellings are compared without case and extra space.

    Attributes:
        image: path of the image, or several; one column or a list of columns. An object with ``path`` and
            settings (in CSV as JSON) may replace a path.
        question: text of the question.
        options: one column with all options, or a list of columns with one option each. A row without options
            is an open question; ``None`` makes all questions open.
        answer: the gold option, or the text of an open question's answer.
        answer_is: form of the answer: ``text``, ``letter``, ``index`` (from 0) or ``number`` (from 1).
        modality: acquisition modality: a short name, or a spelling of the papers' files.
        question_type: e.g. Disease Diagnosis. Default: unknown.
        group: e.g. the patient; a split keeps a group together. Default: the image.
        id: unique id of the question. Default: the row's number.
        rationale: reasoning that leads to the answer, the target of ``method=sft_rationale``. Default: none.
        slice: slice of DICOM and NIfTI files: an index from 0, or another value of ``slices``. Default, and
            for empty fields: :attr:`Volumes.slices <medvlm_r1.data.images.volume.Volumes>`.
        window: window of DICOM files: one column, or two with centre and width. Default: ``Volumes.window``.
        separator: separates several images or options in one field of text; a field may also be a JSON list.

    Raises:
        ValueError: a role has neither a column nor a value, or a map has a spelling twice.
    """

    image: Column = "image"
    question: Column = "question"
    options: Column | None = "options"
    answer: Column = "answer"
    answer_is: Literal["text", "letter", "index", "number"] = "text"
    modality: Column = "modality"
    question_type: Column | None = None
    group: Column | None = None
    id: Column | None = None
    rationale: Column | None = None
    slice: Column | None = None
    window: Column | None = None
    separator: str = "|"
    _maps: dict[str, dict[str | None, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.answer_is not in ("text", "letter", "index", "number"):
            raise ValueError(
                f"data.columns.answer_is is {self.answer_is!r}: use 'text', 'letter', 'index' (from 0) or "
                "'number' (from 1)"
            )
        maps = {}
        for role in ROLES:
            column = getattr(self, role)
            several = isinstance(column, Sequence) and not isinstance(column, str) and len(column) > 0
            if column is None and role in OPTIONAL:
                continue
            if isinstance(column, Mapping) and set(column) == {"value"}:
                continue
            if isinstance(column, Mapping) and set(column) == {"column", "map"}:
                maps[role] = _map_of(role, column)
                continue
            if isinstance(column, str) or (several and role in LISTS):
                continue
            lists = ", a list of names" if role in LISTS else ""
            raise ValueError(
                f"data.columns.{role} is {shorten(column)}: give a column's name{lists}, or {{value: V}} for "
                "one value in all rows, or {column: C, map: {SPELLING: V}} for a value by spelling"
            )
        object.__setattr__(self, "_maps", maps)

    @property
    def named(self) -> dict[str, list[str]]:
        """Names of the columns to read, by role."""
        names = {}
        for role in ROLES:
            column = getattr(self, role)
            if isinstance(column, Mapping):
                column = column.get("column")
            if column is not None:
                names[role] = [column] if isinstance(column, str) else list(column)
        return names

    def names(self, role: str) -> str:
        """Names of a role's columns for messages."""
        return ", ".join(self.named.get(role, ["value"]))

    def value(self, row: Mapping[str, Any], role: str) -> Any:
        """Return a role's value in a row; ``None`` if it is missing. Several columns give a list.

        Raises:
            BadRowError: the map of the role lacks the value.
        """
        column = getattr(self, role)
        if column is None:
            return None
        if isinstance(column, str):
            value = row.get(column)
            return None if is_missing(value) else value
        if isinstance(column, Mapping):
            return column["value"] if "value" in column else self._mapped(row, role, column["column"])
        values = [None if is_missing(row.get(name)) else row[name] for name in column]
        while values and values[-1] is None:  # a question with fewer options than there are columns
            values.pop()
        return values or None

    def _mapped(self, row: Mapping[str, Any], role: str, column: str) -> Any:
        known, key = self._maps[role], comparable(row.get(column))
        if key in known or key is None:
            return known.get(key)
        spellings = clip(", ".join(map(str, getattr(self, role)["map"])), 300)
        raise BadRowError(
            f"{column} is {shorten(row[column])}, which data.columns.{role}.map lacks: add it; the map has "
            f"{spellings}"
        )


def _map_of(role: str, column: Mapping[str, Any]) -> dict[str | None, Any]:
    if not isinstance(column["column"], str) or not isinstance(column["map"], Mapping) or not column["map"]:
        raise ValueError(
            f"data.columns.{role} is {shorten(column)}: give {{column: C, map: {{SPELLING: V}}}}, where C is "
            "one column's name"
        )
    known = {comparable(spelling): value for spelling, value in column["map"].items()}
    if len(known) < len(column["map"]):
        raise ValueError(
            f"data.columns.{role}.map has a spelling twice, up to case and space: give each once"
        )
    return known


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the column whose name is nearest, first of those that differ in case or space only."""
    by_key = {"".join(other.split()).casefold()[:200]: other for other in map(str, known)}
    near = get_close_matches("".join(name.split()).casefold()[:200], by_key, n=1, cutoff=0.5)
    return by_key[near[0]] if near else None


OPTIONAL = ("options", "question_type", "group", "id", "rationale", "slice", "window")
LISTS = ("image", "options", "window")  # roles that may have several columns
ROLES = tuple(f.name for f in fields(Columns) if f.name not in ("answer_is", "separator", "_maps"))
