"""VQA-RAD (Lau et al., Scientific Data 2018): clinicians' questions on radiology images.

``data/{train,test}-*.parquet`` of the hub's copy: ``image`` (embedded), ``question``, ``answer``.
"""

from typing import Any, Literal

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.images.embedded import ParquetRows
from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.data.sources.assemble import (
    YES_NO,
    Table,
    assemble,
    kinds_of,
    split_by_image,
    tests_of,
    text_of,
    yes_no,
)
from medvlm_r1.data.sources.locate import find_set, need_files
from medvlm_r1.data.splits import Questions

HUB_ID = "flaviagiammarino/vqa-rad"


def vqa_rad(
    root: str | None = None,
    revision: str = "main",
    split: Literal["by_image", "official"] = "by_image",
    test_share: float = 0.25,
    questions: Literal["closed", "open", "all"] = "closed",
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """VQA-RAD, test sets ``vqa_rad`` (yes/no, as options) and ``vqa_rad_open``.

    Warning: 202 of the official test's 203 images are also in its training part. ``split=official``
    therefore measures how well a model answers about images that it was trained on; use it to compare with
    published figures only.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        split: ``by_image`` pools both parts and draws ``test_share`` of the images for the test.
        test_share: share of the images that test; not used by the official split.
        questions: ``closed`` (yes/no), ``open`` (a text answers) or ``all``.
        n_train, n_validation, n_test: sizes; ``None`` takes all.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    if split not in ("by_image", "official"):
        raise ValueError(f"data.split is {split!r}: use 'by_image' or 'official'")
    folder = find_set(HUB_ID, root, revision, ["data/train-*.parquet", "data/test-*.parquet"])
    rows, tables = ParquetRows(["image"]), {}
    for part in ("train", "test"):
        tables[part] = embedded_table(rows, folder, part, "vqa_rad", "unknown", questions, on_bad_row)
    train, test = tables["train"].samples, tables["test"].samples
    if split == "by_image":
        train, test = split_by_image([*train, *test], test_share, split_seed)
    return assemble(
        tables.values(),
        train,
        tests_of("vqa_rad", test),
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )


def embedded_table(
    rows: ParquetRows, folder: Any, part: str, name: str, modality: str, questions: str, on_bad_row: OnBadRow
) -> Table:
    """The questions of one part of a set whose parquet has ``image``, ``question`` and ``answer``."""
    table, (closed, opened) = Table(), kinds_of(questions)
    for shard, path in enumerate(need_files(folder, f"data/{part}-*.parquet", f"{part}-*.parquet")):

        def sample(number: int, row: dict[str, Any], shard: int = shard) -> VQASample | None:
            picture, question = row["image"], text_of(row, "question")
            if picture is None:
                raise BadRowError("has no image bytes: fetch the set again")
            answer = text_of(row, "answer")
            letter = yes_no(answer)
            if not (opened if letter is None else closed):
                return None
            return VQASample(
                id=f"{name}-{part}-{shard}-{number}",
                images=(picture,),
                question=question,
                options=() if letter is None else YES_NO,
                answer=letter or answer,
                modality=modality,
                question_type="open" if letter is None else "closed",
                source=name,
                image_group=picture.digest[:16],
            )

        table.read(path, rows.read(path), sample, on_bad_row)
    return table
