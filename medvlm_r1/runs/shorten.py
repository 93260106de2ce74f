"""Shorten values for messages: an error must stay readable whatever a file holds."""

import math
import reprlib
from typing import Any

_MIN = 32  # characters; less would show nothing
MAX_ERROR = 1800  # characters of an error on the console, whatever it quotes; its end is often the remedy


def shorten(value: Any, limit: int = 80) -> str:
    """Return the repr of a value in at most ``limit`` characters, cut in the middle, with its length.

    Long texts and containers are cut before their repr is built.
    """
    limit = max(limit, _MIN)
    if isinstance(value, str | bytes | bytearray):
        return _shorten_text(value, limit)
    if isinstance(value, int) and value.bit_length() > 3 * limit:  # Python's repr refuses 4,300 digits
        return f"an integer of {math.ceil(value.bit_length() * math.log10(2))} digits"
    cut = reprlib.Repr()
    cut.maxlevel, cut.maxstring, cut.maxother, cut.maxlong = 3, limit, 2 * limit, 2 * limit
    cut.maxlist = cut.maxtuple = cut.maxset = cut.maxfrozenset = cut.maxdeque = cut.maxdict = 10
    text = cut.repr(value)
    if isinstance(value, list | tuple | dict | set | frozenset) and (len(value) > 10 or len(text) > limit):
        count = f" ({len(value):,} entries)"
        return clip(text, limit - len(count)) + count
    return clip(text, limit)


def clip(text: str, limit: int = 200) -> str:
    """Return a text in at most ``limit`` characters; ``...`` replaces its middle."""
    if len(text) <= limit:
        return text
    tail = max(limit - 5, 0) // 3
    return f"{text[: max(limit - 5, 0) - tail]} ... {text[len(text) - tail :]}"


def _shorten_text(value: Any, limit: int) -> str:
    """Shorten a str, bytes or bytearray."""
    if len(value) <= limit and len(whole := repr(value)) <= limit:
        return whole
    count = f" ({len(value):,} {'characters' if isinstance(value, str) else 'bytes'})"
    room = limit - len(count)
    ends = value if len(value) <= 2 * room else value[:room] + value[-room:]
    return clip(repr(ends), room) + count
