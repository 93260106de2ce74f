"""Where a plain text names an option: by its letter, by its text (``options.py``), or by both.

=====================================  ===================================================================
rule                                   examples (options: liver, kidney, left kidney, spleen)
=====================================  ===================================================================
a capital alone is a letter            ``B``, ``(B)``, ``B/C``; not ``C-shaped``, ``B-mode``, ``AB``
a small letter needs a bracket         ``b)``, ``(b)``; or stands behind "answer is", "option"
the letter A is no article             ``A.``, ``A is right``, ``option A``; not ``A cyst``
the letter I is no pronoun             ``I)``, ``(I)``; not ``I think``
some words name other letters          ``hepatitis B``, ``type A``, ``figure C``, ``B cells`` are no letters
a letter before its text is one        ``B) kidney``, ``B: kidney``, ``kidney (B)``
=====================================  ===================================================================
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from medvlm_r1.reading.options import ANSWER_WORDS, find_options
from medvlm_r1.reading.words import AFFIRMED

UNKNOWN = -1  # index of a letter that is none of the question's

_LETTER = re.compile(r"(?<![A-Za-z0-9_'\-])(?<![A-Za-z]\.)[A-Ja-j](?![A-Za-z0-9_']|-[A-Za-z0-9])")
_OTHER_BEFORE = re.compile(
    r"(?i:\b(?:types?|hepatitis|vitamins?|grade|class|stage|group|figure|fig\.?|panel|image|point|segment|phase|"
    r"series|level|zone|view|factor|protein|influenza|arrow|label(?:l?ed)?|structure|region|plan|line|stanford|"
    r"category|part|immunoglobulin)) ?\(?$"
)
_OTHER_AFTER = re.compile(r" (?:cells?|lymphocytes?|mode|lines?|waves?|vitamins?|virus)\b(?!:)")
_CLOSED = re.compile(r" ?[)\].:,;!?/&=+]| [-\u2013\u2014]|\n|$|[^\x00-\u02ff]")
_BRACKET = re.compile(r" ?[)\]]")
_FUNCTION_WORD = re.compile(
    r" (?:is|was|as|or|and|nor|because|since|for|due|but|seems|appears|fits|matches|would|rather|instead|can|"
    r"with|than|based|not|here|over|vs|versus|it)\b"
)
_REASON = re.compile(r" (?:because|since|as it)\b")
_IT_IS = re.compile(r"(?i:\bit(?: is|'s)) $")
_CALLED = re.compile(r"(?i:\b(?:option|choice|letter)|[选项择]) ?\(?$")
_CALLED_SMALL = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)(?: (?:is|would be|should be))?(?: option)?[ :=(]{1,3}|"
    r"\b(?:say|choose|select|pick|it is|it's) |[选项择是] ?)$"
)


@dataclass(eq=False)  # compared by identity
class Mention:
    """A place that names an option. ``stated``, ``denied`` and the like are filled in by ``claims.py``."""

    index: int  # of the option; UNKNOWN
    start: int
    end: int
    lettered: bool  # by its letter
    named: bool  # by its text
    reply: bool = False  # by "yes" or "no"
    stated: bool = False
    concluded: bool = False
    hedged: bool = False
    denied: bool = False
    dropped: bool = False  # only supposed, asked or listed
    reason: bool = False  # in a subordinate clause that gives a reason
    alone: bool = False
    leads: bool = False
    coordinated: list["Mention"] = field(default_factory=list, repr=False)


def find_mentions(text: str, options: Sequence[str]) -> list[Mention]:
    """All mentions in a plain text, in its order; a letter inside an option's text is no mention."""
    texts = [
        Mention(index, start, end, lettered=False, named=True, reply=text[start:end].lower() in ANSWER_WORDS)
        for index, start, end in find_options(text, tuple(options))
    ]
    taken = iter([*texts, Mention(0, len(text) + 1, len(text) + 1, False, False)])
    following, letters = next(taken), []
    for match in _LETTER.finditer(text):
        while following.end <= match.start():
            following = next(taken)
        if match.start() < following.start and _is_letter(text, match.start(), match.end(), len(options)):
            index = "ABCDEFGHIJ".index(match[0].upper())
            index = index if index < len(options) else UNKNOWN
            letters.append(Mention(index, match.start(), match.end(), True, False))
    return _merged(text, sorted([*texts, *letters], key=lambda mention: mention.start))


def _is_letter(text: str, start: int, end: int, options: int) -> bool:
    before, letter = text[max(0, start - 30) : start], text[start]
    if _OTHER_BEFORE.search(before) or _OTHER_AFTER.match(text, end):
        return False
    if letter.islower():
        if letter == "a" and end == len(text) and _IT_IS.search(before):  # cut at the token limit
            return False
        goes_on = _CLOSED.match(text, end) or _REASON.match(text, end)
        called = _CALLED_SMALL.search(before) and goes_on
        return bool(_BRACKET.match(text, end) or called or (start == 0 and AFFIRMED.match(text, end)))
    if letter == "I":
        return options >= 9 and bool(_BRACKET.match(text, end) or re.match(r"[.:]|$", text[end : end + 1]))
    if letter == "A":
        closed = _CLOSED.match(text, end) or _FUNCTION_WORD.match(text, end)
        return bool(closed or _CALLED.search(before))
    return True


_LABEL = re.compile(r" ?[)\].:]{0,2} ?[-\u2013\u2014,(=]? ?(?:is for )?(?:(?:the|an?) )?")
_LABEL_BEHIND = re.compile(r" ?[(\[] ?(?:option |choice )?")


def _merged(text: str, mentions: list[Mention]) -> list[Mention]:
    """Join a letter and the option text behind it, and a text and its letter in brackets."""
    merged: list[Mention] = []
    for mention in mentions:
        last = merged[-1] if merged else None
        if (
            last
            and last.end <= mention.start
            and last.lettered != mention.lettered
            and last.named != mention.named
        ):
            between = text[last.end : mention.start]
            label = _LABEL if last.lettered else _LABEL_BEHIND
            if last.index == mention.index and label.fullmatch(between):
                last.end, last.lettered, last.named = mention.end, True, True
                continue
        merged.append(mention)
    return merged
