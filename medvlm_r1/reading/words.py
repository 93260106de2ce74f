"""The words that the rules go by, English and Chinese, as patterns."""

import re


def _any(words: str, elsewhere: str = "") -> str:
    """Pattern of any of the alternatives, divided by bars or lines; ``words`` must be whole words."""
    pattern = rf"\b(?:{_joined(words)})\b"
    return f"{pattern}|{_joined(elsewhere)}" if elsewhere else pattern


def _joined(alternatives: str) -> str:
    return re.sub(r"\s*[|\n]\s*", "|", alternatives.strip())


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_VERBS = _joined(
    """is|are|was|were|be|been|can|could|do|does|did|has|have|had|would|should|will|may|might|must
    seems?|appears?|looks?"""
)
_ADVERBS = _joined(
    """therefore|thus|clearly|really|actually|also|definitely|probably|very|most|highly|quite|simply|thereby
    effectively"""
)
VERB = rf"(?:(?:{_VERBS})\b ?){{1,3}}"
ADVERB = rf"(?:(?:{_ADVERBS}) ){{0,2}}"

# "Pneumonia would show consolidation" says that it is no pneumonia; "pneumonia would fit" does not.
_FITS = _joined(
    """be|fit|match|explain|suit|seem|make|best|say|choose|go|answer|work|select|pick|also|not|indicate|suggest
    account"""
)
_ELSEWHERE = (
    "larger|smaller|brighter|darker|located|found|on|in|seen|visible|expected|displaced|enlarged|unusual"
)

# Cue -> pattern, in the order in which they are tried at one place.
_CUES = {
    "harmless": _any(
        r"""no doubts?|without (?:any )?doubts?|not any doubts?
        not (?:only|just)|not (?:\w+ )?(?:sure|certain|clear)(?! (?:it|that|this|about))
        (?:am|is|are)n't (?:sure|certain|clear)"""
    ),
    "instead": _any(
        r"""rather than|instead of|as opposed to|in contrast to|unlike|other than|in place of
        except(?: for)?|apart from""",
        "而不是|而非",
    ),
    "passive": _any(
        rf"""(?:{VERB}{ADVERB})?(?:excluded|ruled out|eliminated|rejected|discarded|unlikely|improbable)
        (?:{VERB}{ADVERB})?(?:less likely|least likely|absent|wrong|incorrect|false|impossible|inconsistent)
        (?:{VERB}{ADVERB})?(?:incompatible|out(?= of the question)|out(?! of)|negative(?! for)|doubtful)
        (?:{VERB}{ADVERB})?(?:implausible|missing|lacking|considered|discussed|worse)
        (?:{VERB}{ADVERB})?(?:gone|cleared|nowhere|questionable|off the table|fails? to|failed to)
        (?:{VERB}{ADVERB})?(?:resolved|dismissed|refuted|disproved)""",
        r"(?<=[:\-\u2013] )no(?=[.,;!\n)]|$)|(?<=, )no(?=[.;!\n)]|$)|"
        "(?:可以|可|被)?排除(?=[。;,.]|$)|(?<!不)错误?|不正确|不对|不符合|不可能|[\u2717\u2718\u274c]",
    ),
    "otherwise": _any(rf"would (?:(?:usually|typically) )?(?:(?!(?:{_FITS})\b)\w+|be (?:{_ELSEWHERE}))"),
    "negated_verb": _any(rf"{VERB}{ADVERB}(?:not|hardly|scarcely)|[a-z]{{2,8}}n't|cannot|can not|never"),
    "denial": _any(
        r"""no|not|without|neither|nor|none of|nothing|hardly|scarcely|barely|little|against
        (?:hard|difficult) to (?:see|detect|find|identify)
        lack(?:s|ed|ing)?(?: of)?|absence of|negative for|free (?:of|from)|devoid of|different from
        i doubt|doubts? (?:it|that|whether)
        r/o|insufficient|inadequate|far from|(?:wrong|incorrect|a mistake|an error) to|too \w+ (?:for|to be)
        den(?:y|ies|ied|ying)|rul(?:e|es|ing|ed) out|exclud(?:e|es|ing)|eliminat(?:e|es|ing)|reject(?:s|ing)?
        discard(?:s|ing)?|(?:anything|everything|all) but""",
        "不是|不选|并非|没有|未见|未显示|不存在|排除|并无|无|未|不|非",
    ),
    "supposed": _any("if|whether|unless|suppos(?:e|ing)|assuming|were it|had it", "如果|假如|是否"),
    "believed": _any(
        r"""(?:at first|initially|originally)(?: \w+)?|first (?:thought|guess(?:ed)?|considered|impression)
        initial (?:answer|guess|thought|impression)|i thought it (?:was|is|could be|might be)
        tempt(?:ed|ing)|was (?:going to|leaning|inclined|tempted)|second (?:most likely|choice)
        would have (?:said|chosen)|could have been|would have been
        than|compared (?:to|with)|mistaken for|mimic(?:s|king)?|confused with""",
        "比",
    ),
    "reason": _any("because|since|given that|due to|owing to|considering", "因为|由于"),
    "therefore": _any(
        """so|therefore|thus|hence|consequently|accordingly|in conclusion|to conclude|finally|overall
        (?:final|corrected|revised)(?= (?:answer|choice|diagnosis))|        in summary|conclusion""",
        "[\u2192\u21d2]|[=-]>|所以|因此|综上",
    ),
    "contrast": _any(
        r"""makes|implies|but|however|although|though|whereas|while|yet|nevertheless|instead|which|who
        and (?:is|are|was|there|it|the)|with(?= (?:a|an|the)\b)""",
        "但是?|而是|然而",
    ),
    "stop": r"(?<![A-Za-z0-9]\.[A-Za-z])(?<!\bvs)[.!?;](?=[\s)\]]|$|[^\x00-\x7f])|[\u3002\n]|\u2026",
    "comma": "[,:]|(?<= )[-\u2013\u2014](?= )",
    "both": _any("and|or|nor|plus|as well as|versus|vs", "[&/\u3001]|或者?|还是|以及|[和与及]"),
}
CUES = _compiled("|".join(f"(?P<{name}>{pattern})" for name, pattern in _CUES.items()))

