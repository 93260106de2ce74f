"""One question about one or more images: the value that every later stop receives."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

LETTERS = "ABCDEFGHIJ"
Phase = Literal["train", "evaluate"]


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
        """Decode the file; see :func:`decode`.

        Raises:
            BadRowError: the file is missing, is no picture, or is cut short.
        """
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for ever
            raise BadRowError(f"image {self.path} cannot be decoded (it is a folder or a device, no file)")
        return decode(self.path, self.name)


def decode(picture: Path | BinaryIO, name: str) -> Image.Image:
    """The picture as RGB, upright: turned as its EXIF orientation says, like transformers'
    ``load_image``, through which a processor's own call goes.

    A grey picture of more than 8 bits (16- or 32-bit integers, or floats) is first windowed linearly
    from its own darkest to its own brightest pixel; one of a single value becomes black. Pillow's
    conversion would clip all above 255 to white, which blanks most of a scan. What is transparent
    shows white, as the model's image processor has it.

    Args:
        picture: a file, or a stream of its bytes.
        name: what error messages call it.

    Raises:
        BadRowError: there is no file, or no picture in it, or it is cut short.
    """
    try:
        with Image.open(picture) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
                return _windowed(upright).convert("RGB")
            if "A" in upright.getbands() or upright.info.get("transparency") is not None:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                return Image.alpha_composite(white, upright).convert("RGB")
            return upright.convert("RGB")
    except FileNotFoundError:
        raise BadRowError(f"image {name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise BadRowError(
            f"image {name} claims more pixels than are decoded safely ({error}): shrink it"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadRowError(f"image {name} cannot be decoded ({error})") from error


def _windowed(picture: Image.Image) -> Image.Image:
    """A grey picture of any depth in 8 bits: its own darkest pixel 0, its own brightest 255."""
    values = np.asarray(picture).astype(np.float64)
    known = values[np.isfinite(values)]  # floats may hold NaN outside the scanned region
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return Image.fromarray(((values - low) / (high - low or 1.0) * 255).round().astype(np.uint8))


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
