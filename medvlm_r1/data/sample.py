"""One question about one or more images: the value that every later stop receives."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

LETTERS = "ABCDEFGHIJ"
Phase = Literal["train", "evaluate"]


class BadRowError(ValueError):
    """A row of a data file that cannot be used. The message names file, row, value and remedy."""


@runtime_checkable
class ImageHandle(Protocol):
    """Something that yields a picture when a DataLoader worker asks for it; cheap to pickle."""

    @property
    def name(self) -> str:
        """Stable identity of the picture, used in traces and reports."""

    def load(self) -> Image.Image:
        """Decode or render the picture as RGB."""


@dataclass(frozen=True)
class Question:
    """What a model is asked, whether or not the right answer is known.

    Attributes:
        id: unique within its data set; seeds the draws of its completions.
        images: the pictures, in the order in which the prompt shows them.
        question: the question alone, without options.
        options: option texts in the order of their letters; none for an open question.
    """

    id: str
    images: tuple[ImageHandle, ...]
    question: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise BadRowError("question is empty: every row needs one")
        if self.options and not 2 <= len(self.options) <= len(LETTERS):
            raise BadRowError(f"{len(self.options)} options: a question needs 2 to {len(LETTERS)}")
        if len(set(self.options)) < len(self.options):
            raise BadRowError(f"options {list(self.options)} hold a duplicate: make each one different")

    @property
    def is_open(self) -> bool:
        """Whether the answer is a text instead of a letter."""
        return not self.options

    @property
    def letters(self) -> str:
        """The letters of this question's options, e.g. ``ABCD``; none for an open question."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class VQASample(Question):
    """A question with its answer: multiple choice or, without options, open.

    Attributes:
        answer: the gold letter, one of ``letters``; for an open question the gold text.
        modality: acquisition modality, e.g. ``mri``.
        question_type: e.g. ``Disease Diagnosis``.
        source: data set of origin.
        image_group: samples that share a picture (or patient) share this; splits and
            clustered intervals go by it.
    """

    answer: str
    modality: str
    question_type: str
    source: str
    image_group: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_open:
            if not self.answer.strip():
                raise BadRowError("answer is empty: an open question needs a text")
            return
        if self.answer not in self.letters:
            raise BadRowError(f"answer {self.answer!r} is not one of the letters {', '.join(self.letters)}")

    @property
    def answer_text(self) -> str:
        """The text of the gold option, or of an open question's answer."""
        return self.answer if self.is_open else self.options[self.letters.index(self.answer)]
