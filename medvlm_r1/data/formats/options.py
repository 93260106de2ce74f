"""Options and answers in the shapes that files have: lists, objects by letter, lists written as text."""

import ast
import json
import re
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from medvlm_r1.data.formats.values import id_or_none, text_or_none
from medvlm_r1.data.sample import LETTERS, BadRowError, match_key
from medvlm_r1.runs.shorten import shorten

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_NUMPY = re.compile(rf"\[\s*(?:(?:{_STRING})(?:\s+(?:{_STRING}))+|-?[\d.]+(?:\s+-?[\d.]+)+)\s*\]")
_NUMPY_PART = re.compile(rf"{_STRING}|-?[\d.]+")
_ADJACENT = re.compile(rf"(?:{_STRING})\s*(?:{_STRING})")
_ARRAY = re.compile(r"^array\((\[.*\])(?:,\s*dtype=[\w'<>]+)?\)$", re.DOTALL)
_LONGEST = 1 << 20  # characters of a list written as text
_MOST = 1000  # options, missing ones included, that are read at all
_LETTER = re.compile(r"[(\[]?\s*([A-J])\s*[)\].:,;]*")


def list_in_text(text: str) -> list | dict | None:
    """Parse a list or object written as text, in JSON, Python or numpy's print; ``None`` for other text.

    Raises:
        BadRowError: two strings of a Python list lack a comma between them.
    """
    text = text.strip()
    if text.startswith("array(") and len(text) <= _LONGEST:
        text = _ARRAY.sub(r"\1", text)
    if not text.startswith(("[", "{", "(")) or not text.endswith(("]", "}", ")")) or len(text) > _LONGEST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_list(text)
    return list(value) if isinstance(value, list | tuple) else value if isinstance(value, dict) else None


def _python_list(text: str) -> Any:
    if _NUMPY.fullmatch(text):
        return [_literal(part) for part in _NUMPY_PART.findall(text)]
    value = _literal(text)
    if value is not None and _ADJACENT.search(text):  # Python would join the two
        raise BadRowError(f"{shorten(text)} has two strings without a comma between them: write a JSON list")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def option_texts(value: Any, separator: str = "") -> list[str]:
    """Return the texts of a question's options, in the order of their letters; none if they are missing.

    Missing options at the end do not count: files with a column for each option fill them with nothing.

    Args:
        value: a list; an object, or (key, value) pairs, with the keys A, B and so on; or either as text.
        separator: separates options in other text; "" takes none.

    Raises:
        BadRowError: an option within the list is missing, no text or number, or the keys are not the letters.
    """
    given = value
    if isinstance(value, str) and separator and value.count(separator) > _MOST:
        raise BadRowError(f"{value.count(separator) + 1:,} options: a question needs 2 to {len(LETTERS)}")
    if isinstance(value, str):
        parsed = list_in_text(value)
        value = value.split(separator) if parsed is None and separator else parsed
        if value is None and text_or_none(given) is not None:
            raise BadRowError(f"options is {shorten(given)}: give a list of options")
    elif value is not None and not isinstance(value, list | tuple | dict):
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, list) and text_or_none(value) is not None:
            raise BadRowError(f"options is {shorten(given)}: give a list of options")
    by_letter = _by_letter(value)
    if by_letter is not None:
        value = by_letter
    value = value if isinstance(value, list | tuple) else ()
    if len(value) > _MOST:
        raise BadRowError(f"{len(value):,} options: a question needs 2 to {len(LETTERS)}")
    texts = [_option(part, given) for part in value]
    while texts and texts[-1] is None:
        texts.pop()
    if None in texts:
        raise BadRowError(
            f"options is {shorten(given)}, of which number {texts.index(None) + 1} is missing: give a list "
            "of non-empty texts"
        )
    return [text for text in texts if text is not None]


def _option(value: Any, given: Any) -> str | None:
    if isinstance(value, list | tuple | dict):
        raise BadRowError(
            f"options is {shorten(given)}: give a list of non-empty texts, not of lists or objects"
        )
    return text_or_none(value)


def _by_letter(value: Any) -> list[Any] | None:
    """Return the options of an object in the order of its letters; ``None`` for a plain list."""
    if isinstance(value, list | tuple) and value:
        if all(isinstance(part, dict) and part.keys() == {"key", "value"} for part in value):
            pairs = [(part["key"], part["value"]) for part in value]
        elif all(isinstance(part, tuple) and len(part) == 2 for part in value):  # Arrow's maps
            pairs = list(value)
        else:
            return None
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        return None
    letters = [letter_in(key) for key, _ in pairs]
    options = dict(zip(letters, (option for _, option in pairs), strict=True))
    present = [letter for letter, option in options.items() if text_or_none(option) is not None]
    if None in letters or len(options) < len(pairs) or set(LETTERS[: len(present)]) != set(present):
        keys = ", ".join(shorten(key, 32) for key, _ in pairs[:12])
        raise BadRowError(f"options has the keys {keys}: give A, B and so on, each once, without a gap")
    return [options[letter] for letter in LETTERS[: len(present)]]


def letter_in(value: Any) -> str | None:
    """Return the letter of ``b``, ``B.``, ``(B)`` or a full-width B; ``None`` for other values."""
    text = value if isinstance(value, str) and len(value) < 20 else ""
    match = _LETTER.fullmatch(unicodedata.normalize("NFKC", text).strip().upper())
    return match[1] if match else None


def answer_letter(answer: Any, options: Sequence[str], remedy: str = "give an option's text") -> str:
    """Return the letter of the option whose text is the answer.

    The texts may differ in case, space, a full stop at the end, and as whole numbers (2.0 is 2); an exact
    match precedes.

    Raises:
        BadRowError: no option, or more than one, has this text.
    """
    text = answer_text(answer)
    if text is not None and text in options:
        return LETTERS[list(options).index(text)]
    keys = [_answer_key(option) for option in options]
    places = [i for i, key in enumerate(keys) if text is not None and key == _answer_key(text)]
    if len(places) == 1:
        return LETTERS[places[0]]
    shown = f"the options {shorten(list(options), 200)}"
    if places:
        raise BadRowError(f"answer {shorten(answer)} is more than one of {shown}: {remedy}, exactly")
    by_key = {option[:200].casefold(): option for option in options}
    near = get_close_matches((text or "")[:200].casefold(), by_key, n=1)
    hint = f"; the closest is {shorten(by_key[near[0]])}" if near else ""
    raise BadRowError(f"answer {shorten(answer)} is not among {shown}{hint}: {remedy}")


def answer_text(answer: Any) -> str | None:
    """Return the text of an answer; a list of one answer is that answer."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    return text_or_none(answer)


def _answer_key(text: str) -> str:
    return match_key(id_or_none(text.rstrip(" .。")) or text)
