"""Rows of a published set to questions, and those to training, validation and tests."""

import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.images.validate import check_images
from medvlm_r1.data.sample import LETTERS, BadRowError, VQASample
from medvlm_r1.data.splits import Questions, hold_out

logger = logging.getLogger(__name__)

YES_NO = ("yes", "no")


@dataclass
class Table:
    """Questions of one part of a set.

    Attributes:
        samples: the usable ones that are asked.
        places: file and row of each sample, by its id.
        skipped: one line for each unusable row.
    """

    samples: list[VQASample] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def read(
        self,
        path: Path,
        rows: Iterable[tuple[int, Any]],
        row_to_sample: Callable[[int, Any], VQASample | None],
        on_bad_row: OnBadRow,
    ) -> None:
        """Add the rows of one file; ``None`` for a sample means a row that is not asked for.

        Raises:
            BadRowError: at the first unusable row under ``fail``; the message names file and row.
        """
        if on_bad_row not in ("fail", "skip"):
            raise ValueError(f"on_bad_row is {on_bad_row!r}: use 'fail' or 'skip'")
        passed, before = 0, len(self.samples)
        for number, row in rows:
            place = f"{path} row {number}"
            try:
                sample = row_to_sample(number, row)
            except BadRowError as error:
                if on_bad_row == "fail":
                    raise BadRowError(f"{place}: {error} (on_bad_row=skip leaves such rows out)") from None
                self.skipped.append(f"{place}: {error}")
                continue
            if sample is None:
                passed += 1
            else:
                self.samples.append(sample)
                self.places[sample.id] = place
        logger.info("%s: %d questions, %d rows not asked for", path, len(self.samples) - before, passed)


def text_of(row: Any, column: str) -> str:
    """The text in a column, without surrounding space.

    Raises:
        BadRowError: the row is no object, lacks the column, or has no text there.
    """
    if not isinstance(row, dict):
        raise BadRowError(f"is {row!r:.60}, not an object")
    if column not in row:
        raise BadRowError(f"column {column!r} is missing; the row has {', '.join(row)}")
    if not isinstance(row[column], str) or not row[column].strip():
        raise BadRowError(f"{column} is {row[column]!r}: give text")
    return row[column].strip()


def yes_no(answer: str) -> str | None:
    """The letter of a yes/no answer among :data:`YES_NO`; ``None`` if it is neither."""
    plain = answer.strip().lower().removesuffix(".")
    return LETTERS[YES_NO.index(plain)] if plain in YES_NO else None


def kinds_of(questions: str) -> tuple[bool, bool]:
    """Whether ``closed``, ``open`` or ``all`` questions ask for closed ones, and for open ones.

    Raises:
        ValueError: it is none of the three.
    """
    if questions not in ("closed", "open", "all"):
        raise ValueError(f"data.questions is {questions!r}: use 'closed', 'open' or 'all'")
    return questions != "open", questions != "closed"


def tests_of(name: str, samples: Iterable[VQASample]) -> dict[str, list[VQASample]]:
    """The test set ``name``, and ``<name>_open``: an accuracy and an exact match are not averaged."""
    kinds: dict[str, list[VQASample]] = {name: [], f"{name}_open": []}
    for sample in samples:
        kinds[f"{name}_open" if sample.is_open else name].append(sample)
    return {key: part for key, part in kinds.items() if part}


def letter_of(answer: Any, options: Sequence[str]) -> str:
    """The letter of the option with this text, which may differ in surrounding space.

    Raises:
        BadRowError: no option, or more than one, has it.
    """
    places = [i for i, option in enumerate(options) if option == str(answer).strip()]
    if len(places) != 1:
        raise BadRowError(
            f"answer {answer!r} is not one of the options {list(options)}: give an option's text"
        )
    return LETTERS[places[0]]


def split_by_image(
    samples: Sequence[VQASample], share: float, seed: int
) -> tuple[list[VQASample], list[VQASample]]:
    """Training and test questions that share no image group; whole groups are drawn.

    Args:
        samples: of the whole set.
        share: of the image groups that test.
        seed: of the draw.

    Raises:
        ValueError: ``share`` is no fraction, or leaves a side empty.
    """
    groups = sorted({sample.image_group for sample in samples})
    count = round(share * len(groups))
    if not 0 < count < len(groups):
        raise ValueError(f"test_share={share} of {len(groups)} images leaves nothing on one side")
    drawn = set(random.Random(seed).sample(groups, count))
    return [s for s in samples if s.image_group not in drawn], [s for s in samples if s.image_group in drawn]


def draw(samples: list[VQASample], n: int | None, seed: int, what: str) -> list[VQASample]:
    """``n`` of the samples, in their order; all without ``n``. Fewer are a part of more.

    Raises:
        ValueError: there are fewer.
    """
    if n is None:
        return samples
    if n > len(samples):
        raise ValueError(f"{what}: {n} questions asked for, but there are {len(samples)}")
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    return [samples[i] for i in sorted(order[:n])]


def without_images_of(samples: list[VQASample], others: Iterable[VQASample]) -> list[VQASample]:
    """The samples that share no image group with the others; how many do not is logged."""
    taken = {sample.image_group for sample in others}
    rest = [sample for sample in samples if sample.image_group not in taken]
    if len(rest) < len(samples):
        logger.info("%d training questions left out: a test shows their image", len(samples) - len(rest))
    return rest


def assemble(
    tables: Collection[Table],
    train: list[VQASample],
    tests: Mapping[str, list[VQASample]],
    validation: list[VQASample] | None = None,
    *,
    n_train: int | None,
    n_validation: int,
    n_test: int | None,
    split_seed: int,
    on_bad_row: OnBadRow,
) -> Questions:
    """Choose questions of each part, and decode every picture of theirs once.

    Args:
        tables: where they were read.
        train, tests: questions by part.
        validation: the official part; by default it is held out of ``train`` by image group, and
            avoids the images of the tests.
        n_train, n_validation, n_test: sizes (``n_test`` of each test set); ``None`` takes all.
        split_seed: of every draw.
        on_bad_row: what becomes of a question whose picture does not decode.

    Raises:
        BadRowError: a picture does not decode, under ``fail``.
        ValueError: there are fewer questions than asked for.
    """
    if validation is None:
        tested = {sample.image_group for source in tests.values() for sample in source}
        train, validation = hold_out(train, n_validation, split_seed, avoid=tested)
    else:
        trained = {sample.image_group for sample in train}
        tested = {sample.image_group for source in tests.values() for sample in source}
        free = [s for s in validation if s.image_group not in trained | tested]
        validation = draw(free, n_validation, split_seed, "validation")
    train = draw(train, n_train, split_seed, "train")
    tests = {name: draw(source, n_test, split_seed, name) for name, source in tests.items()}
    chosen = [*train, *validation, *(sample for source in tests.values() for sample in source)]
    places = {name: place for table in tables for name, place in table.places.items()}
    faults = {s.id: f"{places[s.id]}: {why}" for s, why in check_images(chosen)}
    if faults and on_bad_row == "fail":
        more = f" ({len(faults) - 1} more rows have such an image)" if len(faults) > 1 else ""
        raise BadRowError(f"{next(iter(faults.values()))}{more}; check data.root and data.images")
    kept = [[s for s in part if s.id not in faults] for part in (train, validation, *tests.values())]
    skipped = [line for table in tables for line in table.skipped] + list(faults.values())
    if skipped:
        logger.warning("%d rows left out; the first: %s", len(skipped), skipped[0])
    return Questions(kept[0], kept[1], dict(zip(tests, kept[2:], strict=True)), tuple(skipped))
