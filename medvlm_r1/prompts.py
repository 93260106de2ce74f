"""How a question is asked and how the answer is read, side by side.

The instruction that asks for a format, the parser that reads it and the judges of it form one
grammar, so they stand in one file; rewards and evaluation both call :meth:`PromptStyle.parse`.

Departures from the papers' released code:

1. Both papers read letters differently in their rewards and in their evaluation. Here one parser
   finds the contents of the first ``<answer>`` tag in any case; ``letter`` is set when that is a
   single letter of the question. MedVLM-R1's evaluation accepts upper case only, Med-R1's any word.
2. MedVLM-R1's "simple" evaluation demands that the raw output equal the letter, so a zero-shot
   model that says ``A.`` scores 0. ``lenient`` reads such an answer; both are reported.
3. Neither paper asks open questions. Theirs is a template of its own here (``open``), and an answer
   is compared with the gold text as SQuAD does.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medvlm_r1.data.sample import Phase, Question, VQASample

_BETWEEN = {
    "think": re.compile(r"</think>\s*<answer>"),
    "answer": re.compile(r"</answer>\s*<think>"),
}
_TORN_TAG = re.compile(r"</?\w*$")  # what a limit leaves of a tag
_TAG_ENDS = {
    tag: (re.compile(f"<{tag}>", re.IGNORECASE), re.compile(f"</{tag}>", re.IGNORECASE))
    for tag in ("think", "answer")
}
# "A cyst" and "the answer is a cyst" hold an article, not a letter: a letter is followed by its
# bracket or stop, or ends the line; any other capital may do without. "A or B" is no choice.
_CLOSED = r"(?=[*_]*(?:[)\].:,]|[ \t]*(?:\n|$)))"
_ALONE = r"(?![\s*_)\]]*(?:,|/|&|or\b|and\b)[\s*_(\[]*(?-i:[A-HJ])\b)"
_LEADING_LETTER = re.compile(rf"^[\s*_(\[]*([B-HJ](?=\s)|[A-Ja-j]{_CLOSED}){_ALONE}")
_STATED_LETTER = re.compile(
    rf"\b(?:answer|option|choice)\b(?:\s+is\b)?[\s:*_(\[]*((?-i:[B-J])\b|[A-J]{_CLOSED}){_ALONE}",
    re.IGNORECASE,
)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Answer:
    """What one completion says.

    Attributes:
        text: the completion as generated, without special tokens.
        content: contents of the first answer tag, stripped; without a tag ``None``, or the whole text
            where the prompt asks for none.
        letter: strict reading: ``content`` is exactly one of the question's letters.
        lenient: the strict letter or, failing that, the letter that a human reader would take.
        reasoning: contents of the first think tag, stripped; ``None`` without one.
        well_formed: the whole text is think tags, then answer tags (MedVLM-R1's format reward).
        answer_only: the whole text is answer tags (Med-R1's format reward without thinking).
        answer_first: the whole text is answer tags, then think tags (Med-R1's Think-After).
    """

    text: str
    content: str | None = None
    letter: str | None = None
    lenient: str | None = None
    reasoning: str | None = None
    well_formed: bool = False
    answer_only: bool = False
    answer_first: bool = False

    @property
    def answered(self) -> bool:
        """Whether there is an answer in answer tags, with or without reasoning."""
        return self.content is not None


@dataclass(frozen=True)
class Alternatives:
    """One completion, once with each option's letter as its answer.

    Attributes:
        texts: in the order of the letters, up to the closing tag; all that stands before the letter is
            the model's own.
        forced: the completion holds no answer in the strict reading, so one was put to its end.
        ends_turn: no tag closes the answer, so the end of turn is what does.
    """

    texts: tuple[str, ...]
    forced: bool
    ends_turn: bool


@dataclass(frozen=True)
class PromptStyle:
    """One way to put a question and to read its answer.

    Attributes:
        name: recorded beside the weights, so that prediction asks as training did.
        train: template of the user turn while training; ``{Question}`` is the problem text.
        evaluate: template of the user turn in evaluation (the papers' differ in white space).
        layout: ``lines`` puts one option a line (``A) brain``), as MedVLM-R1 does; ``inline`` puts
            them behind the question (``A)brain, B)liver``), as Med-R1 does.
        tags: whether the prompt asks for answer tags; without, the whole completion is the answer.
        open: template of the user turn for a question without options, in both phases; ``None`` where
            the prompt can only ask for a letter.
    """

    name: str
    train: str
    evaluate: str
    layout: Literal["lines", "inline"] = "lines"
    tags: bool = True
    open: str | None = None

    def __post_init__(self) -> None:
        for phase in ("train", "evaluate", "open"):
            template = getattr(self, phase)
            if template is None and phase == "open":
                continue
            if "{Question}" not in template:
                raise ValueError(f"prompt.{phase} of {self.name!r} lacks the place holder {{Question}}")
        if self.layout not in ("lines", "inline"):
            raise ValueError(f"prompt.layout is {self.layout!r}: use 'lines' or 'inline'")

    @property
    def asks_reasoning(self) -> bool:
        """Whether evaluation asks for reasoning before the answer."""
        return self.tags and "<think>" in self.evaluate.partition("<answer>")[0]

    @property
    def assistant_prefix(self) -> str:
        """What an answer without reasoning begins with, as in :meth:`target`; nothing without tags."""
        return "<answer>" if self.tags else ""

    def problem(self, sample: Question) -> str:
        """The question with its lettered options, as both papers' data files spell it.

        An open question is the question alone.
        """
        if sample.is_open:
            return sample.question
        if self.layout == "lines":
            return "\n".join(
                [sample.question, *(f"{a}) {o}" for a, o in zip(sample.letters, sample.options, strict=True))]
            )
        options = ", ".join(f"{a}){o}" for a, o in zip(sample.letters, sample.options, strict=True))
        return f"{sample.question} {options}"

    def render(self, sample: Question, phase: Phase) -> list[dict]:
        """The chat of one question: a single user turn, images first, then the text.

        Returns:
            Messages in the Hugging Face chat format. There is no system turn: the chat template
            adds its default, as in both papers.

        Raises:
            ValueError: the question is open, and the prompt asks for a letter.
        """
        template = self.train if phase == "train" else self.evaluate
        if sample.is_open:
            if self.open is None:
                raise ValueError(
                    f"question {sample.id} is open, but prompt {self.name!r} asks for a letter: take "
                    "prompt=open, set prompt.open, or leave open questions out with data.questions=closed"
                )
            template = self.open
        text = template.replace("{Question}", self.problem(sample))
        pictures = [{"type": "image"} for _ in sample.images]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]

    def target(self, sample: VQASample) -> str:
        """What SFT learns: the gold letter or text, in answer tags if the prompt asks for them."""
        return f"<answer>{sample.answer}</answer>" if self.tags else sample.answer

    def parse(self, text: str, sample: Question) -> Answer:
        """Parse one completion. Never raises, whatever the text."""
        content = _inside(text, "answer")
        if content is None and not self.tags:
            content = text.strip()
        letter = content.upper() if content and content.upper() in tuple(sample.letters) else None
        return Answer(
            text=text,
            content=content,
            letter=letter,
            lenient=letter or _lenient(text if content is None else content, sample),
            reasoning=_inside(text, "think"),
            well_formed=_is_both(text, "think", "answer"),
            answer_only=_is_answer_only(text),
            answer_first=_is_both(text, "answer", "think"),
        )

    def alternatives(self, answer: Answer, sample: Question) -> Alternatives:
        """The completion with each letter in the place of its answer, to weigh them against each other.

        Where the strict reading finds a letter, that letter is exchanged and nothing else, in its case.
        Otherwise the answer is forced: behind the first opening answer tag or, without one, behind all
        that was said, with the think tag closed. A prompt without tags has the letter alone.
        """
        text, letters = answer.text, sample.letters
        opening, closing = _TAG_ENDS["answer"]
        start = opening.search(text)
        end = closing.search(text, start.end()) if start else None
        if answer.letter:
            first, last = (start.end(), end.start()) if start and end else (0, len(text))
            place = first + len(text[first:last]) - len(text[first:last].lstrip())
            letters = letters.lower() if text[place].islower() else letters
            before, after = text[:place], text[place + 1 : end.end() if end else len(text)]
        elif start:
            before, after = text[: start.end()], "</answer>"
        elif self.tags:
            before, after = _ready_to_answer(text), "</answer>"
        else:
            before, after = "", ""
        texts = tuple(before + letter + after for letter in letters)
        return Alternatives(texts, forced=answer.letter is None, ends_turn=not after.strip())


def _ready_to_answer(text: str) -> str:
    """A completion without an answer tag, led up to its answer."""
    said = _TORN_TAG.sub("", text).rstrip()
    opening, closing = _TAG_ENDS["think"]
    if (start := opening.search(said)) and not closing.search(said, start.end()):
        said += "</think>"
    return f"{said}\n<answer>" if said else "<answer>"


def is_correct(answer: Answer, sample: VQASample) -> bool:
    """The strict reading: the gold letter or, for an open question, the gold text, both normalised."""
    if sample.is_open:
        return answer.content is not None and normalize_answer(answer.content) == normalize_answer(
            sample.answer
        )
    return answer.letter == sample.answer


def is_correct_leniently(answer: Answer, sample: VQASample) -> bool:
    """As :func:`is_correct`, by the lenient letter; an open answer may also do without its tags."""
    if sample.is_open:
        said = answer.text if answer.content is None else answer.content
        return normalize_answer(said) == normalize_answer(sample.answer)
    return answer.lenient == sample.answer


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus space.

    Source: SQuAD's evaluation script, v1.1 (Rajpurkar et al., arXiv 1606.05250), in its order. Unlike
    there, a text of which nothing would remain is only lower-cased: blood group A is no empty answer.
    """
    plain = " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
    return plain or " ".join(text.lower().split())


def parse_reasoning(text: str) -> str | None:
    """What a completion says between its first think tags; ``None`` without."""
    return _inside(text, "think")


def mentioned_options(text: str, options: Sequence[str]) -> list[int]:
    """Places of the options whose own text occurs, as whole words in any case.

    An option that is a part of another one that occurs is not counted: "left kidney" also holds "kidney".
    """
    found = {
        place: option.casefold()
        for place, option in enumerate(options)
        if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE)
    }
    return [p for p, o in found.items() if not any(o != other and o in other for other in found.values())]


