"""What a text says of the options that it mentions: rule by rule, in one pass.

=============  =============================================================================================
rule           examples
=============  =============================================================================================
denied before  ``no pneumonia``, ``not B``, ``without``, ``absence of``, ``isn't``, ``neither A nor B``, ``rule out
               A and D``, ``B rather than C``, 不是B; up to the end of the clause: ``not A but B`` denies A alone
denied behind  ``pneumonia is excluded``, ``is unlikely``, ``is not seen``, ``B is wrong``, ``can be ruled out``
stated before  ``the answer is B``, ``Answer: B``, ``I choose B``, ``it is B``, ``so B``, ``option B``, 选B
stated behind  ``B is correct``, ``pneumonia is most likely``
dropped        supposed (``if``, ``whether``), asked (``B?``), compared (``than B``), once believed (``at first``)
reason         ``kidney, because the liver is larger`` means the kidney
=============  =============================================================================================

"No doubt", "not sure" and "not only" deny nothing. Mentions joined by "and", "or" or commas share their fate.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medvlm_r1.reading.mentions import Mention

_VERB = r"(?:(?:is|are|was|were|be|been|can|could|do|does|did|has|have|had|would|should|will|may|might|must|seems?|appears?|looks?)\b ?){1,3}"
_ADVERB = r"(?:(?:therefore|thus|clearly|really|actually|also|definitely|probably|very|most|highly|quite|simply|thereby|effectively) ){0,2}"
_CUES = re.compile(
    "|".join(
        f"(?P<{name}>{pattern})"
        for name, pattern in {
            "harmless": r"\b(?:no|without (?:any )?|not any) ?doubts?\b|\bnot (?:only|just|(?:\w+ )?(?:sure|certain|clear))\b|"
            r"\b(?:am|is|are|'m)n't (?:sure|certain|clear)\b|\bno(?:\.|t)? (?=\d)|\bnot? least\b",
            "instead": r"\b(?:rather than|instead of|as opposed to|in contrast to|unlike|other than|in place of|except(?: for)?)\b|而不是|而非",
            "passive": rf"\b(?:{_VERB}{_ADVERB})?(?:excluded|ruled out|eliminated|rejected|discarded|unlikely|improbable|less likely|"
            r"least likely|absent|wrong|incorrect|false|impossible|out of the question|inconsistent|incompatible)\b|"
            r"(?:可以|可|被)?排除(?=[。;,.]|$)|错误|不正确|不对|不符合|不可能",
            "negated_verb": rf"\b(?:{_VERB}{_ADVERB})not\b|\b[a-z]{{2,8}}n't\b|\bcannot\b|\bcan not\b|\bnever\b",
            "denial": r"\b(?:no|not|without|neither|nor|lack(?:s|ed|ing)?(?: of)?|absence of|den(?:y|ies|ied|ying)|(?:rul(?:e|es|ing)|ruled) out|"
            r"exclud(?:e|es|ing)|eliminat(?:e|es|ing)|reject(?:s|ing)?|discard(?:s|ing)?|against|negative for|free (?:of|from)|(?:anything|everything|all) but|"
            r"fail(?:s|ed)? to|different from|inconsistent with|none of)\b|不是|不选|并非|没有|未见|未显示|不存在|排除|并无|无|未|不|非",
            "supposed": r"\b(?:if|whether|unless|suppos(?:e|ing)|assuming|were it|had it)\b|如果|假如|是否",
            "believed": r"\b(?:(?:at first|initially|originally)(?: \w+)?|first (?:thought|guess(?:ed)?|considered|impression)|tempt(?:ed|ing)|"
            r"than|compared (?:to|with)|mistaken for|mimic(?:s|king)?|confused with|could have been|would have been)\b|比",
            "reason": r"\b(?:because|since|given that|due to|owing to|considering)\b|因为|由于",
            "therefore": r"\b(?:so|therefore|thus|hence|consequently|accordingly|in conclusion|to conclude|finally|overall|in summary|conclusion)\b|[\u2192\u21d2]|=>|所以|因此|综上",
            "contrast": r"\b(?:but|however|although|though|whereas|while|yet|nevertheless|instead|which|who|except that|and (?:is|are|was|there|it|the)|"
            r"with(?= (?:a|an|the)\b))|但是?|而是|然而",
            "stop": r"(?<![A-Za-z0-9]\.[A-Za-z])(?<!\be\.g)(?<!\bvs)[.!?;](?=[\s)\]]|$|[^\x00-\x7f])|[。\n]|\u2026",
            "comma": r"[,:]",
            "both": r"\b(?:and|or|nor|plus|as well as|versus|vs)\b\.?|[&/、]|或者?|还是|以及|[和与及]",
        }.items()
    ),
    re.IGNORECASE,
)
# What a negated verb must go on with to deny the option before it: "is not enlarged" does not.
_DENIES = re.compile(
    r" ?(?:be )?(?:(?:clearly|really|actually|readily|well|even|likely) )?(?:(?:seen|visible|visuali[sz]ed|present|evident|identified|shown|"
    r"detected|found|there|apparent|noted|observed|the|an?|in|on|correct|right|true|likely|possible|plausible|supported|consistent|compatible|"
    r"fit|match|apply|appear|suggested|demonstrated|it|probable|favou?red|included|expected|suspected|depicted|displayed|exist|be|an option|"
    r"appropriate|suitable|applicable|confirmed|indicated|here|my|one)\b|[.,;!\n)]|$)",
    re.IGNORECASE,
)
_FILLER = r"(?:an?|the|maybe|perhaps|possibly|probably|even|also|either|both|any|option|choice|letter|of|a|signs?|evidence|likely|with|then|all|only|just|be|it|could|may|might)"
_JOINT = re.compile(rf"(?:[\s,()\[\]&/、和与及或]|or\b|and\b|nor\b|plus\b|vs\b\.?|versus\b|或者|还是|以及|{_FILLER}\b)*", re.IGNORECASE)
_LINK = (
    r"is|are|was|would|should|could|might|may|be|must|seems|appears|to|the|this|these|that|it|most|likely|probably|possibly|definitely|clearly|"
    r"therefore|thus|option|choice|letter|an?|correct|right|best|given|as|follows|of|for|based|on|image|scan|question|in|my|i|think|believe|"
    r"would|say|choose|select|answer|final|single|number|thing|here|then|actually|indeed|certainly|simply|about"
)
_ANSWER_CUE = re.compile(
    rf"(?:\b(?:answer|option|choice|selection|letter|response|diagnosis|conclusion|guess|solution)(?:\([^)\n]{{1,10}}\))?(?![A-Za-z])|答案|选项?|选择)"
    rf"(?:[\s:=>\-\u2013\u2014\u2192(\[,]|(?:{_LINK})\b|是|为|应该?|选择?项?|最可能的?|的)*$",
    re.IGNORECASE,
)
_VERB_CUE = re.compile(
    r"(?:\b(?:choos(?:e|ing)|chose|select(?:ed|ing)?|pick(?:ed|ing)?|(?:go|going|went) (?:with|for)|opt(?:ed)? for|vote for|settle (?:on|for)|"
    r"say|guess|think|believe|conclude|favou?r|indicates?|suggests?|(?:corresponds?|points?) to|matches|"
    r"is|'s|be|are|was|but|so|therefore|thus|hence|finally|overall|conclusion|=>|[\u2192\u21d2])|所以|因此|[选是为])"
    r"(?:[\s:,(\[]|\b(?:option|choice|letter|the|that|it|is|it's|definitely|clearly|most|likely|probably|possibly|maybe|perhaps|"
    r"would|be|must|should|for|with|therefore|indeed|actually|certainly|only|still)\b){0,12}$",
    re.IGNORECASE,
)
_AFFIRMED = re.compile(
    rf"[\s)\].\"]{{0,3}}(?:(?:is|are|was|seems|appears|looks|would be|should be|must be|:|-|\u2013|\() ?(?:to be )?(?:{_ADVERB})(?:the |my |our )?"
    r"(?:(?:single|most|best|only|more|clearly|definitely|actually|overall) ){0,2}(?:correct|right(?! (?:lung|kidney|upper|lower|middle|lobe|side|\w+ lobe))|true|accurate|answer|best|"
    r"likely|appropriate|probable|choice|option|suitable|plausible|match|fit)\b(?! (?:to|than)\b)|fits best|matches best|it is\b|[\u2713\u2714\u2705]|项?(?:是)?(?:最)?(?:正确|对的|合适))",
    re.IGNORECASE,
)


@dataclass
class _Clause:
    """State of the pass: what the clause so far does to the next mention."""

    denies: bool = False
    drops: bool = False
    reason: bool = False
    concludes: bool = False
    instead: bool = False
    last: Mention | None = None  # last mention that a cue behind it can still deny


def judge(text: str, mentions: Sequence[Mention]) -> None:
    """Fill in what ``text`` says of each mention."""
    clause, sentence = _Clause(), []
    waiting = list(reversed(mentions))
    previous: Mention | None = None
    for cue in _CUES.finditer(text):
        while waiting and waiting[-1].start < cue.end():
            previous = _judge_one(text, waiting.pop(), previous, clause)
            sentence.append(previous)
        if previous and cue.start() < previous.end:  # a cue within an option's text
            continue
        if cue.lastgroup == "stop":
            if cue[0] == "?":
                for mention in sentence:
                    mention.dropped = True
            clause, sentence = _Clause(), []
        else:
            _apply(text, cue, clause, waiting[-1] if waiting else None)
    while waiting:
        previous = _judge_one(text, waiting.pop(), previous, clause)


def _judge_one(text: str, mention: Mention, previous: Mention | None, clause: _Clause) -> Mention:
    before = text[max(0, mention.start - 90) : mention.start]
    joint = clause.last is not None and previous is clause.last and mention.start - previous.end <= 40
    if joint and _JOINT.fullmatch(text[previous.end : mention.start]):
        mention.coordinated = [*previous.coordinated, previous][-10:]
    mention.denied = clause.denies
    mention.dropped = clause.drops
    mention.reason = clause.reason
    mention.concluded = clause.concludes
    mention.stated = bool(_ANSWER_CUE.search(before) or (mention.lettered and _VERB_CUE.search(before)))
    if mention.coordinated and mention.coordinated[-1].stated:
        mention.stated = True
    if _AFFIRMED.match(text, mention.end) and not clause.denies:
        for each in (mention, *mention.coordinated):
            each.stated = not each.denied
    clause.last = mention
    return mention


def _apply(text: str, cue: re.Match[str], clause: _Clause, following: Mention | None) -> None:
    kind = cue.lastgroup
    if kind in ("denial", "instead"):
        clause.denies, clause.instead, clause.last = True, kind == "instead", None
    elif kind in ("passive", "negated_verb"):
        adjacent = clause.last is not None and "," not in text[clause.last.end : cue.start()]
        if clause.last and (adjacent or re.match(r"(?:is|are|was|can|has)\b", cue[0], re.IGNORECASE)):
            if kind == "passive" or _DENIES.match(text, cue.end()):
                for mention in (clause.last, *clause.last.coordinated):
                    mention.denied, mention.stated = True, False
        clause.denies = clause.denies or kind == "negated_verb" or clause.last is None
        clause.last = None
    elif kind in ("supposed", "believed"):
        clause.drops = True
    elif kind == "reason":
        clause.reason, clause.denies, clause.last = clause.last is not None, False, None
    elif kind in ("therefore", "contrast"):
        clause.denies = clause.reason = False
        clause.drops = clause.drops and kind == "therefore"
        clause.concludes, clause.last = clause.concludes or kind == "therefore", None
    elif kind == "comma" and not _continues(text, cue, clause, following):
        clause.denies = False
    elif kind == "both" and clause.denies and not _continues(text, cue, clause, following):
        clause.denies, clause.last = False, None


def _continues(text: str, cue: re.Match[str], clause: _Clause, following: Mention | None) -> bool:
    """Whether a denied list goes on behind a comma or "and": ``no pneumonia, effusion, or fracture``."""
    if clause.last is None or clause.instead or following is None or following.start - cue.end() > 40:
        return False
    return bool(_JOINT.fullmatch(text[cue.end() : following.start]))
