"""The text of a value from any container: one reading of "missing" and of numbers for all readers.

JSON, pandas, CSV and Parquet spell one value in different types: a patient is 0, 0.0 or "0", a missing field
``None``, NaN, NaT, ``pandas.NA`` or "". What becomes a group, id, type, modality, option or answer comes from
here, so that equal things stay equal across files.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from decimal import Decimal
from typing import Any

from medvlm_r1.data.sample import BadRowError

_MISSING_TEXT = frozenset(("", "nan", "NaN", "NaT", "<NA>"))  # as str() of a missing value spells it
_INTEGRAL_TEXT = re.compile(r"(-?\d+)\.0+")
_LARGEST = 10**18  # beyond it, floats stand for many integers


def text_or_none(value: Any) -> str | None:
    """Return the text of a value, without surrounding space, or ``None`` if the value is missing.

    An integral float or decimal is its integer (``0.0`` is "0"), a Boolean "True" or "False", midnight its
    date. Lists and objects become JSON with all of their values read so.

    Args:
        value: from JSON, pandas, CSV or Parquet: a Python, numpy, pandas or Arrow scalar, or a container.

    Raises:
        BadRowError: the value is bytes that are no UTF-8 text.
    """
    if not isinstance(value, str):  # most values are text
        value = _plain(value)
    if value is None:
        return None
    if isinstance(value, str):
        return None if (text := value.strip()) in _MISSING_TEXT else text
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, datetime):
        return str(value).removesuffix(" 00:00:00")  # a date column of pandas holds midnights
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if value else None
    return text_or_none(str(value))


def id_or_none(value: Any) -> str | None:
    """Return the text of an id or group: as :func:`text_or_none`, and the text "7.0" is "7".

    A CSV file of pandas spells whole numbers so if the column has a missing value.
    """
    text = text_or_none(value)
    match = _INTEGRAL_TEXT.fullmatch(text) if text else None
    return match[1] if match else text


def is_missing(value: Any) -> bool:
    """Whether a value of any container stands for nothing, as an empty list or object does."""
    if value is None or isinstance(value, str):
        return text_or_none(value) is None
    if isinstance(value, list | tuple):
        return not value
    if isinstance(value, Mapping):
        return all(map(is_missing, value.values()))
    return text_or_none(value) is None


def _plain(value: Any) -> Any:
    """Convert a value to str, bool, int, float, Decimal, datetime, list or dict of such; or ``None``."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise BadRowError(f"has {len(value):,} bytes where text belongs: write text") from None
    if hasattr(value, "as_py"):  # an Arrow scalar
        return _plain(value.as_py())
    if hasattr(value, "dtype"):  # numpy's scalars and arrays
        return _plain(_from_numpy(value))
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    if isinstance(value, Mapping):
        return {str(key): text for key, part in value.items() if (text := _nested(part)) is not None}
    if isinstance(value, Sequence | Set):
        return [_nested(part) for part in value]
    try:
        return None if value != value else value  # NaN and NaT alone differ from themselves
    except (TypeError, ValueError):
        return None if type(value).__name__ == "NAType" else value  # pandas.NA has no truth value


def _nested(value: Any) -> Any:
    plain = _plain(value)
    return plain if isinstance(plain, list | dict) else text_or_none(plain)


def _from_numpy(value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "mM":  # item() of nanoseconds is an integer
        value = value.astype(f"{value.dtype.str[1:2]}8[us]")
    elif kind == "f" and value.ndim == 0:
        return float(str(value))  # the shortest decimal: 0.1 of float32, not 0.10000000149
    return value.tolist()


def _number(value: float | Decimal) -> str:
    if math.isfinite(value) and abs(value) < _LARGEST and value == int(value):
        return str(int(value))
    return str(value)
