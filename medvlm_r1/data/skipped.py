"""Count the reasons for which rows were skipped: one fault in every row is one reason, not a thousand."""

import re
from collections import Counter
from collections.abc import Iterable

from medvlm_r1.runs.shorten import clip

_PLACE = re.compile(r"^.*? row \d+: ", re.DOTALL)
# What differs between two rows with the same fault: texts in quotes, lists, paths, numbers.
_QUOTED = re.compile(r"""(?<![\w'"])(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?: \([\d,]+ \w+\))?""")
_IMAGE = re.compile(r"(^image|\bused by) (?!is )\S.*?(?= (?:does|cannot|is|has|have|lies|holds|row)\b|:)")
_LIST = re.compile(r"[\[{(][^\[\](){}]*[\])}]")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d.,]*(?!\w)")


def reason_of(line: str) -> str:
    """Return the reason in a line about a skipped row, with ``...`` for what differs from row to row."""
    reason = clip(_PLACE.sub("", line, count=1), 2000)
    reason = _IMAGE.sub(r"\1 ...", _QUOTED.sub("...", reason))
    for pattern in (_LIST, _LIST, _NUMBER):
        reason = pattern.sub("...", reason)
    return re.sub(r"\.\.\.(?:[ ,]*\.\.\.)+", "...", reason)


def reason_counts(skipped: Iterable[str]) -> dict[str, int]:
    """Count skipped rows by their reason, the most frequent first.

    Args:
        skipped: one line for each row, ``<file> row <number>: <reason>``.
    """
    return dict(Counter(map(reason_of, skipped)).most_common())


def reason_summary(skipped: Iterable[str], most: int = 3) -> str:
    """Return the reasons with their counts as one line, e.g. ``12 x image ... does not exist; ...``."""
    counts = reason_counts(skipped)
    shown = [f"{count:,} x {clip(reason, 200)}" for reason, count in list(counts.items())[:most]]
    if rest := sum(list(counts.values())[most:]):
        shown.append(f"{rest:,} for other reasons")
    return "; ".join(shown)
