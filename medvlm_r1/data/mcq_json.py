"""Multiple-choice questions in a JSON file: the papers' files and data of one's own."""

import json
import logging
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data import checks
from medvlm_r1.data.mcq_row import read_row
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.volume import Volumes

logger = logging.getLogger(__name__)

OnBadRow = Literal["fail", "skip"]


class McqJson(Sequence[VQASample]):
    """Questions of one JSON (array) or JSONL file, in the layouts that ``mcq_row`` names.

    Args:
        path: the file; one row a question, numbered from 0.
        images: folder that image paths start from. Default: the folder of ``path``.
        modality: modality of every row. Default: read from the row's ``subset``.
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
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.

    Attributes:
        skipped: one line for each row left out, naming file, row and reason.

    Raises:
        BadRowError: a row, or the whole file, cannot be used.
        ValueError: more questions are asked for than there are.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        modality: str | None = None,
        name: str | None = None,
        n: int | None = None,
        offset: int = 0,
        exclude: Iterable | None = None,
        seed: int | None = None,
        on_bad_row: OnBadRow = "fail",
        check_images: bool = True,
        workers: int | None = None,
        volumes: Volumes | None = None,
    ) -> None:
        path = Path(path)
        folder = path.parent if images is None else Path(images)
        samples, self.skipped = read_samples(
            enumerate(read_rows(path)), path, folder, modality, on_bad_row, name, volumes
        )
        if check_images and on_bad_row == "skip":
            faults = image_faults(samples, path, workers)
            samples = [sample for sample in samples if sample.id not in faults]
            self.skipped += faults.values()
        if self.skipped:
            logger.warning("%s: %d rows left out; the first: %s", path, len(self.skipped), self.skipped[0])
        if not samples:
            raise BadRowError(f"{path}: no row can be used; the first: {self.skipped[0]}")
        if exclude is not None:
            samples = self._without_pictures_of(exclude, samples, path, with_bytes=check_images)
        if seed is not None:
            random.Random(seed).shuffle(samples)
        self._samples = samples[offset:] if n is None else samples[offset : offset + n]
        if offset < 0 or len(self._samples) < (1 if n is None else max(n, 1)):
            raise ValueError(
                f"{path}: n={n} questions after offset={offset} asked for, but {len(samples)} can be used "
                f"({len(self.skipped)} left out): ask for at least one and at most that many"
            )
        if check_images and on_bad_row == "fail":
            raise_first(image_faults(self._samples, path, workers))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]

    def _without_pictures_of(
        self, exclude: Iterable, samples: list[VQASample], path: Path, with_bytes: bool
    ) -> list[VQASample]:
        others = [s for item in exclude for s in ([item] if isinstance(item, VQASample) else item)]
        taken = set().union(*(_pictures(sample, with_bytes) for sample in others))
        shared = {s.id for s in samples if not taken.isdisjoint(_pictures(s, with_bytes))}
        self.skipped += [
            f"{place(s, path)}: image {s.images[0].name} or its group is in an excluded source"
            for s in samples
            if s.id in shared
        ]
        logger.info("%s: %d rows left out because an excluded source has their image", path, len(shared))
        return [sample for sample in samples if sample.id not in shared]


def read_rows(path: Path) -> list[Any]:
    """The rows of a JSON array or, by the suffix ``.jsonl``, of a file with one JSON value a line.

    Raises:
        BadRowError: the file is missing, unreadable, empty, no valid JSON or no array; the message
            names the line and column where the JSON breaks.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadRowError(f"{path} does not exist: check the path of the data file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRowError(f"{path} cannot be read ({error}): give a readable UTF-8 JSON file") from None
    if not text.strip():
        raise BadRowError(f"{path} is empty: give a JSON array with one row a question")
    # Not splitlines(): JSON strings may hold U+2028, which is a line break to it.
    lines = [(0, text)] if path.suffix != ".jsonl" else enumerate(text.split("\n"))
    values = []
    for above, line in lines:
        try:
            if line.strip():
                values.append(json.loads(line))
        except json.JSONDecodeError as error:
            where = f"line {above + error.lineno} column {error.colno}"
            raise BadRowError(f"{path} is not valid JSON at {where} ({error.msg}): mend that line") from None
    rows = values if path.suffix == ".jsonl" else values[0]
    if not isinstance(rows, list):
        raise BadRowError(f"{path} holds a JSON {type(rows).__name__}, not an array: wrap the rows in [ ]")
    if not rows:
        raise BadRowError(f"{path} holds no rows: give a JSON array with one row a question")
    return rows


def read_samples(
    rows: Iterable[tuple[int, Any]],
    path: Path,
    images: Path,
    modality: str | None,
    on_bad_row: OnBadRow,
    name: str | None = None,
    volumes: Volumes | None = None,
) -> tuple[list[VQASample], list[str]]:
    """Read numbered rows of ``path``: the usable ones, and a line for each other under ``skip``.

    Ids are ``<name>-<row>``, by default with the file's stem for a name.

    Raises:
        BadRowError: at the first unusable row under ``fail``.
    """
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"on_bad_row is {on_bad_row!r}: use 'fail' or 'skip'")
    samples, skipped = [], []
    stem = re.sub(r"[^\w.-]+", "_", path.stem)
    for number, row in rows:
        try:
            samples.append(read_row(row, f"{name or stem}-{number}", stem, images, modality, volumes))
        except BadRowError as error:
            message = f"{path} row {number}: {error}"
            if on_bad_row == "fail":
                raise BadRowError(f"{message} (on_bad_row=skip leaves such rows out)") from None
            skipped.append(message)
    return samples, skipped


def image_faults(
    samples: Sequence[VQASample],
    path: Path,
    workers: int | None = None,
    remedy: str = "replace the file, or set data.images to the folder that image paths start from",
) -> dict[str, str]:
    """By sample id, a line for every sample of ``path`` with a picture that does not decode."""
    return {s.id: f"{place(s, path)}: {why}; {remedy}" for s, why in checks.check_images(samples, workers)}


def raise_first(faults: dict[str, str]) -> None:
    """Raise a BadRowError with the first of these faults, saying how many more there are."""
    if faults:
        more = f" ({len(faults) - 1} more rows have such an image)" if len(faults) > 1 else ""
        raise BadRowError(next(iter(faults.values())) + more)


def place(sample: VQASample, path: Path) -> str:
    """File and row of a sample that :func:`read_samples` read, as error messages name them."""
    return f"{path} row {sample.id.rpartition('-')[2]}"


def _pictures(sample: VQASample, with_bytes: bool) -> set[str]:
    keys = {f"group {sample.image_group}", *(f"path {handle.name}" for handle in sample.images)}
    if with_bytes:
        keys |= {f"bytes {digest}" for h in sample.images if (digest := checks.image_digest(h)) is not None}
    return keys
