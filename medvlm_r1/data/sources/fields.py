"""Fields of the rows of published sets: text, options, modality, yes/no answers.

An unusable field raises a BadRowError, to which the caller adds file and row.
"""

from collections.abc import Mapping
from typing import Any, Literal

from medvlm_r1.data.formats.mcq_row import modality_of
from medvlm_r1.data.formats.values import text_or_none
from medvlm_r1.data.sample import LETTERS, BadRowError
from medvlm_r1.runs.shorten import shorten

YES_NO = ("yes", "no")
Include = Literal["closed", "open", "all"]
"""Questions to include: closed (yes/no), open (free text) or all."""


def text_of(row: Any, column: str) -> str:
    """Return the text of a column, stripped; a number becomes its text."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {shorten(row)}, not an object")
    if column not in row:
        raise BadRowError(f"column {column!r} is missing; the row has {', '.join(map(str, row)):.200}")
    text = None if isinstance(row[column], list | dict) else text_or_none(row[column])
    if text is None:
        raise BadRowError(f"{column} is {shorten(row[column])}: give text")
    return text.strip()


def lettered_options(options: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the texts of a row's options, without the missing ones (``None``, NaN, empty text).

    Args:
        options: value by letter, in order.

    Returns:
        The texts, and the letter of each among them by its letter in the row: without an option B, the row's
        C becomes B.
    """
    texts = {letter: text_or_none(value) for letter, value in options.items()}
    present = {letter: text.strip() for letter, text in texts.items() if text is not None}
    return tuple(present.values()), dict(zip(present, LETTERS, strict=False))


def known_modality(row: Mapping[str, Any], column: str) -> str:
    """Return the short name of the modality in a column."""
    text = text_of(row, column)
    try:
        return modality_of(text)
    except BadRowError:
        raise BadRowError(f"{column} {shorten(text)} is no known modality: correct the row") from None


def yes_no_letter(answer: str) -> str | None:
    """Return the letter of a yes/no answer among :data:`YES_NO`; ``None`` for any other answer."""
    plain = answer.strip().lower().removesuffix(".")
    return LETTERS[YES_NO.index(plain)] if plain in YES_NO else None


def includes(questions: Include, is_open: bool) -> bool:
    """Whether ``data.questions`` includes open, or closed, questions."""
    if questions not in ("closed", "open", "all"):
        raise ValueError(f"data.questions is {questions!r}: use 'closed', 'open' or 'all'")
    return questions in ("all", "open" if is_open else "closed")