# What a negated verb goes on with if it denies the option before it: "is not enlarged" does not.
_DENYING = _any(
    r"""seen|visible|visuali[sz]ed|present|evident|identified|shown|detected|found|there|apparent|noted|observed
    the|an?|in|on|correct|right|true|likely|possible|plausible|supported|consistent|compatible|fit|match|apply
    appear|suggested|demonstrated|it|probable|favou?red|included|expected|suspected|depicted|displayed|exist|be
    appropriate|suitable|applicable|confirmed|indicated|here|my|one"""
)
DENIES = _compiled(
    r" ?(?:be |been )?(?:(?:clearly|really|actually|readily|well|even|likely) )?"
    rf"(?:{_DENYING}|show(?=[.,;]|$)|[.,;!\n)]|$)"
)

# What stands between two mentions of one list: "the liver or maybe the kidney".
_BETWEEN = _any(
    """or|and|nor|plus|vs|versus|an?|the|maybe|perhaps|possibly|probably|even|also|either|both|any|option|choice
    as well as|to|letter|of|signs?|evidence|likely|with|then|all|be|it|could|may|might""",
    r"或者|还是|以及|[\s,()\[\]&/|+\u3001和与及或]|(?<=vs)\.",
)
JOINT = _compiled(rf"(?:{_BETWEEN})*")
GOES_ON = _compiled(r"[^.;\n]{0,80}?\b(?:or|nor|and)\b")  # "not A, B or C"; not "not A, B"
HEDGED = _compiled(r"\b(?:could|might|may)(?: also| still| even)? be(?: (?:the|an?|option))? ?\(?$")

# What stands before an option that a text states.
_ANSWER = _any(
    r"(?:answer|option|choice|selection|letter|response|diagnosis|conclusion|guess|solution)"
    r"(?:\([^)\n]{1,10}\))?(?![A-Za-z])",
    "答案|回答|选项?|选择|respuesta|réponse|antwort|答え|정답",
).replace(r")\b|", ")|", 1)
_ANSWER_LINK = _any(
    """is|are|was|would|should|could|might|may|be|must|seems|appears|to|the|this|these|that|it|most|likely
    probably|possibly|definitely|clearly|therefore|thus|option|choice|letter|an?|correct|right|best|given|as
    follows|of|for|based|on|image|scan|question|in|my|i|think|believe|would|say|choose|select|answer|final
    single|number|here|then|actually|indeed|certainly|simply|with""",
    r"[\s:=<>\-\u2013\u2014\u2192(\[,]|是|为|应该?|选择?项?|最可能的?|的|[は은는]|\b(?:es|est|ist)\b",
)
_FINDING = _any(
    """(?:consistent|compatible|in keeping) with|(?:suggestive|indicative|typical|characteristic) of
    diagnostic of|typical for|(?:points?|pointing) to"""
)
ANSWER_CUE = _compiled(rf"(?:{_ANSWER})(?:{_ANSWER_LINK})*$|(?:{_FINDING})(?: (?:an?|the))? ?\(?$")
_PLURAL = r"(?<!options )(?<!choices )(?<!answers )"
_CHOOSES = _any(
    rf"""choose|choosing|chosen?|select(?:ed|ing)?|pick(?:ed|ing)?|(?:go|going|went) (?:with|for)
    opt(?:ed)? for|vote for|settle (?:on|for)|lean(?:ing)? towards?|prefer|leaves?|leaving|only
    maybe|perhaps|probably
    say|just|vote|clearly|definitely|certainly|obviously|surely|now
    guess|think|believe|conclude|favou?r|indicates?|suggests?|matches|but|so
    (?:corresponds?|points?) to|therefore|thus|hence|finally|overall|conclusion|be|{_PLURAL}(?:is|are|was)""",
    r"'s\b|[=-]>|[\u2192\u21d2]|所以|因此|[选是为]",
)
_CHOOSES_LINK = _any(
    """option|choice|letter|the|that|it|is|it's|definitely|clearly|most|likely|probably|possibly|maybe|perhaps
    would|be|must|should|for|with|therefore|indeed|actually|certainly|only|still|also""",
    r"[\s:,(\[]",
)
LETTER_CUE = _compiled(rf"(?:{_CHOOSES})(?:{_CHOOSES_LINK}){{0,12}}$")

