"""One question about one or more images: the value that every later stage receives."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from medvlm_r1.runs.shorten import shorten

LETTERS = "ABCDEFGHIJ"
Phase = Literal["train", "evaluate"]


@runtime_checkable
class ImageHandle(Protocol):
    """An image that a DataLoader worker loads on demand; cheap to pickle."""

    @property
    def name(self) -> str:
        """Stable identifier of the image, used in traces and reports."""

    def load(self) -> Image.Image:
        """Decode or render the image as RGB."""


class BadRowError(ValueError):
    """An unusable row of a data file. The message names file, row, value and remedy.

    Attributes:
        images: the row's images, if they could be read: the audit still compares them with other sets.
    """

    images: tuple[ImageHandle, ...] = ()


@contextmanager
def keep_images(images: tuple[ImageHandle, ...]) -> Iterator[None]:
    """Give a BadRowError that is raised inside the images of its row."""
    try:
        yield
    except BadRowError as error:
        error.images = error.images or images
        raise


def match_key(text: str) -> str:
    """Return a text as options are compared: without case, extra space, and the form of its accents."""
    if not text.isascii():
        composed = unicodedata.normalize("NFC", text)
        text = "".join(c for c in composed if unicodedata.category(c) != "Cf")  # e.g. zero-width space
    return " ".join(text.casefold().split())


def near_duplicates(options: Sequence[str]) -> tuple[str, str] | None:
    """Return the first two options that are equal by :func:`match_key`; ``None`` if all differ."""
    if len({match_key(option) for option in options}) == len(options):
        return None
    first: dict[str, str] = {}
    for option in options:
        if (known := first.setdefault(match_key(option), option)) is not option:
            return known, option
    return None


@dataclass(frozen=True)
class Question:
    """A question for the model, with or without a known answer.

    Attributes:
        id: unique within its data set; part of the sampling seed of its completions.
        images: the images, in the order of the prompt.
        question: text of the question, without options.
        options: option texts in the order of their letters; empty for an open question.
        place: file and row that it comes from, for messages.
    """

    id: str
    images: tuple[ImageHandle, ...]
    question: str
    options: tuple[str, ...]
    place: str = field(default="", kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        with keep_images(self.images):
            self._check()

    def _check(self) -> None:
        if not self.question.strip():
            raise BadRowError("question is empty: every row needs one")
        if self.options and not 2 <= len(self.options) <= len(LETTERS):
            raise BadRowError(f"{len(self.options)} options: a question needs 2 to {len(LETTERS)}")
        if len(set(self.options)) < len(self.options):
            shown = shorten(list(self.options), 200)
            raise BadRowError(f"options {shown} contain a duplicate: make each one different")
        if same := near_duplicates(self.options):
            raise BadRowError(
                f"options {shorten(same[0])} and {shorten(same[1])} differ only in case or spaces, so they "
                "are a duplicate: make each one different"
            )

    @property
    def is_open(self) -> bool:
        """Whether the answer is free text instead of a letter."""
        return not self.options

    @property
    def letters(self) -> str:
        """Letters of the options, e.g. ``ABCD``; empty for an open question."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class VQASample(Question):
    """A question with its answer: multiple choice or, without options, open.

    Attributes:
        answer: the gold letter, one of ``letters``; the gold text of an open question.
        modality: acquisition modality, e.g. ``mri``.
        question_type: e.g. ``Disease Diagnosis``.
        source: data set of origin.
        image_group: equal for samples that share an image (or patient); splits and clustered
            confidence intervals use it.
        rationale: reasoning that leads to the answer, for SFT on reasoning; empty if there is none.
    """

    answer: str
    modality: str
    question_type: str
    source: str
    image_group: str
    rationale: str = ""

    def _check(self) -> None:
        super()._check()
        if self.is_open:
            if not self.answer.strip():
                raise BadRowError("answer is empty: an open question needs a text")
            return
        if self.answer not in self.letters:
            letters = ", ".join(self.letters)
            raise BadRowError(f"answer {shorten(self.answer)} is not one of the letters {letters}")

    @property
    def answer_text(self) -> str:
        """Text of the gold option, or of an open question's answer."""
        return self.answer if self.is_open else self.options[self.letters.index(self.answer)]
