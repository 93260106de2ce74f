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
        skipped: one line for each row that a source left out, naming file, row and reason.

    Raises:
        ValueError: a part is empty, or validation shares an image with training or a test set.
    """

    train: Source
    validation: Source
    test: Mapping[str, Source]
    skipped: tuple[str, ...] = ()

    @property
    def an_open_one(self) -> VQASample | None:
        """Some question that a text answers, if there is one."""
        parts = (self.train, self.validation, *self.test.values())
        return next((sample for part in parts for sample in part if sample.is_open), None)

    def __post_init__(self) -> None:
        if not self.test:
            raise ValueError("data.test names no test set: give data.test={NAME:FILE,...}")
        for name, source in {"train": self.train, "validation": self.validation, **self.test}.items():
            if not len(source):
                raise ValueError(f"data: {name} holds no question")
        seen = {sample.image_group for sample in self.train}
        validated = {sample.image_group for sample in self.validation}
        for name, source in {"train": self.train, **self.test}.items():
            if shared := validated & {sample.image_group for sample in source}:
                raise ValueError(
                    f"{len(shared)} images stand in validation and in {name}, e.g. {min(shared)}: split by "
                    "image, or leave data.validation out to have questions held out of training"
                )
        for name, source in self.test.items():
            if leaked := sum(sample.image_group in seen for sample in source):
                warnings.warn(
                    f"{leaked} of {len(source)} questions of test set {name!r} show an image of training",
                    stacklevel=2,
                )