# What stands behind an option that a text states.
_IS = r"(?:is|are|was|seems|appears|looks|would be|should be|must be|:|-|\u2013|\() ?(?:to be )?"
_RIGHT_SIDE = r"(?! (?:lung|kidney|upper|lower|middle|lobe|side|\w+ lobe))"
_CORRECT = _joined(
    f"""correct|right{_RIGHT_SIDE}|true|accurate|answer|best|likely|appropriate|probable|choice|option|suitable
    plausible|match|fit"""
)
_DEGREE = "(?:the |my |our )?(?:(?:single|most|best|only|more|clearly|definitely|actually|overall) ){0,2}"
_VERDICT = r"[.):] ?(?:correct|right|yes|true)\b(?! \w)"
WRONG_VERDICT = _compiled(r" ?(?:incorrect|wrong|no|false|not correct)\b(?! \w)")  # "A. incorrect"
AFFIRMED = _compiled(
    rf"{_VERDICT}|[\s)\].]{{0,3}}(?:{_IS}{ADVERB}{_DEGREE}(?:{_CORRECT})\b(?! (?:to|than)\b)|"
    r"(?:fits|matches|is) (?:best|better)|remains\b|it is\b|(?:is|are) (?:left|remaining)(?=[.,;!\n]|$)|"
    r"(?:[:\-\u2013]) ?(?:yes|present|positive)\b|[\u2713\u2714\u2705]|项?是?最?(?:正确|对的|合适))"
)

# What takes an answer back. Behind a strong mark stands another answer or none.
_STRONG = _any(
    r"""no,? wait|wait,? no|wait(?!-)|correction|(?:scratch|strike) that|let me (?:reconsider|re-?think)
    let me correct (?:that|myself|this)|i (?:was|am) (?:wrong|mistaken)|my mistake
    i made an? (?:mistake|error)|i misspoke|on second thoughts?|(?:up)?on (?:further )?reflection
    actually,? no|i take that back
    i change my (?:mind|answer)|(?:that is|that's|this is) (?:wrong|incorrect|not right|not correct)""",
    "等等|更正|不对(?=[,。])",
)
_WEAK = _any(
    r"""actually|or rather|i mean|i meant|sorry|oops|apologies|let me (?:double[- ]|re)?-?check
    (?:on|upon) (?:(?:closer|further|second) )?(?:inspection|look|review|examination)|hold on|make that
    let me (?:correct|re-?\w+|think again|look again)|my bad|hang on|better(?=[:,])|in fact|nope|never ?mind
    pardon|excuse me|looking (?:again|closer|more closely)|rethinking (?:this|it)|edit(?=:)
    updated?(?=:)|revised(?=:)|(?:that|this) was (?:wrong|incorrect)|changed? my (?:mind|answer)(?: to)?""",
    r"(?<=[.,;] )(?:rather(?! than)|instead(?! of))\b|\bno[,;:!]|(?<=[?.!] )no\.|"
    r"(?<=[-,.;:\u2013\u2014] )no(?= [(]?(?-i:[A-J])\b)",
)
_NO_CHANGE = _any(
    """also|and|or|maybe|perhaps|possibly|plus|too|not|then|similar|close|next|followed|with|see|like|as|to
    alternatively|alternative|second|option"""
)
INTERJECTION = _compiled(
    rf" ?[.!?;\u2013\u2014-]{{1,3}} (?:(?!{_NO_CHANGE})[a-z']{{2,}}[ ,.:;-]{{1,3}}){{1,7}}[(\[]?"
)
RETRACTION = _compiled(f"(?P<strong>{_STRONG})|(?P<weak>{_WEAK})")

_PREFACE = _any("yes|ok|okay|sure|well|option|choice|answer|so|probably|likely|maybe|perhaps")
OPENS = _compiled(rf"[^\w\n]{{0,8}}(?:\d[.)] ?)?(?:(?:{_PREFACE})[\s,:(]*)*")
DENYING = re.compile(r"\b(?:no|not|cannot|without)\b|n't\b")
# Words of a question that turn the meaning of "no" around: "Is it normal?", "Is it free of lesions?"
TURNED = re.compile(
    _any(
        """no|not|free|absent|absence|without|normal|healthy|negative|ruled?|exclude[ds]?|lack|clear|intact""",
        r"n't\b",
    )
)
# Words that say nothing of a finding.
GENERIC = frozenset(
    _joined(
        """a|an|the|this|that|these|there|is|are|was|be|been|it|i|we|can|cannot|do|does|did|not|no|any|of|in|on|at|or
        and|to|have|has|one|such|here|therefore|so|image|images|picture|scan|radiograph|film|seen|see|visible
        present|evident|evidence|sign|signs|indication|show|shows|shown|showing|appear|appears|identified|noted
        observed|detected|found|demonstrated|clear|clearly|obvious|definite|line|lines|without"""
    ).split("|")
)
