"""What a text says of the options that it mentions: rule by rule, in one pass.

=============  =========================================================================================
rule           examples
=============  =========================================================================================
denied before  ``no pneumonia``, ``not B``, ``without``, ``absence of``, ``isn't``, ``neither A nor B``,
               ``rule out A and D``, ``B rather than C``, 不是B; to the end of the clause only:
               ``not A but B`` denies A alone
denied behind  ``pneumonia is excluded``, ``is unlikely``, ``is not seen``, ``B is wrong``, B错误
stated before  ``the answer is B``, ``Answer: B``, ``I choose B``, ``it is B``, ``so B``, 选B
stated behind  ``B is correct``, ``pneumonia is most likely``, B正确
dropped        supposed (``if B``), asked (``B?``), compared (``than B``), once believed (``at first B``)
reason         ``kidney, because the liver is larger`` names the kidney
=============  =========================================================================================

"No doubt", "not sure" and "not only" deny nothing. Mentions that "and", "or" or commas join share their fate.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medvlm_r1.reading.mentions import Mention
from medvlm_r1.reading.words import (
    AFFIRMED,
    ANSWER_CUE,
    CUES,
    DENIES,
    GOES_ON,
    HEDGED,
    JOINT,
    LETTER_CUE,
    WRONG_VERDICT,
)

_LISTS = re.compile(r"no\b|without|neither|nor|free|negative|absence|lack|den")  # "no A, B" denies both
_DASHES = "-\u2013\u2014"
_PRONOUN = re.compile(r"\b(?:it|this|that|there|he|she|they)\b", re.IGNORECASE)
_IS = re.compile(r"(?:is|are|was|can|has)\b")


@dataclass
class _Clause:
    """State of the pass: what the clause so far does to the next mention."""

    start: int = 0
    denies: bool = False
    denied_at: int = 0  # end of the cue that denies
    drops: bool = False
    reason: bool = False
    concludes: bool = False
    conceded: bool = False  # a reason or a concession that ends at the next comma
    unlisted: bool = False  # a comma ends what is denied, unless "or" follows
    last: Mention | None = None  # last mention that a cue behind it can still deny
    parted: tuple[int, Mention | None] = (0, None)  # end of the last "but", and the mention before it


def judge(text: str, mentions: Sequence[Mention]) -> None:
    """Fill in what ``text`` says of each mention."""
    clause, sentence = _Clause(), []
    waiting = list(reversed(mentions))
    previous: Mention | None = None
    for cue in CUES.finditer(text):
        while waiting and waiting[-1].start < cue.end():
            previous = _judge_one(text, waiting.pop(), previous, clause)
            sentence.append(previous)
        if previous and cue.start() < previous.end:  # a cue within an option's text
            continue
        if cue.lastgroup == "stop":
            label = previous is not None and previous.lettered and text[previous.end : cue.end()] == "."
            if label and WRONG_VERDICT.match(text, cue.end()):
                continue  # "A. incorrect"
            if cue[0] == "?":
                for mention in sentence:
                    mention.dropped = True
            clause, sentence = _Clause(cue.end()), []
        else:
            _apply(text, cue, clause, waiting[-1] if waiting else None)
    while waiting:
        previous = _judge_one(text, waiting.pop(), previous, clause)


def _judge_one(text: str, mention: Mention, previous: Mention | None, clause: _Clause) -> Mention:
    before = text[max(0, mention.start - 90) : mention.start]
    joint = clause.last is not None and previous is clause.last and mention.start - previous.end <= 40
    if joint and JOINT.fullmatch(text[previous.end : mention.start]):
        mention.coordinated = [*previous.coordinated, previous][-10:]
    mention.denied = clause.denies
    mention.dropped = clause.drops
    mention.reason = clause.reason
    mention.concluded = clause.concludes
    mention.hedged = bool(HEDGED.search(before))
    mention.stated = bool(ANSWER_CUE.search(before) or (mention.lettered and LETTER_CUE.search(before)))
    if mention.coordinated and mention.coordinated[-1].stated:
        mention.stated = True
    if AFFIRMED.match(text, mention.end) and not clause.denies:
        for each in (mention, *mention.coordinated):
            each.stated = not each.denied
    clause.last = mention
    return mention


def _apply(text: str, cue: re.Match[str], clause: _Clause, following: Mention | None) -> None:
    """Change the state of the clause, and deny the mentions before a cue that works backwards."""
    kind, word, denied = cue.lastgroup, cue[0].lower(), clause.denies
    behind = clause.last or _before_conjunction(text, cue, clause)
    if kind == "denial" and word == "not" and _denies_behind(text, cue, clause, behind):
        kind = "negated_verb"  # "pneumonia not seen"
    if word.startswith(("except", "apart")) and clause.last and clause.last.named:
        clause.last.denied = True  # "normal except for an effusion"
    if kind in ("denial", "instead"):
        clause.denies, clause.last = True, None
        clause.unlisted = kind == "instead" or not _LISTS.match(word)
    elif kind in ("passive", "negated_verb"):
        last = clause.last or _before_conjunction(text, cue, clause)
        if last and _speaks_of(text, last, cue, following):
            for mention in (last, *last.coordinated):
                mention.denied, mention.stated = True, False
        clause.denies = clause.denies or kind == "negated_verb" or last is None
        clause.last = None
    elif kind == "otherwise":
        for mention in (clause.last, *clause.last.coordinated) if clause.last else ():
            mention.denied, mention.stated = True, False
    elif kind in ("supposed", "believed"):
        clause.drops = True
    elif kind == "reason" or word in ("while", "whereas", "although", "though"):
        clause.conceded = not text[clause.start : cue.start()].strip()
        clause.reason, clause.denies, clause.last = True, False, None
    elif kind in ("therefore", "contrast"):
        clause.denies = clause.reason = False
        clause.drops = clause.drops and kind == "therefore"
        clause.concludes, clause.parted = clause.concludes or kind == "therefore", (cue.end(), clause.last)
        clause.last = None
    elif kind == "comma":
        clause.reason = clause.reason and not clause.conceded
        announced = text[clause.denied_at : cue.end()].strip() in (":", "answer:")  # "ruled out: A and B"
        clause.denies = clause.denies and (announced or _continues(text, cue, clause, following))
    elif kind == "both" and clause.denies:
        clause.unlisted = True  # "A, C and D, ...": the list is complete
        if not _continues(text, cue, clause, following):
            clause.denies, clause.last = False, None
    if clause.denies and not denied:
        clause.denied_at = cue.end()


def _speaks_of(text: str, mention: Mention, cue: re.Match[str], following: Mention | None) -> bool:
    """Whether a cue denies the mention before it, rather than the one behind it or a property."""
    if mention.reply:
        return False
    between = text[mention.end : cue.start()]
    if "," in between and (
        _PRONOUN.search(between) or not (_IS.match(cue[0].lower()) or cue[0].lower() == "no")
    ):
        return False
    if cue.lastgroup == "passive":
        return True
    aims = following is not None and following.start - cue.end() <= 40
    if aims and JOINT.fullmatch(text, cue.end(), max(cue.end(), following.start)):
        return False
    return DENIES.match(text, cue.end()) is not None


def _before_conjunction(text: str, cue: re.Match[str], clause: _Clause) -> Mention | None:
    """The mention that ``pneumonia was considered but excluded`` still speaks of behind "but"."""
    end, mention = clause.parted
    return None if text[end : cue.start()].strip() else mention


def _denies_behind(text: str, cue: re.Match[str], clause: _Clause, last: Mention | None) -> bool:
    """Whether "not" without a verb denies the mention before it: ``pneumonia not seen``."""
    adjacent = last is not None and (clause.last is None or not text[last.end : cue.start()].strip())
    return adjacent and DENIES.match(text, cue.end()) is not None


def _continues(text: str, cue: re.Match[str], clause: _Clause, following: Mention | None) -> bool:
    """Whether a denied list goes on behind a comma or "and": ``no pneumonia, effusion, or fracture``."""
    if clause.last is None or following is None or following.start - cue.end() > 40 or cue[0] in _DASHES:
        return False
    if clause.unlisted and cue.lastgroup == "comma" and not GOES_ON.match(text, following.end):
        return False
    return bool(JOINT.fullmatch(text[cue.end() : following.start]))
