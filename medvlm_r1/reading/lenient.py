"""The letter that a human reader takes from a completion, or none.

In this order; the first that gives an option decides, and two different options are none:

=============  ====================================================================================
retracted      ``A. No wait, B``: what stands behind the last retraction is read alone
stated         ``The answer is B``, ``B is correct``; a concluding statement outweighs earlier ones
leading        ``B``, ``B) kidney``, ``B because ...``, ``Yes, ...``: the text begins with it
alone          a line or sentence that is nothing but a letter
labelled       ``the structure is B) kidney``
named          the one option whose text is affirmed; ``left kidney`` outweighs ``kidney``
answered "no"  ``There is no fracture`` to ``Is there a fracture?``, where "no" is an option
=============  ====================================================================================

It may say none: a wrong letter is worse than a missing one.
"""

import re
from collections.abc import Iterable, Sequence

from medvlm_r1.data.sample import Question
from medvlm_r1.reading.claims import judge
from medvlm_r1.reading.mentions import Mention, find_mentions
from medvlm_r1.reading.plain import plain
from medvlm_r1.reading.scope import answering_part

_STRONG = (
    r"\b(?:no,? wait|wait,? no|wait(?!-|ing)|correction|(?:scratch|strike) that|let me (?:reconsider|re-?think|correct (?:that|myself|this))|"
    r"i (?:was|am) (?:wrong|mistaken)|my mistake|i made an? (?:mistake|error)|i misspoke|on second thoughts?|on (?:further )?reflection|"
    r"actually,? no|i take that back|i change my (?:mind|answer))\b|等等|更正"
)
_WEAK = r"\b(?:actually|or rather|i mean|i meant|sorry|oops|apologies|let me (?:double[- ]|re)?-?check|no[,;:!]|(?<=[?.!] )no\.)"
_RETRACTION = re.compile(rf"(?P<strong>{_STRONG})|(?P<weak>{_WEAK})", re.IGNORECASE)
_ALONE = re.compile(r"[\s().\[\]:,;!\-\u2013\u2014]*")
_OPENS = re.compile(r"[\s(\[:.\-]*(?:(?:yes|ok|okay|sure|well|option|choice|answer|so|probably|likely|maybe|perhaps)\b[\s,:(]*)*", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_POLAR = re.compile(r"\b(?:no|not|free|absent|absence|without|normal|healthy|negative|ruled?|exclude[ds]?|lack|clear|intact)\b|n't\b")
_GENERIC = frozenset(
    "a an the this that these there is are was be it i we can do does did not no any of in on at or and image images picture scan radiograph "
    "film seen see visible present evident evidence sign signs indication show shows shown showing appear appears identified noted observed "
    "detected found demonstrated to have has been clear clearly obvious definite don doesn isn cannot one such here therefore so".split()
)


def lenient_letter(text: str, question: Question) -> str | None:
    """The letter that a human reader takes from a completion; ``None`` if it answers none or several."""
    if question.is_open:
        return None
    text = answering_part(text)
    if text.casefold() in (folded := [option.casefold() for option in question.options]):
        return question.letters[folded.index(text.casefold())]
    text = plain(text)
    bare = _ALONE.sub("", text)
    if len(bare) == 1 and bare.upper() in question.letters and "?" not in text:
        return bare.upper()
    index, _ = _read_behind_retractions(text, question)
    return None if index is None or index < 0 else question.letters[index]


def affirmed_options(text: str, options: Sequence[str]) -> list[int]:
    """Indices of the options whose text a plain text names without denying it, in their order."""
    text = plain(text)
    mentions = find_mentions(text, options)
    judge(text, mentions)
    return sorted(_named(mentions, options))


def _read_behind_retractions(text: str, question: Question) -> tuple[int | None, bool]:
    """Read what stands behind the last retraction; if that says nothing, what stands before a weak one."""
    says_no = any(re.match(r"no\b", option, re.IGNORECASE) for option in question.options)
    marks = [m for m in _RETRACTION.finditer(text) if not (says_no and m[0].lower().startswith("no"))]
    for mark in reversed(marks[-3:]):
        index, found = _read(text[mark.end() :].lstrip(" ,.:;-\u2013\u2014"), question)
        if found or mark["strong"]:
            return index, found
    return _read(text, question)


def _read(text: str, question: Question) -> tuple[int | None, bool]:
    """Index of the option that a text without retraction takes, and whether it takes any."""
    mentions = find_mentions(text, question.options)
    judge(text, mentions)
    _place(text, mentions, len(question.options))
    kept = [m for m in mentions if not (m.denied or m.dropped)]
    stated = [m for m in kept if m.stated]
    if len({m.index for m in stated}) > 1 and stated[-1].concluded:
        stated = [m for m in stated if m.concluded]
    leading = [m for m in kept if m.leads]
    rules = (
        [*stated, *(m for m in leading if m.lettered)] if stated else leading,
        [m for m in kept if m.alone and m.lettered],
        [m for m in kept if m.lettered and m.named],
    )
    for rule in rules:
        if indices := _with_coordinated(rule):
            return (indices.pop() if len(indices) == 1 else None), True
    if named := _named(kept, question.options, mentions):
        return (named.pop() if len(named) == 1 else None), True
    return _answered_no(text, question)


def _with_coordinated(mentions: Iterable[Mention]) -> set[int]:
    return {each.index for m in mentions for each in (m, *m.coordinated) if not each.denied}


def _place(text: str, mentions: Sequence[Mention], options: int) -> None:
    """Mark the mention that leads, those that stand alone, and the options that are only listed again."""
    for first in range(len(mentions) - options + 1):
        listed = mentions[first : first + options]
        if [m.index for m in listed] == list(range(options)) and all(m.lettered for m in listed):
            for mention in listed:
                mention.dropped = mention.dropped or not (mention.stated and mention is listed[-1] and False)
    for mention in mentions:
        before, after = text[max(0, mention.start - 3) : mention.start], text[mention.end : mention.end + 3]
        opens = mention.start == 0 or re.search(r"(?:\n|[.!?:] )[(\[]?$", before) or not text[: mention.start].strip(" (["); 
        mention.alone = bool(opens and re.match(r"[)\].:!]{0,3}(?:\s|$)", after))
    if mentions and _OPENS.fullmatch(text[: mentions[0].start][:60]) and mentions[0].start <= 60:
        first = mentions[0]
        first.leads = first.lettered or first.start == 0 and _is_yes_no(text[first.start : first.end])
        for mention in mentions[1:]:
            if first in mention.coordinated:
                mention.leads = first.leads and (mention.lettered or not first.lettered)


def _is_yes_no(text: str) -> bool:
    return text.lower() in ("yes", "no", "true", "false")


def _named(kept: Iterable[Mention], options: Sequence[str], mentions: Iterable[Mention] = ()) -> set[int]:
    """Options that are named by their text and nowhere denied; a longer option outweighs one within it."""
    named = [m for m in kept if m.named and not (m.denied or m.dropped)]
    found = {m.index for m in named if not m.reason} or {m.index for m in named}
    found -= {m.index for m in mentions if m.denied and m.named}
    folded = [option.casefold() for option in options]
    pairs = {frozenset((m.index, each.index)) for m in named for each in m.coordinated}
    inside = {i for i in found for j in found if i != j and folded[i] in folded[j] and {i, j} not in pairs}
    return found - inside


def _answered_no(text: str, question: Question) -> tuple[int | None, bool]:
    """``There is no fracture`` answers "no" to ``Is there a fracture?``, if all its words are the question's."""
    folded = [option.casefold().strip(" .") for option in question.options]
    asked = question.question.casefold()
    if "no" not in folded or _POLAR.search(asked):
        return None, False
    words = set(_WORD.findall(asked))
    for sentence in re.split(r"[.;!?\n]", text.casefold()):
        said = set(_WORD.findall(sentence)) - _GENERIC
        denied = re.search(r"\b(?:no|not|cannot|without)\b|n't\b", sentence)
        if denied and said and all(word in words or word.removesuffix("s") in words for word in said):
            return folded.index("no"), True
    return None, False
