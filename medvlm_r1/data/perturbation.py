"""A test question under a control: the image, option order or answer start that replaces its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from medvlm_r1.data.sample import ImageHandle, VQASample

PLAIN = "image"  # the control in which nothing is changed
GREY = (128, 128, 128)


@dataclass(frozen=True)
class BlankImage:
    """A uniform mid-grey image of the same size as another."""

    of: ImageHandle

    @property
    def name(self) -> str:
        return f"blank of {self.of.name}"

    def load(self) -> Image.Image:
        """Create the grey image; this loads the original for its size, and may raise the same errors."""
        return Image.new("RGB", self.of.load().size, GREY)


@dataclass(frozen=True)
class Perturbation:
    """One test question under one control.

    Attributes:
        control: name of the control.
        sample: the changed question, with the gold letter of its new option order.
        order: for each option its index in the original question; ``None`` if the order is unchanged.
        picture_of: id of the question whose images are shown; ``None`` for its own.
        assistant_prefix: first text of the answer, given to the model.
    """

    control: str
    sample: VQASample
    order: tuple[int, ...] | None = None
    picture_of: str | None = None
    assistant_prefix: str = ""


@dataclass(frozen=True)
class Unperturbed(Sequence[list[Perturbation]]):
    """The perturbations of a test set without controls: each question unchanged."""

    source: Sequence[VQASample]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Perturbation]:
        return [Perturbation(PLAIN, self.source[index])]
