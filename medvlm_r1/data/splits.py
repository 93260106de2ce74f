"""Training, validation and test questions, and the random splits: by image group, in nested subsets."""

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medvlm_r1.data.sample import ImageHandle, VQASample
from medvlm_r1.data.skipped import reason_summary
from medvlm_r1.runs.shorten import shorten

Source = Sequence[VQASample]
Per = Literal["modality", "question_type", "answer"]
_CLASS: dict[str, Callable[[VQASample], str]] = {
    "modality": lambda sample: sample.modality,
    "question_type": lambda sample: sample.question_type,
    "answer": lambda sample: sample.answer_text,
}
_LONGEST_NAME = 80  # characters of a test set's name
_PATH_HASH = re.compile(r"-[0-9a-f]{8}(?=\+|$)")


@dataclass(frozen=True)
class Questions:
    """Training, validation and test questions.

    Attributes:
        train: training questions.
        validation: questions of the training domain that share no image with training.
        test: test sets by name, in the order in which they are reported; a name becomes text (YAML reads 1 as
            a number).
        skipped: one line for each skipped row, with file, row and reason.
        refused: part (``train``, ``validation`` or a test set), line and images of each row that was skipped
            for another reason than its images: a model may have seen them elsewhere.

    Raises:
        ValueError: a part is empty, a test set's name cannot be used, or validation shares an image with
            training or a test set.
    """

    train: Source
    validation: Source
    test: Mapping[str, Source]
    skipped: tuple[str, ...] = ()
    refused: tuple[tuple[str, str, tuple[ImageHandle, ...]], ...] = ()

    @property
    def open_question(self) -> VQASample | None:
        """One of the open questions, or ``None`` if all are multiple choice."""
        parts = (self.train, self.validation, *self.test.values())
        return next((sample for part in parts for sample in part if sample.is_open), None)

    def __post_init__(self) -> None:
        if not self.test:
            raise ValueError("data.test names no test set: give data.test={NAME:FILE,...}")
        object.__setattr__(self, "test", _by_text(self.test))
        for name, source in {"train": self.train, "validation": self.validation, **self.test}.items():
            if not len(source):
                why = (
                    f": {len(self.skipped)} rows skipped ({reason_summary(self.skipped)})"
                    if self.skipped
                    else ""
                )
                raise ValueError(f"data: {name} holds no question{why}")
        seen = {sample.image_group for sample in self.train}
        validated = {sample.image_group for sample in self.validation}
        for name, source in {"train": self.train, **self.test}.items():
            if shared := validated & {sample.image_group for sample in source}:
                raise ValueError(
                    f"{len(shared)} images are both in validation and in {name}, e.g. {min(shared)}: split "
                    "by image, or leave data.validation out to have questions held out of training"
                )
        for name, source in self.test.items():
            if leaked := sum(sample.image_group in seen for sample in source):
                warnings.warn(
                    f"{leaked} of {len(source)} questions of test set {name!r} show an image of training",
                    stacklevel=2,
                )


def _by_text(tests: Mapping[Any, Source]) -> dict[str, Source]:
    """Test sets by the text of their names, which head tables, metrics and predictions."""
    named: dict[str, Source] = {}
    for key, source in tests.items():
        name = str(key)
        if name in named or name in ("train", "validation"):
            raise ValueError(f"data.test names {name!r} twice, or as another part: rename that test set")
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"data.test names a test set {shorten(name)}: give it a name of 1 to {_LONGEST_NAME} "
                "printable characters"
            )
        named[name] = source
    return named


