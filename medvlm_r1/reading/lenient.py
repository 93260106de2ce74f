"""The letter that a human reader takes from a completion, or none.

In this order; the first that gives an option decides, and two different options are none:

=============  ====================================================================================
retracted      ``A. No wait, B``: what stands behind the last retraction is read alone; ``A. Hmm, B``
stated         ``The answer is B``, ``B is correct``; a concluding statement outweighs earlier ones
leading        ``B``, ``B) kidney``, ``B because ...``, ``Yes, ...``: the text begins with it
alone          a line or sentence that is nothing but a letter
labelled       ``the structure is B) kidney``
named          the one option whose text is affirmed; ``left kidney`` outweighs ``kidney``
statement      ``There is no fracture``, or ``There is a fracture``, to ``Is there a fracture?``
=============  ====================================================================================

It may say none: a wrong letter is worse than a missing one.
"""

import re
from collections.abc import Iterable, Sequence

from medvlm_r1.data.sample import Question
from medvlm_r1.reading.claims import judge
from medvlm_r1.reading.layout import place
from medvlm_r1.reading.mentions import Mention, find_mentions
from medvlm_r1.reading.plain import plain
from medvlm_r1.reading.scope import answering_part
from medvlm_r1.reading.words import DENYING, GENERIC, INTERJECTION, RETRACTION, TURNED

_BARE = re.compile(r"[\s().\[\]:,;!\-\u2013\u2014]*")
_GOES_ON = re.compile(r" (?:is|was|seems|looks|appears|could|might|may|would|can)\b")  # "A is tempting, but"
_STATES = re.compile(r"\b(?:is|are|has|shows?|demonstrates|seen|visible|present|evident)\b")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


def lenient_letter(text: str, question: Question) -> str | None:
    """The letter that a human reader takes from a completion; ``None`` if it answers none or several."""
    if question.is_open:
        return None
    text = answering_part(text)
    if text.casefold() in (folded := [option.casefold() for option in question.options]):
        return question.letters[folded.index(text.casefold())]
    text = plain(text)
    bare = _BARE.sub("", text)
    if len(bare) == 1 and bare.upper() in question.letters and "?" not in text:
        return bare.upper()
    index, _ = _read_behind_retractions(text, question)
    return None if index is None or index < 0 else question.letters[index]


def affirmed_options(text: str, options: Sequence[str]) -> list[int]:
    """Indices of the options whose text a text names without denying or only supposing it.

    An option inside a longer option that is also named does not count: "left kidney" contains "kidney".
    """
    text = plain(text)
    mentions = find_mentions(text, options)
    judge(text, mentions)
    return sorted(_named(mentions, options))


def _read_behind_retractions(text: str, question: Question) -> tuple[int | None, bool]:
    """Read what stands behind the last retraction; if that says nothing, what stands before a weak one."""
    says_no = any(re.match(r"no\b", option, re.IGNORECASE) for option in question.options)
    marks = [
        m for m in RETRACTION.finditer(text) if m["strong"] or not (says_no and m[0].lower().startswith("no"))
    ]
    for mark in reversed(marks[-3:]):
        index, found = _read(text[mark.end() :].lstrip(" ,.:;-\u2013\u2014"), question)
        if found or mark["strong"]:
            return index, found
    return _read(text, question)


def _read(text: str, question: Question) -> tuple[int | None, bool]:
    """Index of the option that a text without retraction takes, and whether it takes any."""
    mentions = find_mentions(text, question.options)
    judge(text, mentions)
    place(text, mentions, len(question.options))
    kept = [m for m in mentions if not (m.denied or m.dropped)]
    if _changes_mind(text, mentions, kept):
        return mentions[1].index, True
    stated = [m for m in kept if m.stated]
    for weaker in ("hedged", "reason"):
        stated = [m for m in stated if not getattr(m, weaker)] or stated
    leading = [m for m in kept if m.leads and not (stated and _GOES_ON.match(text, m.end))]
    claims = [*stated, *(m for m in leading if m.lettered)] if stated else leading
    if len({m.index for m in stated}) > 1 and stated[-1].concluded:
        claims = [m for m in stated if m.concluded]
    rules = (
        _without_alternatives(claims),
        [m for m in kept if m.alone and m.lettered],
        [m for m in kept if m.lettered and m.named],
    )
    for rule in rules:
        if indices := _with_coordinated(rule):
            return (indices.pop() if len(indices) == 1 else None), True
    if named := _named(kept, question.options, mentions):
        return (named.pop() if len(named) == 1 else None), True
    return _answered_by_statement(text, question)


def _changes_mind(text: str, mentions: Sequence[Mention], kept: Sequence[Mention]) -> bool:
    """Whether a letter stands first, a second one last, and only an interjection between: ``A. Hmm, B.``"""
    if len(mentions) != 2 or len(kept) != 2 or any(m.named for m in mentions):
        return False
    first, second = mentions
    between = INTERJECTION.fullmatch(text, first.end, max(first.end, second.start))
    return bool(first.leads and between and not text[second.end :].strip(" .!)"))


def _without_alternatives(claims: Sequence[Mention]) -> Sequence[Mention]:
    """Leave out ``B or C``, which is no choice, beside another claim."""
    joined = {id(each) for m in claims for each in m.coordinated if each.index != m.index}
    joined |= {id(m) for m in claims if any(each.index != m.index for each in m.coordinated)}
    return [m for m in claims if id(m) not in joined] or claims


def _with_coordinated(mentions: Iterable[Mention]) -> set[int]:
    return {each.index for m in mentions for each in (m, *m.coordinated) if not (each.denied or each.dropped)}


def _named(kept: Iterable[Mention], options: Sequence[str], mentions: Iterable[Mention] = ()) -> set[int]:
    """Options that are named by their text and nowhere denied; a longer option outweighs one within it."""
    named = [m for m in kept if m.named and not (m.denied or m.dropped)]
    named = [m for m in named if not m.reason] or named
    if named and named[-1].concluded:
        named = [m for m in named if m.concluded]
    found = {m.index for m in named}
    found -= {m.index for m in mentions if m.denied and m.named}
    folded = [option.casefold() for option in options]
    pairs = {frozenset((m.index, each.index)) for m in named for each in m.coordinated}
    inside = {i for i in found for j in found if i != j and folded[i] in folded[j] and {i, j} not in pairs}
    return found - inside


def _answered_by_statement(text: str, question: Question) -> tuple[int | None, bool]:
    """``There is no fracture`` answers "no" to ``Is there a fracture?``: the question has all its words.

    ``There is a fracture`` answers "yes": it has all words of the question, in its order.
    """
    folded = [option.casefold().strip(" .") for option in question.options]
    asked = question.question.casefold()
    if not {"yes", "no"} & set(folded) or TURNED.search(asked):
        return None, False
    words, content = set(_WORD.findall(asked)), _content(asked)
    for sentence in re.findall(r"[^.;!?\n]+\??", text.casefold()):
        said, letter = _content(sentence), "yes"
        if DENYING.search(sentence):
            letter, fits = "no", all(word in words or f"{word}s" in words for word in said)
        else:
            fits = said == content and _STATES.search(sentence) and not sentence.endswith("?")
        if said and fits and letter in folded:
            return folded.index(letter), True
    return None, False


def _content(text: str) -> list[str]:
    """Words that say something of a finding, in the singular."""
    words = [word for word in _WORD.findall(text) if not word.endswith("n't") and word not in GENERIC]
    return [word.removesuffix("s") for word in words]
