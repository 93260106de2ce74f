"""The part of a completion that answers: behind the reasoning, within answer tags.

=========================================  ==================================================
completion                                 the part that answers
=========================================  ==================================================
``It is <answer>B.</answer>``              ``B.``
``<think>maybe A</think>B``                ``B``: behind a closed think tag stands the answer
``maybe A</think>B``                       ``B``: the chat template has opened the tag
``B <think>since it is round</think>``     ``B``: reasoning after the answer
``<think>The answer is B or``              none: cut inside the reasoning
``<think>so</think><answer>B``             ``B``: cut inside the answer
``<think>...so <answer>B.</answer>``       ``B.``: the reasoning is not closed, the answer is
=========================================  ==================================================

Every tag is searched once: a regular expression with two lazy wildcards takes quadratic time on the
degenerate texts of early training.
"""

import re

TAG_ENDS = {
    tag: (re.compile(f"<{tag}>", re.IGNORECASE), re.compile(f"</{tag}>", re.IGNORECASE))
    for tag in ("think", "answer")
}
# A human reader knows other names of the tag, too.
_REASONING = tuple(
    re.compile(f"<{slash}(?:think(?:ing)?|thoughts?|reasoning)>", re.IGNORECASE) for slash in ("", "/")
)
TORN_TAG = re.compile(r"</?[A-Za-z]*$")  # a tag cut at the token limit


def tag_contents(text: str, tag: str) -> str | None:
    """Stripped contents of the first ``<tag>...</tag>`` in any case; ``None`` without both tags."""
    opening, closing = TAG_ENDS[tag]
    if (start := opening.search(text)) and (end := closing.search(text, start.end())):
        return text[start.end() : end.start()].strip()
    return None


def end_of_think(text: str) -> int:
    """Index behind the last closing think tag; 0 without one."""
    return max((tag.end() for tag in TAG_ENDS["think"][1].finditer(text)), default=0)


def reopen_think(text: str) -> str:
    """Put back a think tag that a completion closes but does not open: the chat template has opened it."""
    before, closing, _ = text.partition("</think>")
    return f"<think>{text}" if closing and "<think>" not in before else text


def close_think(text: str) -> str:
    """Close the think tag of a completion without an answer."""
    text = TORN_TAG.sub("", text).rstrip()
    opening, closing = TAG_ENDS["think"]
    start = opening.search(text)
    return f"{text}</think>" if start and not closing.search(text, start.end()) else text


def answering_part(text: str) -> str:
    """The part of a completion that answers, stripped; empty if there is none."""
    outside = _outside_reasoning(text)
    if not outside:
        return tag_contents(text, "answer") or ""
    if (content := tag_contents(outside, "answer")) is not None:
        return content
    before, opened, after = _split(outside, TAG_ENDS["answer"][0])
    return (_untorn(after) or _untorn(before)) if opened else outside


def _outside_reasoning(text: str) -> str:
    """The text behind the last closed think tag; else the text before the first think tag."""
    opening, closing = _REASONING
    end = max((tag.end() for tag in closing.finditer(text)), default=0)
    behind, reopened, _ = _split(text[end:], opening)
    if behind := _untorn(behind):
        return behind
    before, opened, _ = _split(text[:end], opening)
    return _untorn(before) if opened and not reopened else ""


def _split(text: str, tag: re.Pattern[str]) -> tuple[str, bool, str]:
    match = tag.search(text)
    return (text[: match.start()], True, text[match.end() :]) if match else (text, False, "")


def _untorn(text: str) -> str:
    """Strip a text, and the tag that the token limit cut at its end."""
    return TORN_TAG.sub("", text.strip()).rstrip()
