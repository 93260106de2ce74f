"""MMMU (arXiv 2311.16502), its five medical subjects: college-level questions, several images each.

``<subject>/{dev,validation}-*.parquet``: ``question`` and ``options`` (a Python list as text) with
placeholders such as ``<image 1>``, ``image_1`` to ``image_7`` (embedded), ``answer`` (letter or text) and
``question_type``. The official test part has no answers.
"""

import ast
import string
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.hf_load import load_parquet
from medvlm_r1.data.formats.question_file import ParsedRows, concatenate, parse_rows
from medvlm_r1.data.images.arrow import ArrowRows
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.fields import lettered_options, text_of
from medvlm_r1.data.sources.locate import need_files
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.shorten import shorten

HUB_ID = "MMMU/MMMU"
SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
IMAGES = tuple(f"image_{i}" for i in range(1, 8))


def mmmu_med(subjects: Sequence[str] = SUBJECTS, **shared: Any) -> Questions:
    """Load MMMU-Med. Its official ``validation`` part is the test set ``mmmu_med``, as is usual.

    Training and validation questions come from the small ``dev`` part. Questions with several images show
    them in order, before the text, which keeps its placeholders.

    Args:
        subjects: folders of the hub's set.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    settings = PublishedSet(**shared)
    needed = [f"{subject}/{part}-*.parquet" for subject in subjects for part in ("dev", "validation")]
    folder = settings.find(HUB_ID, needed)
    images = ArrowRows()
    columns = dict.fromkeys((*IMAGES, "question", "options", "answer", "question_type"), False)

    def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        return images.read(load_parquet(path), path.as_posix(), columns)

    def read(part: str) -> ParsedRows:
        return concatenate(
            parse_rows(rows(path), path, partial(_parse, s), settings.rows, f"{s}-{part}")
            for s in subjects
            for path in need_files(folder, f"{s}/{part}-*.parquet")
        )

    dev, test = read("dev"), read("validation")
    return settings.assemble({"train": dev, "mmmu_med": test}, dev.samples, {"mmmu_med": test.samples})


def _parse(subject: str, row: dict[str, Any], id: str) -> VQASample | None:
    if text_of(row, "question_type") != "multiple-choice":
        return None
    images = tuple(row[column] for column in IMAGES if row[column] is not None)
    if not images:
        raise BadRowError("has no image bytes: fetch the set again")
    options, letters = _options(text_of(row, "options"))
    if (answer := text_of(row, "answer")) not in letters:
        raise BadRowError(f"answer is {shorten(answer)}: give the letter of an option, {', '.join(letters)}")
    return VQASample(
        id=id,
        images=images,
        question=text_of(row, "question"),
        options=options,
        answer=letters[answer],
        modality="unknown",
        question_type=subject,
        source="mmmu_med",
        image_group="+".join(image.digest[:16] for image in images),
    )


def _options(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    try:
        options = ast.literal_eval(text)
        if not isinstance(options, list):
            raise ValueError("no list")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadRowError(f"options {shorten(text)} is not a list of texts ({error!s:.80})") from None
    return lettered_options(dict(zip(string.ascii_uppercase, options, strict=False)))
