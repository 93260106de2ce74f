"""PathVQA (arXiv 2003.10286): questions on figures of pathology textbooks.

``data/{train,validation,test}-*.parquet`` of the hub's copy: ``image`` (embedded), ``question``, ``answer``.
"""

import functools
from typing import Any, Literal

from medvlm_r1.data.images.embedded import ParquetRows
from medvlm_r1.data.sources.published_set import PublishedSet, closed_and_open
from medvlm_r1.data.sources.vqa_rad import read_embedded
from medvlm_r1.data.splits import Questions

HUB_ID = "flaviagiammarino/path-vqa"
PARTS = ("train", "validation", "test")


def path_vqa(
    drop_test_images: bool = True, questions: Literal["closed", "open", "all"] = "closed", **shared: Any
) -> Questions:
    """Load PathVQA in its official split, with the test sets ``path_vqa`` (yes/no) and ``path_vqa_open``.

    Args:
        drop_test_images: leave training questions out whose image, by its bytes, the test shows.
        questions: ``closed`` (yes/no), ``open`` (free text) or ``all``.
        shared: see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.

    Raises:
        FileNotFoundError: the set is neither local nor on the hub.
        BadRowError: a row cannot be used.
        ValueError: there are too few questions.
    """
    settings = PublishedSet(**shared)
    folder = settings.find(HUB_ID, [f"data/{part}-*.parquet" for part in PARTS])
    read = functools.partial(
        read_embedded, folder, ParquetRows(["image"]), "path_vqa", "pathology", questions, settings.rows
    )
    parts = [read(part) for part in PARTS]
    train, validation, test = (part.samples for part in parts)
    return settings.assemble(parts, train, closed_and_open("path_vqa", test), validation, drop_test_images)
