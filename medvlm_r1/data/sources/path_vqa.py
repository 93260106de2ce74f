"""PathVQA (arXiv 2003.10286): questions on figures of pathology textbooks.

``data/{train,validation,test}-*.parquet`` of the hub's copy: ``image`` (embedded), ``question``, ``answer``.
"""

from typing import Literal

from medvlm_r1.data.formats.question_file import OnBadRow
from medvlm_r1.data.images.embedded import ParquetRows
from medvlm_r1.data.sources.assemble import assemble, tests_of, without_images_of
from medvlm_r1.data.sources.locate import find_set
from medvlm_r1.data.sources.vqa_rad import embedded_table
from medvlm_r1.data.splits import Questions

HUB_ID = "flaviagiammarino/path-vqa"
PARTS = ("train", "validation", "test")


def path_vqa(
    root: str | None = None,
    revision: str = "main",
    drop_test_images: bool = True,
    questions: Literal["closed", "open", "all"] = "closed",
    n_train: int | None = None,
    n_validation: int = 100,
    n_test: int | None = None,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """PathVQA in its official split, test sets ``path_vqa`` (yes/no, as options) and ``path_vqa_open``.

    Args:
        root: a local copy; ``None`` asks the hub's cache, then the hub.
        revision: commit of the hub's set; used without ``root`` only.
        drop_test_images: leave training questions out whose image, by its bytes, the test shows.
        questions: ``closed`` (yes/no), ``open`` (a text answers) or ``all``.
        n_train, n_validation, n_test: sizes; ``None`` takes all. Validation comes from the official part,
            without images of training or test.
        split_seed: of every draw.
        on_bad_row: ``fail`` or ``skip``.

    Raises:
        FileNotFoundError: the set is not to be had.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    folder = find_set(HUB_ID, root, revision, [f"data/{part}-*.parquet" for part in PARTS])
    rows = ParquetRows(["image"])
    tables = {
        part: embedded_table(rows, folder, part, "path_vqa", "pathology", questions, on_bad_row)
        for part in PARTS
    }
    train, validation, test = (tables[part].samples for part in PARTS)
    return assemble(
        tables.values(),
        without_images_of(train, test) if drop_test_images else train,
        tests_of("path_vqa", test),
        validation,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        split_seed=split_seed,
        on_bad_row=on_bad_row,
    )
