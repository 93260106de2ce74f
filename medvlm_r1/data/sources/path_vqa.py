"""PathVQA (arXiv 2003.10286): questions on figures of pathology textbooks.

``data/{train,validation,test}-*.parquet`` of the hub's copy: ``image`` (embedded), ``question``, ``answer``.
"""

from typing import Any

from medvlm_r1.data.sources.fields import Include
from medvlm_r1.data.sources.published_set import PublishedSet, closed_and_open
from medvlm_r1.data.sources.vqa_rad import read_embedded
from medvlm_r1.data.splits import Questions

HUB_ID = "flaviagiammarino/path-vqa"


def path_vqa(drop_test_images: bool = True, questions: Include = "closed", **shared: Any) -> Questions:
    """Load PathVQA in its official split, with the test sets ``path_vqa`` (yes/no) and ``path_vqa_open``.

    Args:
        drop_test_images: leave training questions out whose image, by its bytes, the test shows.
        shared: settings and errors, see :class:`~medvlm_r1.data.sources.published_set.PublishedSet`.
    """
    settings, names = PublishedSet(**shared), ("train", "validation", "test")
    parts = read_embedded(settings, HUB_ID, names, "path_vqa", "pathology", questions)
    train, validation, test = (part.samples for part in parts.values())
    return settings.assemble(parts, train, closed_and_open("path_vqa", test), validation, drop_test_images)