def hold_out(
    source: Sequence[VQASample], n: int, seed: int, avoid: Collection[str] = (), what: str = "validation"
) -> tuple[list[VQASample], list[VQASample]]:
    """Split ``source`` by image group into the rest and ``n`` held-out questions.

    Whole groups are drawn; the questions of the last group beyond ``n`` go to neither side. The folder of the
    files does not change the split.

    Args:
        avoid: image groups that are not held out.
        what: name of the held-out part, for messages.

    Raises:
        ValueError: there are too few questions, or nothing would remain.
    """
    groups: dict[str, list[VQASample]] = {}
    for sample in source:
        groups.setdefault(sample.image_group, []).append(sample)
    # Sort by file name, then by appearance: a group's suffix is a hash of its path, which differs by machine.
    order = sorted((g for g in groups if g not in set(avoid)), key=lambda group: _PATH_HASH.sub("", group))
    random.Random(seed).shuffle(order)
    held_out, taken = [], set()
    for group in order:
        if len(held_out) >= n:
            break
        held_out += groups[group]
        taken.add(group)
    rest = [sample for sample in source if sample.image_group not in taken]
    if len(held_out) < n or not rest:
        shown = sum(sample.image_group in avoid for sample in source)
        shared = f", of which {shown} show an image of a test set," if shown else ""
        raise ValueError(
            f"{len(source)} questions{shared} are too few to hold out {n} for {what} and train: lower "
            f"data.n_{what}"
        )
    return rest, held_out[:n]


def choose(source: Sequence[VQASample], n: int | None, seed: int, per: Per | None = None) -> list[VQASample]:
    """Draw ``n`` questions from ``source``, or ``n`` of each class; ``None`` takes all, in their order.

    Nested: for one seed, fewer questions are the first of more, so a learning curve only adds data.

    Args:
        per: the class of a question: ``modality``, ``question_type`` or ``answer`` (the gold option's text).

    Raises:
        ValueError: there are fewer than ``n``.
    """
    if per is not None and per not in _CLASS:
        raise ValueError(f"data.n_train_per is {per!r}: use {', '.join(_CLASS)}, or null")
    if n is None:
        if per is not None:
            raise ValueError(f"data.n_train_per={per} needs data.n_train, the questions of each {per}")
        return list(source)
    if n < 1:
        raise ValueError(f"n_train={n}: request at least one question")
    class_of = _CLASS[per] if per else lambda sample: "questions"
    counts = Counter(class_of(sample) for sample in source)
    if short := [f"{count} {name}" for name, count in sorted(counts.items()) if count < n]:
        each = f" of each {per}" if per else ""
        raise ValueError(f"n_train={n}{each}, but {', '.join(short)} remain after validation: request fewer")
    # Shuffle all: sample(source, n) uses another algorithm for small n, and its samples are not nested.
    taken, chosen = Counter(), []
    for sample in random.Random(seed).sample(list(source), len(source)):
        if taken[class_of(sample)] < n:
            taken[class_of(sample)] += 1
            chosen.append(sample)
    return chosen


def split_by_image(
    samples: Sequence[VQASample], share: float, seed: int
) -> tuple[list[VQASample], list[VQASample]]:
    """Split into training and test questions that share no image group.

    Args:
        share: fraction of the image groups that go to the test.

    Raises:
        ValueError: one side would be empty.
    """
    groups = sorted({sample.image_group for sample in samples})
    count = round(share * len(groups))
    if not 0 < count < len(groups):
        raise ValueError(f"test_share={share} of {len(groups)} images leaves nothing on one side")
    drawn = set(random.Random(seed).sample(groups, count))
    return [s for s in samples if s.image_group not in drawn], [s for s in samples if s.image_group in drawn]


def draw(samples: list[VQASample], n: int | None, seed: int, name: str) -> list[VQASample]:
    """Draw ``n`` samples and keep their order; ``None`` takes all. Nested: fewer are a subset of more.

    Raises:
        ValueError: there are fewer than ``n``; the message names the part of the data.
    """
    if n is None:
        return samples
    if n > len(samples):
        raise ValueError(f"{name}: {n} questions requested, but there are only {len(samples)}")
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    return [samples[i] for i in sorted(order[:n])]
