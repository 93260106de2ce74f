"""What a scene is asked to hold, and the words that every anatomy shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COUNTS = ("one", "two", "three", "four")
GRADES = ("minimal", "mild", "moderate", "severe")


@dataclass(frozen=True)
class SceneSpec:
    """What a scene must hold; everything else about it follows from ``key``.

    Attributes:
        key: integers that seed the draw.
        site: where the lesion is; of several lesions, where the first one is.
        disease: one of the anatomy's, shared by all lesions.
        grade: one of ``GRADES``, the size of every lesion.
        attribute: one of the anatomy's: mostly the number of lesions, as a word.
    """

    key: tuple[int, ...]
    site: str
    disease: str
    grade: str
    attribute: str = "one"

    @property
    def count(self) -> int:
        """Number of lesions; 1 where the attribute is no number."""
        return COUNTS.index(self.attribute) + 1 if self.attribute in COUNTS else 1


@dataclass(frozen=True)
class Anatomy:
    """A kind of scene, which one modality or several look at.

    Attributes:
        sites: where a lesion can be.
        diseases: what a lesion can be.
        attributes: the further property: ``COUNTS``, or what else can be read off one lesion's picture.
        draw: the scene that a spec describes; the same spec always gives the same scene.
        site_wordings: how one asks for the site.
        attribute_wordings: how one asks for the attribute.
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
