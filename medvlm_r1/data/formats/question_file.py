"""Parse the rows of a file into questions, check their images, and report the rows that cannot be used."""

import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from medvlm_r1.data.formats.row_policy import STRICT, RowPolicy
from medvlm_r1.data.formats.values import text_or_none
from medvlm_r1.data.images.validate import check_images
from medvlm_r1.data.sample import BadRowError, ImageHandle, Question, VQASample, keep_images
from medvlm_r1.data.skipped import reason_summary
from medvlm_r1.data.splits import Per, Questions, choose, hold_out
from medvlm_r1.runs.progress import track
from medvlm_r1.runs.shorten import shorten

logger = logging.getLogger(__name__)

ParseRow = Callable[[Any, str], VQASample | None]
"""(row, sample id) -> sample, or ``None`` for a row that the data set does not use. Raises BadRowError with
value and remedy; the caller adds file and row."""


class QuestionFile(Sequence[VQASample]):
    """Questions of one file; a subclass reads the rows of its format.

    Args:
        path: the file, as messages name it.
        numbered: (row number, row); a row that could not be read is a BadRowError.
        parse: turns a row into a question.
        name: prefix of the sample ids. Default: the file's stem.
        n: number of questions, the first of the file. Default: all.
        rows: what to do with unusable rows; ``skip`` leaves them out before ``n`` counts.
        left_out: number of usable rows that a setting leaves out, by the setting; ``parse`` may count them.

    Attributes:
        skipped: one line for each skipped row, with file, row and reason.
        refused_images: line and images of each row that was skipped for another reason than its images.

    Raises:
        BadRowError: a row, or the whole file, cannot be used.
        ValueError: the file has fewer than ``n`` questions.
    """

    image_remedy = "replace the file, or set data.images to the folder that image paths start from"

    def __init__(
        self,
        path: Path,
        numbered: Iterable[tuple[int, Any]],
        parse: ParseRow,
        name: str | None = None,
        n: int | None = None,
        rows: RowPolicy = STRICT,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        samples, self.skipped, places, self.refused_images = parse_rows(numbered, path, parse, rows, name)
        if rows.check_images and rows.on_bad_image == "skip":
            faults = image_faults(samples, places, self.image_remedy)
            samples = [sample for sample in samples if sample.id not in faults]
            self.skipped += faults.values()
        if self.skipped:
            log_skipped(str(path), self.skipped)
        left_out = {key: count for key, count in (left_out or {}).items() if count}
        for key, count in left_out.items():
            logger.info("%s: %d rows left out by %s", path, count, key)
        require_rows(str(path), samples, self.skipped, left_out)
        if n is not None and not 1 <= n <= len(samples):
            raise ValueError(
                f"{path}: {n} questions requested, but {len(samples)} can be used ({len(self.skipped)} "
                "skipped): request at least one and at most that many"
            )
        self._samples = samples[:n]
        if rows.check_images and rows.on_bad_image == "fail":
            raise_first(image_faults(self._samples, places, self.image_remedy))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]


class ParsedRows(NamedTuple):
    """Questions of one or more files, in file order."""

    samples: list[VQASample]
    skipped: list[str]  # one line for each skipped row, with file, row and reason
    places: dict[str, str]  # "<file> row <number>" by sample id, for messages
    # line and images of each row skipped for another reason than its images
    refused_images: list[tuple[str, tuple[ImageHandle, ...]]]


def parse_rows(
    numbered: Iterable[tuple[int, Any]],
    path: Path | zipfile.Path,
    parse: ParseRow,
    rows: RowPolicy = STRICT,
    name: str | None = None,
) -> ParsedRows:
    """Parse the numbered rows of ``path``; ``parse`` gets the sample id ``<name>-<row number>``.

    Raises:
        BadRowError: a row cannot be used, under ``on_bad_row=fail``; the message names file and row.
    """
    samples, skipped, places, refused_images = [], [], {}, []
    name = name or plain_stem(path)
    for number, row in track(numbered, f"Reading {path.name}"):
        place = f"{path} row {number}"
        try:
            if isinstance(row, BadRowError):
                raise row
            if (sample := parse(row, f"{name}-{number}")) is None:
                continue
            if sample.id in places:
                id = shorten(sample.id)
                with keep_images(sample.images):
                    raise BadRowError(f"id {id} is already used by {places[sample.id]}: make ids unique")
        except BadRowError as error:
            if rows.on_bad_row == "fail":
                raise BadRowError(f"{place}: {error} (data.rows.on_bad_row=skip skips such rows)") from None
            skipped.append(f"{place}: {error}")
            if error.images:
                refused_images.append((skipped[-1], error.images))
        else:
            object.__setattr__(sample, "place", place)  # replace() would check the row again
            samples.append(sample)
            places[sample.id] = place
    return ParsedRows(samples, skipped, places, refused_images)


def concatenate(parts: Iterable[ParsedRows]) -> ParsedRows:
    """The rows of several files, one file after the other."""
    joined = ParsedRows([], [], {}, [])
    for samples, skipped, places, refused_images in parts:
        joined.samples.extend(samples)
        joined.skipped.extend(skipped)
        joined.places.update(places)
        joined.refused_images.extend(refused_images)
    return joined


