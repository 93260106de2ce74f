"""One question about one or more images: the value that every later stop receives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, UnidentifiedImageError

LETTERS = "ABCDEFGHIJ"
Phase = Literal["train", "evaluate"]
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


class BadRowError(ValueError):
    """A row of a data file that cannot be used. The message names file, row, value and remedy."""


class ImageHandle(Protocol):
    """Something that yields a picture when a DataLoader worker asks for it; cheap to pickle."""

    @property
    def name(self) -> str:
        """Stable identity of the picture, used in traces and reports."""

    def load(self) -> Image.Image:
        """Decode or render the picture as RGB."""


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.as_posix()

    def load(self) -> Image.Image:
        """Decode the file as RGB.

        Raises:
            BadRowError: the file is missing, is no picture, or is cut short.
        """
        try:
            with Image.open(self.path) as picture:
                if picture.mode not in _EIGHT_BIT:
                    raise BadRowError(
                        f"image {self.path} has more than 8 bits a pixel (mode {picture.mode}), and clipping "
                        "them would blank most of a scan: window it to 8 bits first"
                    )
                return picture.convert("RGB")
        except BadRowError:
            raise
        except FileNotFoundError:
            raise BadRowError(f"image {self.path} does not exist") from None
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise BadRowError(f"image {self.path} cannot be decoded ({error})") from error


@dataclass(frozen=True)
class VQASample:
    """One multiple-choice question.

    Attributes:
        id: unique within its data set; seeds the draws of its completions.
        images: the pictures, in the order in which the prompt shows them.
        question: the question alone, without options.
        options: option texts in the order of their letters.
        answer: the gold letter, one of ``letters``.
        modality: acquisition modality, e.g. ``mri``.
        question_type: e.g. ``Disease Diagnosis``.
        source: data set of origin.
        image_group: samples that share a picture (or patient) share this; splits and
            clustered intervals go by it.
    """

    id: str
    images: tuple[ImageHandle, ...]
    question: str
    options: tuple[str, ...]
    answer: str
    modality: str
    question_type: str
    source: str
    image_group: str

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise BadRowError("question is empty: every row needs one")
        if not 2 <= len(self.options) <= len(LETTERS):
            raise BadRowError(f"{len(self.options)} options: a question needs 2 to {len(LETTERS)}")
        if len(set(self.options)) < len(self.options):
            raise BadRowError(f"options {list(self.options)} hold a duplicate: make each one different")
        if self.answer not in self.letters:
            raise BadRowError(f"answer {self.answer!r} is not one of the letters {', '.join(self.letters)}")

    @property
    def letters(self) -> str:
        """The letters of this question's options, e.g. ``ABCD``."""
        return LETTERS[: len(self.options)]

    @property
    def answer_text(self) -> str:
        """The text of the gold option."""
        return self.options[self.letters.index(self.answer)]
