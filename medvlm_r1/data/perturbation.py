"""A test question as a control puts it: what the model is asked in its place."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from medvlm_r1.data.sample import ImageHandle, VQASample

PLAIN = "image"  # the control in which nothing is changed
GREY = (128, 128, 128)


@dataclass(frozen=True)
class BlankImage:
    """Uniform mid-grey in the place of a picture, of the same size."""

    of: ImageHandle

    @property
    def name(self) -> str:
        return f"blank of {self.of.name}"

    def load(self) -> Image.Image:
        """Raises what loading the picture raises: its size is needed."""
        return Image.new("RGB", self.of.load().size, GREY)


@dataclass(frozen=True)
class Variant:
    """One test question under one control.

    Attributes:
        control: its name.
        sample: the question as it is asked, its answer's letter included.
        order: where each option stood before, in the order in which it is asked; ``None`` where it stayed.
        picture_of: the question whose pictures are shown; ``None`` for its own.
        opening: what the answer is made to begin with.
    """

    control: str
    sample: VQASample
    order: tuple[int, ...] | None = None
    picture_of: str | None = None
    opening: str = ""


@dataclass(frozen=True)
class Plain:
    """Every question as it stands, and no other way."""

    source: Sequence[VQASample]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Variant]:
        return [Variant(PLAIN, self.source[index])]
