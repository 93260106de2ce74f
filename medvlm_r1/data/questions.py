"""The questions of one run: what trains, what validates, what tests."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvlm_r1.data.sample import VQASample

Source = Sequence[VQASample]


@dataclass(frozen=True)
class Questions:
    """Training, validation and test questions.

    Attributes:
        train: training questions.
        validation: questions of the training domain that share no image with training.
        test: test sets by name, in the order in which they are reported.

    Raises:
        ValueError: a part is empty, or validation shares an image with training.
    """

    train: Source
    validation: Source
    test: Mapping[str, Source]

    def __post_init__(self) -> None:
        if not self.test:
            raise ValueError("data.test names no test set: give data.test={NAME:FILE,...}")
        for name, source in {"train": self.train, "validation": self.validation, **self.test}.items():
            if not len(source):
                raise ValueError(f"data: {name} holds no question")
        seen = {sample.image_group for sample in self.train}
        if shared := seen & {sample.image_group for sample in self.validation}:
            raise ValueError(
                f"{len(shared)} images stand in training and in validation, e.g. {min(shared)}: split by "
                "image (hold_out in medvlm_r1/data/options.py does)"
            )
        for name, source in self.test.items():
            if leaked := sum(sample.image_group in seen for sample in source):
                warnings.warn(
                    f"{leaked} of {len(source)} questions of test set {name!r} show an image of training",
                    stacklevel=2,
                )
