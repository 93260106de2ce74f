"""The specification of a scene, and the class names that all anatomies share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COUNTS = ("one", "two", "three", "four")
GRADES = ("minimal", "mild", "moderate", "severe")


@dataclass(frozen=True)
class SceneSpec:
    """Specification of a scene; all its other properties follow from ``key``.

    Attributes:
        key: integers that seed the draw.
        site: location of the lesion; of several, of the first one.
        disease: one of the anatomy's diseases, shared by all lesions.
        grade: one of ``GRADES``, the size of every lesion.
        attribute: one of the anatomy's attributes: mostly the number of lesions, as a word.
    """

    key: tuple[int, ...]
    site: str
    disease: str
    grade: str
    attribute: str = "one"

    @property
    def count(self) -> int:
        """Number of lesions; 1 if the attribute is no number."""
        return COUNTS.index(self.attribute) + 1 if self.attribute in COUNTS else 1


@dataclass(frozen=True)
class Anatomy:
    """A kind of scene, shared by one or more modalities.

    Attributes:
        sites: possible locations of a lesion.
        diseases: possible kinds of a lesion.
        attributes: classes of a further property: ``COUNTS``, or another visible one.
        draw: spec -> scene, deterministic.
        site_wordings: questions about the site.
        attribute_wordings: questions about the attribute.
    """

    sites: tuple[str, ...]
    diseases: tuple[str, ...]
    attributes: tuple[str, ...]
    draw: Callable[[SceneSpec], Any]
    site_wordings: tuple[str, ...]
    attribute_wordings: tuple[str, ...] = (
        "How many lesions are there?",
        "How many lesions does this image show?",
        "What is the number of lesions in this image?",
    )
