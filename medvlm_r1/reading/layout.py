"""Where in a text its mentions stand: at its beginning, alone, or in a list of all options.

=======  =================================================================================================
leading  ``B``, ``B) kidney``, ``B because ...``, ``maybe B``; an option's text leads only if it is yes or no
alone    a last line that is ``B``; ``It has the shape of a bean, B.``
listed   ``A) liver B) kidney C) left kidney D) spleen``: the options again, in their order, are no answer
=======  =================================================================================================

``B. C`` is two answers, as ``B or C`` is.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from medvlm_r1.reading.mentions import Mention
from medvlm_r1.reading.words import OPENS

_STOP = re.compile(r"[.!?;]\s|\n")
_BEGINS = re.compile(r"(?:\n|[.!?:;] )[(\[]?$")
_ENDS = re.compile(r"[)\].:;!]{1,3}(?:\s|$)|\n|$")
_LISTED = re.compile(r"[)\].:;!,]{0,3}\s?[(\[]?")


def place(text: str, mentions: Sequence[Mention], options: int) -> None:
    """Mark the mention that leads and those that stand alone; drop a list of all ``options``."""
    _drop_listed(mentions, options)
    for number, mention in enumerate(mentions):
        mention.alone = _stands_alone(text, mention, mentions[number - 1] if number else None)
    for last, mention in pairwise(mentions):
        between = _LISTED.fullmatch(text, last.end, max(last.end, mention.start))
        if mention.alone and between and (mention.lettered or mention.reply):
            mention.coordinated = [*last.coordinated, last][-10:]
    if mentions and mentions[0].start <= 60 and OPENS.fullmatch(text[: mentions[0].start]):
        first = mentions[0]
        first.leads = first.lettered or (first.start == 0 and first.reply)
        for mention in mentions[1:]:
            if first in mention.coordinated:
                mention.leads = first.leads and (mention.lettered or not first.lettered)


def _drop_listed(mentions: Sequence[Mention], options: int) -> None:
    for first in range(len(mentions) - options + 1):
        listed = mentions[first : first + options]
        in_order = all(m.index == i and not m.denied for i, m in enumerate(listed))
        in_order = in_order and all(m.lettered or (options > 2 and m.coordinated) for m in listed[1:])
        if in_order and len({m.stated for m in listed}) == 1:
            for mention in listed:
                mention.dropped = True


def _stands_alone(text: str, mention: Mention, last: Mention | None) -> bool:
    """Whether a mention is a line or sentence of its own, or ends one that has no other mention."""
    before = text[max(0, mention.start - 3) : mention.start]
    begins = bool(_BEGINS.search(before)) or (mention.start <= 3 and not before.strip("[( "))
    if before.endswith(", "):
        begins = begins or last is None or bool(_STOP.search(text, last.end, mention.start))
    return begins and bool(_ENDS.match(text, mention.end))