def log_skipped(what: str, skipped: Sequence[str]) -> None:
    """Warn how many rows of a file or set were skipped, and why."""
    logger.warning(
        "%s: %d rows skipped (%s); the first: %s", what, len(skipped), reason_summary(skipped), skipped[0]
    )


def require_rows(
    what: str, samples: Sequence[VQASample], skipped: Sequence[str], left_out: Mapping[str, int] | None = None
) -> None:
    """Check that a file or part has a usable row.

    Args:
        left_out: number of usable rows that a setting leaves out, by the setting.

    Raises:
        BadRowError: it has none; the message counts the reasons, the most frequent first.
    """
    if not samples:
        settings = [f"{count} left out by {key}" for key, count in (left_out or {}).items()]
        reasons = [reason_summary(skipped)] if skipped else []
        first = f"; the first: {skipped[0]}" if skipped else ""
        why = "; ".join([*reasons, *settings]) or "it holds none"
        raise BadRowError(f"{what}: no row can be used ({why}){first}")


def plain_stem(path: Path | zipfile.Path) -> str:
    """The file name without suffix; characters that an id should not contain become underscores."""
    return re.sub(r"[^\w.-]+", "_", path.stem)


def image_faults(
    samples: Sequence[Question], places: dict[str, str], remedy: str = "replace the file"
) -> dict[str, str]:
    """Decode all images; return an error message by sample id for each sample with an undecodable image."""
    return {s.id: f"{places[s.id]}: {why}; {remedy}" for s, why in check_images(samples)}


def raise_first(faults: dict[str, str]) -> None:
    """Raise the first fault, if there is one, as a BadRowError that also counts the others."""
    if faults:
        more = f" ({len(faults) - 1} more rows have such an image)" if len(faults) > 1 else ""
        raise BadRowError(next(iter(faults.values())) + more)


@dataclass(frozen=True)
class FileSplit:
    """Which questions of the user's own files train and validate: keys that ``mcq_json`` and ``table`` share.

    Attributes:
        validation: file of validation questions; by default they are held out of training by image group.
        n_train: number of training questions, drawn with ``split_seed``. Default: all.
        n_train_per: draw ``n_train`` of each modality, question_type or answer; see :func:`choose`.
        n_validation: number of validation questions.
        split_seed: seed of both draws; not the run's seed, so that all seeds of a study share their data.
    """

    validation: str | None = None
    n_train: int | None = None
    n_train_per: Per | None = None
    n_validation: int = 100
    split_seed: int = 0

    def questions(
        self, read: Callable[..., QuestionFile], train: str, tests: Mapping[str, QuestionFile]
    ) -> Questions:
        """Read the training file (and the validation file) with ``read(path, name=..., n=...)``."""
        source = read(train, name="train")
        parts = {"train": source, **tests}
        if self.validation is None:
            tested = {sample.image_group for test in tests.values() for sample in test}
            rest, held_out = hold_out(source, self.n_validation, self.split_seed, avoid=tested)
        else:
            held_out = read(self.validation, name="validation", n=self.n_validation)
            rest, parts = list(source), {"train": source, "validation": held_out, **tests}
        chosen = choose(rest, self.n_train, self.split_seed, self.n_train_per)
        return Questions(chosen, held_out, split_open(tests), *skipped_rows(parts))


def test_files(test: Mapping[Any, str]) -> dict[str, str]:
    """Return the test files by name; a name such as 1 becomes text.

    Raises:
        ValueError: a name is empty, or two are equal as text.
    """
    files = {text_or_none(name) or "": str(path) for name, path in test.items()}
    if "" in files or len(files) < len(test):
        raise ValueError(
            f"data.test has the names {', '.join(map(shorten, test))}: give each test set its own"
        )
    return files


def split_open(tests: Mapping[str, Sequence[VQASample]]) -> dict[str, Sequence[VQASample]]:
    """Split test sets with both kinds of questions: accuracy and exact match must not be averaged.

    The open questions of the set ``name`` become the set ``name_open``.

    Raises:
        ValueError: there is such a set already.
    """
    split: dict[str, Sequence[VQASample]] = {}
    for name, samples in tests.items():
        open_questions = [sample for sample in samples if sample.is_open]
        if not 0 < len(open_questions) < len(samples):
            split[name] = samples
            continue
        if f"{name}_open" in tests:
            raise ValueError(
                f"data.test names {name}_open, which the open questions of {name} become: rename it"
            )
        split[name] = [sample for sample in samples if not sample.is_open]
        split[f"{name}_open"] = open_questions
    return split


@runtime_checkable
class SkippedRows(Protocol):
    """Rows of which some were skipped, such as :class:`QuestionFile` and :class:`ParsedRows`."""

    @property
    def skipped(self) -> list[str]:
        """One line for each skipped row."""

    @property
    def refused_images(self) -> list[tuple[str, tuple[ImageHandle, ...]]]:
        """Line and images of each row skipped for another reason than its images."""


def skipped_rows(
    parts: Mapping[str, SkippedRows],
) -> tuple[tuple[str, ...], tuple[tuple[str, str, tuple[ImageHandle, ...]], ...]]:
    """Return ``skipped`` and ``refused`` of :class:`~medvlm_r1.data.splits.Questions`, from files by part."""
    skipped = (line for rows in parts.values() for line in rows.skipped)
    refused = ((part, *row) for part, rows in parts.items() for row in rows.refused_images)
    return tuple(skipped), tuple(refused)
