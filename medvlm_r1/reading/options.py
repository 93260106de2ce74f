"""Where a plain text has the text of an option.

==========================================  =================================================================
rule                                        examples
==========================================  =================================================================
whole words, in any case                    ``Kidney``; not ``kidneyshaped``
the longest option at a place               ``left kidney``, not ``kidney``; ``No tumor``, not ``tumor``
hyphen, space and plural do not matter      ``T1 weighted``, ``polyps``, ``2.5cm``
no article, no bracket                      ``lungs`` is "The lungs", ``CT`` is "CT (Computed Tomography)"
"yes" and "no" stand for their sentences    ``Yes`` is "Yes, it is enlarged"; the "no" of "no tumor" is none
two options that share a word               ``left or right lung`` is both
one Chinese character stands alone          the 是 of 答案是 is no option
==========================================  =================================================================
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations

from medvlm_r1.reading.plain import plain

ANSWER_WORDS = frozenset({"yes", "no", "true", "false"})
_ARTICLE = re.compile(r"(?:a|an|the) (?=\w)", re.IGNORECASE)
_ENDS_WORD = r"(?=[,.;:!)\]\n]| ?[-\u2013\u2014(]| (?:because|as|since|there|it|this|i|is|or|and)\b|$)"
_DASH_SPACE = re.compile(r"[-\u2013\s]+")
_OR = r"(?: or | and | ?/ ?|, )"


def find_options(text: str, options: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
    """Index, start and end of every option text; the two options of ``left or right lung`` have one place."""
    for match in _pattern(options).finditer(text):
        for index in (match.lastgroup or "").split("_")[1:-1]:
            yield int(index), match.start(), match.end()


@lru_cache(maxsize=512)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    """Pattern of all option texts; a group ``o_I_N`` holds option I, a group ``o_I_J_N`` options I and J."""
    names = [_names(option) for option in options]
    counts = Counter(name for own in names for name in own)
    spelt = [
        (name, _spelling(name), str(i)) for i, own in enumerate(names) for name in own if counts[name] == 1
    ]
    starts = [own[0].split(" ")[0].strip(",.") if own else "" for own in names]
    for i, word in enumerate(starts):
        if word in ANSWER_WORDS and starts.count(word) == 1 and word not in names[i]:
            spelt.append((word, _spelling(word), str(i)))
    for i, j in permutations(range(len(options)), 2):
        if names[i] and names[j]:
            spelt += [
                (f"{names[i][0]} {names[j][0]}", both, f"{i}_{j}")
                for both in _shared(names[i][0], names[j][0])
            ]
    # The longest first: at one place the longest option counts.
    spelt.sort(key=lambda each: -len(each[0]))
    groups = [f"(?P<o_{index}_{number}>{pattern})" for number, (_, pattern, index) in enumerate(spelt)]
    return re.compile("|".join(groups) or r"(?!)", re.IGNORECASE)


def _shared(first: str, second: str) -> Iterator[str]:
    """Patterns of two options that differ in one word at an end: ``left or right lung``, ``grade 2 or 3``."""
    a, b = first.split(" "), second.split(" ")
    if len(a) == len(b) > 1 and a[1:] == b[1:]:
        yield rf"(?<![A-Za-z0-9_]){re.escape(a[0])}{_OR}{_spelling(second)}"
    if len(a) == len(b) > 1 and a[:-1] == b[:-1]:
        yield rf"{_spelling(first)}{_OR}{re.escape(b[-1])}(?![A-Za-z0-9_])"


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
    before = r"(?<![A-Za-z0-9_])(?<!\d\.)(?<!\bnon[- ])" if re.match(r"[a-z0-9_]", name) else ""
    after = r"(?:s|es)?(?![A-Za-z0-9_]|[.,]\d|-free\b)" if re.search(r"[a-z]$", name) else ""
    if re.search(r"[0-9_]$", name):
        after = r"(?![A-Za-z0-9_]|[.,]\d)"
    if name == "normal":
        after += r"(?! (?:limits|range|size|shape|contours?|position)\b)"
    if name == "no":
        after = _ENDS_WORD
    if re.fullmatch(r"[^\x00-\u02ff]", name):  # one Chinese character is mostly part of another word
        before, after = r"(?<!\w)", r"(?!\w)"
    return before + body + after
