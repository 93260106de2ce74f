"""Where a plain text names an option: by its letter, by its text, or by both.

=====================================  ===================================================================
rule                                   examples (options: liver, kidney, left kidney, spleen)
=====================================  ===================================================================
a capital alone is a letter            ``B``, ``(B)``, ``B/C``; not ``C-shaped``, ``B-mode``, ``AB``
a small letter needs a bracket         ``b)``, ``(b)``; or stands behind "answer is", "option"
the letter A is no article             ``A.``, ``A is right``, ``option A``; not ``A cyst``
the letter I is no pronoun             ``I)``, ``(I)``; not ``I think``
some words name other letters          ``hepatitis B``, ``type A``, ``figure C``, ``B cells`` are no letters
an option's text is found as a whole   ``left kidney`` is C, not B; hyphen and space are the same
a letter before its text is one        ``B) kidney``, ``B: kidney``, ``kidney (B)``
=====================================  ===================================================================
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from medvlm_r1.reading.plain import plain

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
_CALLED = re.compile(r"(?i:\b(?:option|choice|letter)|[选项择]) ?\(?$")
_CALLED_SMALL = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)(?: (?:is|would be|should be))?(?: option)?[ :=(]{1,3}|"
    r"\b(?:say|choose|select|pick|it is|it's) |[选项择是] ?)$"
)
_ARTICLE = re.compile(r"(?:a|an|the) (?=\w)", re.IGNORECASE)
_ANSWER_WORDS = {"yes", "no", "true", "false"}
_ENDS_WORD = r"(?=[,.;:!)\]\n]| ?[-\u2013\u2014(]| (?:because|as|since|there|it|this|i|is|or|and)\b|$)"
_DASH_SPACE = re.compile(r"[-\u2013\s]+")


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


@lru_cache(maxsize=512)
def option_pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    """Pattern of all option texts; the group ``oI`` holds option ``I``."""
    names = [_names(option) for option in options]
    counts = Counter(name for own in names for name in own)
    first = Counter(own[0].split(" ")[0].strip(",.") for own in names if own)
    pairs = [(name, i) for i, own in enumerate(names) for name in own if counts[name] == 1]
    for i, own in enumerate(names):
        word = own[0].split(" ")[0].strip(",.") if own else ""
        if word in _ANSWER_WORDS and first[word] == 1 and word not in own:
            pairs.append((word, i))
    # The longest first: at one place the longest option counts.
    pairs.sort(key=lambda pair: -len(pair[0]))
    groups = [f"(?P<o{i}_{number}>{_spelling(name)})" for number, (name, i) in enumerate(pairs)]
    return re.compile("|".join(groups) or r"(?!)", re.IGNORECASE)


def _names(option: str) -> list[str]:
    """The spellings of an option, folded: whole, without its bracket, or its bracket alone; no article."""
    whole = " ".join(plain(option).split()).casefold().rstrip(" .,;")
    names = [whole]
    if match := re.fullmatch(r"([^()]{2,}?) ?\(([^()]{2,})\)", whole):
        names += [match[1], match[2]]
    names = [_ARTICLE.sub("", name, count=1) if _ARTICLE.match(name) else name for name in names]
    return [
        name for name in dict.fromkeys(names) if re.search(r"\w", name) and not re.fullmatch(r"[a-j]", name)
    ]


def _spelling(name: str) -> str:
    words = [re.escape(word) for word in _DASH_SPACE.split(name) if word]
    body = r"[-\u2013\s]".join(words)
    body = re.sub(
        r"(?<=\d)(?:\[-\\u2013\\s\])?(?=(?:mm|cm|ml|kg|mg|years?)$)", r"\\s?", body
    )  # "2.5cm" is "2.5 cm"
    before = r"(?<![A-Za-z0-9_])(?<!\d\.)" if re.match(r"[a-z0-9_]", name) else ""
    after = r"(?:s|es)?(?![A-Za-z0-9_]|[.,]\d)" if re.search(r"[a-z]$", name) else ""
    if re.search(r"[0-9_]$", name):
        after = r"(?![A-Za-z0-9_]|[.,]\d)"
    if name == "no":
        after = _ENDS_WORD
    if re.fullmatch(r"[^\x00-\u02ff]", name):  # one Chinese character is mostly part of another word
        before, after = r"(?<!\w)", r"(?!\w)"
    return before + body + after


def find_mentions(text: str, options: Sequence[str]) -> list[Mention]:
    """All mentions in a plain text, in its order; a letter inside an option's text is no mention."""
    texts = [
        Mention(
            int(m.lastgroup[1:].split("_")[0]), m.start(), m.end(), False, True, m[0].lower() in _ANSWER_WORDS
        )
        for m in option_pattern(tuple(options)).finditer(text)
        if m.lastgroup
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
        return bool(_BRACKET.match(text, end) or (_CALLED_SMALL.search(before) and _CLOSED.match(text, end)))
    if letter == "I":
        return options >= 9 and bool(_BRACKET.match(text, end) or re.match(r"[.:]|$", text[end : end + 1]))
    if letter == "A":
        closed = _CLOSED.match(text, end) or _FUNCTION_WORD.match(text, end)
        return bool(closed or _CALLED.search(before))
    return True


_LABEL = re.compile(r" ?[)\].:]{0,2} ?[-\u2013\u2014,(]? ?(?:(?:the|an?) )?")
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
