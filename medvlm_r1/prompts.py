"""One grammar: the instruction that asks for a format, the parser that reads it, the check of the answer.

============================  =========================================================================
:meth:`PromptStyle.render`    question -> chat messages
:meth:`PromptStyle.parse`     completion -> :class:`Answer`: letter, reasoning, format
:func:`is_correct`            answer and gold -> bool, by the strict letter
:func:`is_correct_leniently`  the same by the lenient letter
============================  =========================================================================

Both papers read letters differently in their rewards and in their evaluation. Here one parser serves both:
it takes the contents of the first ``<answer>`` tag, and ``letter`` is set if they are a single letter of the
question. Departures from the papers' released code; ``tests/test_released_code.py`` restates that code and
finds the number of every disagreement over 20,000 completions:

1. Strict reading: tags and letter may be in any case. MedVLM-R1's evaluation takes small tags and a capital
   letter, Med-R1's small tags and the gold letter's case.
2. Strict reading: the first pair of tags counts, as in the rewards. The released evaluation takes the first
   pair that holds nothing but a letter (MedVLM-R1) or a word (Med-R1): ``<think>I use <answer> tags</think>
   <answer>B</answer>`` is right there and wrong here, although its format is right.
3. Strict reading of a prompt without tags: white space, a small letter, tags, and reasoning before the letter
   are allowed. The released evaluation compares the whole completion with the letter.
4. Strict reading of Med-R1's prompt without thinking: the tags that it asks for are read. The released
   evaluation compares the whole completion with the letter: tags are wrong there, a bare letter is right.
5. Med-R1's accuracy reward: 0 without tags. The released code compares the whole text: ``B`` earns 1.
6. Med-R1's accuracy reward: tags in any case and line breaks within them are read. The released code takes
   the first pair of small tags on one line, or else the whole text.
7. ``lenient``, the letter that a human reader takes (:mod:`medvlm_r1.reading`), is reported beside the
   strict one: a zero-shot model that answers ``A.`` without tags scores 0 in MedVLM-R1's evaluation.
8. Neither paper has open questions. They have a template of their own here (``open``), and an answer is
   compared with the gold text by SQuAD's rules.

MedVLM-R1's accuracy reward and all format rewards agree with the released code. Departures 1 to 4 keep one
parser for training and test; ``evaluation.reading=released`` adds the accuracy without them
(:mod:`medvlm_r1.reading.released`).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medvlm_r1.data.sample import Phase, Question, VQASample
from medvlm_r1.reading.lenient import lenient_letter
from medvlm_r1.reading.scope import (
    TAG_ENDS,
    answering_part,
    close_think,
    end_of_think,
    reopen_think,
    tag_contents,
)

__all__ = ["reopen_think", "tag_contents"]  # of the package reading

_BETWEEN = {"think": re.compile(r"</think>\s*<answer>"), "answer": re.compile(r"</answer>\s*<think>")}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Answer:
    """One parsed completion.

    Attributes:
        text: the completion without special tokens.
        content: contents of the first answer tag, stripped. Without a tag ``None``, or the whole text if
            the prompt asks for no tags.
        letter: strict reading: ``content``, if it is exactly one of the question's letters.
        lenient: the strict letter or else the letter that a human reader would take.
        reasoning: contents of the first think tag, stripped; ``None`` without one.
        well_formed: the text is think tags, then answer tags, nothing else (MedVLM-R1's format reward).
        answer_only: the text is answer tags, nothing else (Med-R1's format reward without thinking).
        answer_first: the text is answer tags, then think tags, nothing else (Med-R1's Think-After).
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
        """Whether the completion has answer tags, or needs none."""
        return self.content is not None


@dataclass(frozen=True)
class Alternatives:
    """Copies of one completion, each with another option's letter as its answer."""

    texts: tuple[str, ...]  # one per letter, up to the closing tag; the model's own text before the letter
    forced: bool  # the completion has no strict letter, so an answer was appended
    ends_turn: bool  # no tag closes the answer; the end-of-turn token does


@dataclass(frozen=True)
class PromptStyle:
    """Prompt templates, and the parser for their answers.

    Attributes:
        name: saved with the weights, so that prediction uses the prompt of training.
        train: template of the user turn in training; ``{Question}`` is the problem text.
        evaluate: template of the user turn in evaluation (the papers' differ in white space).
        layout: ``lines`` puts one option on a line (``A) brain``), as MedVLM-R1 does; ``inline`` puts
            all behind the question (``A)brain, B)liver``), as Med-R1 does.
        tags: the prompt asks for answer tags; if false, the whole completion is the answer.
        open: template of the user turn for open questions, in both phases; ``None`` if the prompt can
            only ask for a letter.
    """

    name: str
    train: str
    evaluate: str
    layout: Literal["lines", "inline"] = "lines"
    tags: bool = True
    open: str | None = None

    def __post_init__(self) -> None:
        for phase in ("train", "evaluate", *(() if self.open is None else ("open",))):
            if "{Question}" not in getattr(self, phase):
                raise ValueError(f"prompt.{phase} of {self.name!r} lacks the placeholder {{Question}}")
        if self.layout not in ("lines", "inline"):
            raise ValueError(f"prompt.layout is {self.layout!r}: use 'lines' or 'inline'")

    @property
    def asks_reasoning(self) -> bool:
        """Whether the evaluation prompt asks for reasoning before the answer."""
        return self.tags and "<think>" in self.evaluate.partition("<answer>")[0]

    @property
    def assistant_prefix(self) -> str:
        """First text of an answer without reasoning, as in :meth:`target`; empty without tags."""
        return "<answer>" if self.tags else ""

    def problem(self, sample: Question) -> str:
        """The question and its lettered options, in the spelling of both papers' data files."""
        if sample.is_open:
            return sample.question
        pairs = zip(sample.letters, sample.options, strict=True)
        if self.layout == "lines":
            return "\n".join([sample.question, *(f"{letter}) {option}" for letter, option in pairs)])
        return f"{sample.question} " + ", ".join(f"{letter}){option}" for letter, option in pairs)

    def render(self, sample: Question, phase: Phase) -> list[dict]:
        """Render a question as Hugging Face chat messages: one user turn, images first, then the text.

        There is no system turn: the chat template adds its default, as in both papers.

        Raises:
            ValueError: the question is open, and the prompt asks for a letter.
        """
        template = self.open if sample.is_open else self.train if phase == "train" else self.evaluate
        if template is None:
            raise ValueError(
                f"question {sample.id} is open, but prompt {self.name!r} asks for a letter: take "
                "prompt=open, set prompt.open, or leave open questions out with data.questions=closed"
            )
        text = template.replace("{Question}", self.problem(sample))
        images = [{"type": "image"} for _ in sample.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]

    def target(self, sample: VQASample) -> str:
        """The completion that SFT trains on: the gold answer, in answer tags if the prompt asks for them."""
        return f"<answer>{sample.answer}</answer>" if self.tags else sample.answer

    def reasoned_target(self, sample: VQASample) -> str:
        """The question's rationale in think tags and its answer, in the order that the prompt asks for.

        Raises:
            ValueError: the prompt asks for no reasoning.
        """
        template = (self.open if sample.is_open else self.train) or ""
        if "<think>" not in template:
            raise ValueError(
                f"prompt {self.name!r} asks for no reasoning, so a rationale cannot be its answer: take "
                "prompt=medvlm_r1, or method=sft"
            )
        parts = f"<think>{sample.rationale}</think>", self.target(sample)
        return "\n".join(parts if "<think>" in template.partition("<answer>")[0] else parts[::-1])

    def parse(self, text: str, sample: Question) -> Answer:
        """Parse one completion. Never raises."""
        content = tag_contents(text, "answer")
        if content is None and not self.tags:
            content = text[end_of_think(text) :].strip()
        letter = content.upper() if content and content.upper() in tuple(sample.letters) else None
        return Answer(
            text=text,
            content=content,
            letter=letter,
            lenient=letter or lenient_letter(text, sample),
            reasoning=tag_contents(text, "think"),
            well_formed=_is_pair(text, "think", "answer"),
            answer_only=_is_answer_only(text),
            answer_first=_is_pair(text, "answer", "think"),
        )

    def alternatives(self, answer: Answer, sample: Question) -> Alternatives:
        """Put each option's letter in the place of the answer, to compare their probabilities.

        A strict letter is replaced, keeping its case. Without one the answer is forced: after the first
        opening answer tag, or else at the end of the text, with the think tag closed. If the prompt asks for
        no tags, it is the letter alone, behind the think tags where there are some.
        """
        text, letters = answer.text, sample.letters
        opening, closing = TAG_ENDS["answer"]
        start = opening.search(text)
        end = closing.search(text, start.end()) if start else None
        if answer.letter:
            first, last = (start.end(), end.start()) if start and end else (end_of_think(text), len(text))
            place = first + len(text[first:last]) - len(text[first:last].lstrip())
            letters = letters.lower() if text[place].islower() else letters
            before, after = text[:place], text[place + 1 : end.end() if end else len(text)]
        elif start:
            before, after = text[: start.end()], "</answer>"
        elif self.tags:
            before, after = f"{close_think(text)}\n<answer>".lstrip(), "</answer>"
        else:
            before, after = "".join(close_think(text).rpartition("</think>")[:2]), ""
        texts = tuple(before + letter + after for letter in letters)
        return Alternatives(texts, forced=answer.letter is None, ends_turn=not after.strip())


def is_correct(answer: Answer, sample: VQASample) -> bool:
    """Strict: the letter is the gold letter; of an open question, the normalised texts are equal."""
    if sample.is_open:
        gold = normalize_answer(sample.answer)
        return answer.content is not None and normalize_answer(answer.content) == gold
    return answer.letter == sample.answer


def is_correct_leniently(answer: Answer, sample: VQASample) -> bool:
    """Like :func:`is_correct` for the lenient letter; an open answer needs no tags."""
    if sample.is_open:
        text = answering_part(answer.text) if answer.content is None else answer.content
        return normalize_answer(text) == normalize_answer(sample.answer)
    return answer.lenient == sample.answer


def normalize_answer(text: str) -> str:
    """Lower-case a text and remove punctuation, articles and extra white space.

    Source: SQuAD's evaluation script v1.1 (Rajpurkar et al., arXiv 1606.05250), in its order. Unlike there, a
    text that would become empty is only lower-cased: blood group A is no empty answer.
    """
    plain = " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
    return plain or " ".join(text.lower().split())


def mentioned_options(text: str, options: Sequence[str]) -> list[int]:
    """Indices of the options whose text occurs in ``text``, as whole words in any case.

    An option inside a longer option that also occurs does not count: "left kidney" contains "kidney".
    """
    matches = {
        index: option.casefold()
        for index, option in enumerate(options)
        if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE)
    }
    return [i for i, o in matches.items() if not any(o != other and o in other for other in matches.values())]


def f1_score(text: str, gold: str) -> float:
    """F1 of the normalised words of two texts, counted with repetition (SQuAD's evaluation script v1.1)."""
    words, gold_words = normalize_answer(text).split(), normalize_answer(gold).split()
    shared = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * shared / (len(words) + len(gold_words)) if shared else 0.0


def _is_pair(text: str, first: str, second: str) -> bool:
    r"""Whether all of ``text`` matches ``<first>.*?</first>\s*<second>.*?</second>``, dot matching all."""
    if not (text.startswith(f"<{first}>") and text.endswith(f"</{second}>")):
        return False
    between = _BETWEEN[first].search(text, len(f"<{first}>"))
    return between is not None and between.end() <= len(text) - len(f"</{second}>")


def _is_answer_only(text: str) -> bool:
    r"""Whether all of ``text`` matches ``\s*<answer>.*?</answer>``, dot matching all."""
    text = text.lstrip()
    return text.startswith("<answer>") and text.removeprefix("<answer>").endswith("</answer>")
