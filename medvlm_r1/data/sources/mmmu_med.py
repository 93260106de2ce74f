"""MMMU (arXiv 2311.16502), its five medical subjects: college-level questions, several images each.

``<subject>/{dev,validation}-*.parquet``: ``question`` and ``options`` (a Python list as text) with place
holders such as ``<image 1>``, ``image_1`` to ``image_7`` (embedded), ``answer`` (letter or text) and
``question_type``. The official test part has no answers.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.images.embedded import ParquetRows
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.assemble import Table, assemble, text_of
from medvlm_r1.data.sources.locate import find_set, need_files
from medvlm_r1.data.splits import Questions

HUB_ID = "MMMU/MMMU"
SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
IMAGES = tuple(f"image_{i}" for i in range(1, 8))


def mmmu_med(
    root: str | None = None,
    revision: str = "main",
    subjects: Sequence[str] = SUBJECTS,
    n_train: int | None = None,
    n_validation: int = 5,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """MMMU-Med, made to be tested on: its ``validation`` part is the test set ``mmmu_med``, as is usual.

    Training and validation questions come from the few of ``dev``. Questions with several images show them
    in order, before the text, which keeps its place holders.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        subjects: folders of the hub's set.
        n_train, n_validation, n_test: sizes; ``None`` takes all.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    needed = [f"{subject}/{part}-*.parquet" for subject in subjects for part in ("dev", "validation")]
    folder = find_set(HUB_ID, root, revision, needed)
    rows = ParquetRows(IMAGES)
    dev, test = (_read(rows, folder, subjects, part, on_bad_row) for part in ("dev", "validation"))
    return assemble(
        [dev, test],
        dev.samples,
        {"mmmu_med": test.samples},
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def _read(rows: ParquetRows, folder: Path, subjects: Sequence[str], part: str, on_bad_row: OnBadRow) -> Table:
    table = Table()
    for subject in subjects:
        for path in need_files(folder, f"{subject}/{part}-*.parquet"):

            def sample(number: int, row: dict[str, Any], subject: str = subject) -> VQASample | None:
                if text_of(row, "question_type") != "multiple-choice":
                    return None
                pictures = tuple(row[column] for column in IMAGES if row[column] is not None)
                if not pictures:
                    raise BadRowError("has no image bytes: fetch the set again")
                return VQASample(
                    id=f"{subject}-{part}-{number}",
                    images=pictures,
                    question=text_of(row, "question"),
                    options=_options(text_of(row, "options")),
                    answer=text_of(row, "answer"),
                    modality="unknown",
                    question_type=subject,
                    source="mmmu_med",
                    image_group="+".join(picture.digest[:16] for picture in pictures),
                )

            table.read(path, rows.read(path), sample, on_bad_row)
    return table


def _options(text: str) -> tuple[str, ...]:
    try:
        options = ast.literal_eval(text)
        if not isinstance(options, list):
            raise ValueError("no list")
    except (ValueError, SyntaxError, TypeError) as error:
        raise BadRowError(f"options {text!r} are no list of texts ({error})") from None
    return tuple(str(option).strip() for option in options)
