"""Fields of the rows of published sets: text, yes/no answers, the letter of the gold option.

An unusable field raises a BadRowError, to which the caller adds file and row.
"""

from collections.abc import Sequence
from typing import Any, Literal

from medvlm_r1.data.sample import LETTERS, BadRowError

YES_NO = ("yes", "no")
Include = Literal["closed", "open", "all"]
"""Questions to include: closed (yes/no), open (free text) or all."""


def text_of(row: Any, column: str) -> str:
    """Return the text of a column, stripped."""
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object")
    if column not in row:
        raise BadRowError(f"column {column!r} is missing; the row has {', '.join(row)}")
    if not isinstance(row[column], str) or not row[column].strip():
        raise BadRowError(f"{column} is {row[column]!r}: give text")
    return row[column].strip()


def yes_no_letter(answer: str) -> str | None:
    """Return the letter of a yes/no answer among :data:`YES_NO`; ``None`` for any other answer."""
    plain = answer.strip().lower().removesuffix(".")
    return LETTERS[YES_NO.index(plain)] if plain in YES_NO else None


def letter_of(answer: Any, options: Sequence[str]) -> str:
    """Return the letter of the one option whose text is the answer, up to surrounding space."""
    places = [i for i, option in enumerate(options) if option == str(answer).strip()]
    if len(places) != 1:
        raise BadRowError(
            f"answer {answer!r} is not one of the options {list(options)}: give an option's text"
        )
    return LETTERS[places[0]]


def includes(questions: Include, is_open: bool) -> bool:
    """Whether ``data.questions`` includes open, or closed, questions."""
    if questions not in ("closed", "open", "all"):
        raise ValueError(f"data.questions is {questions!r}: use 'closed', 'open' or 'all'")
    return questions in ("all", "open" if is_open else "closed")
