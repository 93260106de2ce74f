"""What every file of questions shares: each row judged once, exclusion by picture, a window of the rest."""

import logging
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medvlm_r1.data.images import validate
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.runs.progress import track

logger = logging.getLogger(__name__)

OnBadRow = Literal["fail", "skip"]
ReadRow = Callable[[Any, str], VQASample]
"""(row, the id that its sample gets) -> sample; raises a BadRowError that names value and remedy."""


class QuestionFile(Sequence[VQASample]):
    """Questions of one file of rows; a subclass says how its rows are found and read.

    Args:
        path: the file, as messages name it.
        rows: numbered rows. One that its file's reader could not take stands there as a BadRowError.
        read: makes a question of a row.
        name: what sample ids begin with. Default: the file's stem.
        n: how many questions to take. Default: all that are left.
        offset: how many usable questions to pass over first.
        exclude: a source, or a list of sources, whose pictures must not occur here: a question that
            shares an image group, an image path or an image's bytes with one of theirs is left out.
        seed: shuffle with this seed before ``offset`` and ``n`` count. Default: file order.
        on_bad_row: ``fail`` raises at the first unusable row; ``skip`` leaves such rows out, before
            ``offset`` and ``n`` count, and lists them in ``skipped``.
        check_images: decode every picture once now. ``False`` does not even ask whether they exist.
        workers: threads that decode. Default: one per core, at most 8.

    Attributes:
        skipped: one line for each row left out, naming file, row and reason.

    Raises:
        BadRowError: a row, or the whole file, cannot be used.
        ValueError: more questions are asked for than there are.
    """

    image_remedy = "replace the file, or set data.images to the folder that image paths start from"

    def __init__(
        self,
        path: Path,
        rows: Iterable[tuple[int, Any]],
        read: ReadRow,
        name: str | None = None,
        n: int | None = None,
        offset: int = 0,
        exclude: Iterable | None = None,
        seed: int | None = None,
        on_bad_row: OnBadRow = "fail",
        check_images: bool = True,
        workers: int | None = None,
    ) -> None:
        samples, self.skipped, places = read_samples(rows, path, read, on_bad_row, name)
        if check_images and on_bad_row == "skip":
            faults = image_faults(samples, places, workers, self.image_remedy)
            samples = [sample for sample in samples if sample.id not in faults]
            self.skipped += faults.values()
        if self.skipped:
            logger.warning("%s: %d rows left out; the first: %s", path, len(self.skipped), self.skipped[0])
        if not samples:
            first = f"; the first: {self.skipped[0]}" if self.skipped else " (it holds none)"
            raise BadRowError(f"{path}: no row can be used{first}")
        if exclude is not None:
            samples = self._without_pictures_of(exclude, samples, places, with_bytes=check_images)
            logger.info("%s: %d questions left when excluded sources' images are gone", path, len(samples))
        if seed is not None:
            random.Random(seed).shuffle(samples)
        self._samples = samples[offset:] if n is None else samples[offset : offset + n]
        if offset < 0 or len(self._samples) < (1 if n is None else max(n, 1)):
            raise ValueError(
                f"{path}: n={n} questions after offset={offset} asked for, but {len(samples)} can be used "
                f"({len(self.skipped)} left out): ask for at least one and at most that many"
            )
        if check_images and on_bad_row == "fail":
            raise_first(image_faults(self._samples, places, workers, self.image_remedy))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]

    def _without_pictures_of(
        self, exclude: Iterable, samples: list[VQASample], places: dict[str, str], with_bytes: bool
    ) -> list[VQASample]:
        others = [s for item in exclude for s in ([item] if isinstance(item, VQASample) else item)]
        taken = set().union(*(_pictures(sample, with_bytes) for sample in others))
        shared = {s.id for s in samples if not taken.isdisjoint(_pictures(s, with_bytes))}
        self.skipped += [
            f"{places[s.id]}: image {s.images[0].name} or its group is in an excluded source"
            for s in samples
            if s.id in shared
        ]
        return [sample for sample in samples if sample.id not in shared]


class ReadRows(NamedTuple):
    """What :func:`read_samples` made of a file.

    Attributes:
        samples: of the usable rows, in order.
        skipped: a line for each other row.
        places: file and row by sample id, as messages name them.
    """

    samples: list[VQASample]
    skipped: list[str]
    places: dict[str, str]


def read_samples(
    rows: Iterable[tuple[int, Any]],
    path: Path,
    read: ReadRow,
    on_bad_row: OnBadRow,
    name: str | None = None,
) -> ReadRows:
    """Judge numbered rows of ``path``.

    Ids are ``<name>-<row>``, by default with the file's stem for a name, unless ``read`` knows better.

    Raises:
        BadRowError: at the first unusable row under ``fail``.
    """
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"on_bad_row is {on_bad_row!r}: use 'fail' or 'skip'")
    samples, skipped, places = [], [], {}
    name = name or plain_stem(path)
    for number, row in track(rows, f"Reading {path.name}"):
        try:
            if isinstance(row, BadRowError):
                raise row
            sample = read(row, f"{name}-{number}")
            if sample.id in places:
                raise BadRowError(f"id {sample.id!r} is that of {places[sample.id]} too: make each different")
        except BadRowError as error:
            message = f"{path} row {number}: {error}"
            if on_bad_row == "fail":
                raise BadRowError(f"{message} (on_bad_row=skip leaves such rows out)") from None
            skipped.append(message)
        else:
            samples.append(sample)
            places[sample.id] = f"{path} row {number}"
    return ReadRows(samples, skipped, places)


def plain_stem(path: Path) -> str:
    """The file's name without suffix, fit to begin an id."""
    return re.sub(r"[^\w.-]+", "_", path.stem)


def image_faults(
    samples: Sequence[VQASample],
    places: dict[str, str],
    workers: int | None = None,
    remedy: str = "replace the file",
) -> dict[str, str]:
    """By sample id, a line for every sample with a picture that does not decode."""
    return {s.id: f"{places[s.id]}: {why}; {remedy}" for s, why in validate.check_images(samples, workers)}


def raise_first(faults: dict[str, str]) -> None:
    """Raise a BadRowError with the first of these faults, saying how many more there are."""
    if faults:
        more = f" ({len(faults) - 1} more rows have such an image)" if len(faults) > 1 else ""
        raise BadRowError(next(iter(faults.values())) + more)


def _pictures(sample: VQASample, with_bytes: bool) -> set[str]:
    keys = {f"group {sample.image_group}", *(f"path {handle.name}" for handle in sample.images)}
    if with_bytes:
        keys |= {f"bytes {digest}" for h in sample.images if (digest := image_digest(h)) is not None}
    return keys
