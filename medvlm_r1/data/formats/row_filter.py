"""Which rows of a table are used: the keys ``data.where``, ``data.train_where`` and ``data.test_where``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.values import id_or_none
from medvlm_r1.data.sample import BadRowError, match_key
from medvlm_r1.runs.shorten import clip, shorten


class RowFilter:
    """Rows whose columns have one of the wanted values.

    Values are compared as texts, without case and extra space: ``CLOSED`` matches "closed ", 1 matches "1.0".

    Args:
        where: column -> its value, or a list of values; ``None`` is a missing value.
        key: the setting, for messages.

    Raises:
        ValueError: ``where`` is no mapping, or names a column without a value.
    """

    def __init__(self, where: Mapping[Any, Any] | None = None, key: str = "data.where") -> None:
        if where is not None and not isinstance(where, Mapping):
            raise ValueError(
                f"{key} is {shorten(where)}: give {{COLUMN: VALUE}} or {{COLUMN: [VALUE, VALUE]}}"
            )
        self.wanted: dict[str, frozenset[str | None]] = {}
        self.keys = {str(column): key for column in where or {}}  # the setting that names a column
        for column, values in (where or {}).items():
            several = isinstance(values, Sequence) and not isinstance(values, str)
            self.wanted[str(column)] = frozenset(map(comparable, values if several else [values]))
            if not self.wanted[str(column)]:
                raise ValueError(f"{key}.{column} is []: give at least one value")

    def __and__(self, other: "RowFilter") -> "RowFilter":
        """Return the filter of the rows that both take."""
        both = RowFilter()
        both.wanted, both.keys = {**self.wanted, **other.wanted}, {**self.keys, **other.keys}
        for column in self.wanted.keys() & other.wanted.keys():
            both.wanted[column] = self.wanted[column] & other.wanted[column]
        return both

    def takes(self, row: Any) -> bool:
        """Whether a row is used. What is no row is, so that it is named as a fault."""
        try:
            return not isinstance(row, dict) or all(
                comparable(row.get(column)) in values for column, values in self.wanted.items()
            )
        except BadRowError:  # bytes
            return False

    def select(self, path: Path, numbered: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Return the numbered rows of a file that are used.

        Raises:
            BadRowError: no row is used; the message has the values that there are.
        """
        taken = [(number, row) for number, row in numbered if self.takes(row)]
        if not taken:
            present = []
            for column in self.wanted:
                counts = Counter(shorten(row.get(column), 40) for _, row in numbered if isinstance(row, dict))
                values = (f"{value} ({count})" for value, count in counts.most_common(5))
                present.append(f"{column} is {', '.join(values)}")
            keys = " and ".join(dict.fromkeys(self.keys.values())) or "data.where"
            raise BadRowError(f"{path}: no row is chosen by {keys}: {clip('; '.join(present), 1000)}")
        return taken


def comparable(value: Any) -> str | None:
    """Return a value as a filter or a map of a column compares it; ``None`` if it is missing."""
    text = id_or_none(value)
    return None if text is None else match_key(text)