def f1_score(said: str, gold: str) -> float:
    """F1 of the normalised words of two texts, counted with repetition (SQuAD's script, v1.1)."""
    ours, theirs = normalize_answer(said).split(), normalize_answer(gold).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


# A regular expression with two lazy wildcards takes quadratic time on the degenerate texts that early
# training produces; these find each end once.


def _inside(text: str, tag: str) -> str | None:
    """Stripped contents of the first ``<tag>...</tag>``, in any case; ``None`` without a pair."""
    opening, closing = _TAG_ENDS[tag]
    if (start := opening.search(text)) and (end := closing.search(text, start.end())):
        return text[start.end() : end.start()].strip()
    return None


def _is_both(text: str, first: str, second: str) -> bool:
    r"""Whether all of ``text`` matches ``<first>.*?</first>\s*<second>.*?</second>``, dot matching all."""
    if not (text.startswith(f"<{first}>") and text.endswith(f"</{second}>")):
        return False
    between = _BETWEEN[first].search(text, len(f"<{first}>"))
    return between is not None and between.end() <= len(text) - len(f"</{second}>")


def _is_answer_only(text: str) -> bool:
    r"""Whether all of ``text`` matches ``\s*<answer>.*?</answer>``, dot matching all."""
    start = text.lstrip()
    return (
        start.startswith("<answer>")
        and start.endswith("</answer>")
        and len(start) >= len("<answer></answer>")
    )


def _lenient(said: str, sample: Question) -> str | None:
    """The one letter that ``said`` leads with, states, or names by its option's text; else ``None``."""
    for pattern in (_LEADING_LETTER, _STATED_LETTER):
        found = {match.upper() for match in pattern.findall(said)}
        if found:
            return found.pop() if len(found) == 1 and found <= set(sample.letters) else None
    meant = mentioned_options(said, sample.options)
    return sample.letters[meant[0]] if len(meant) == 1 else None
