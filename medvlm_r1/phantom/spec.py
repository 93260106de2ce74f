"""The specification of a scene, and the class names that all anatomies share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COUNTS = ("one", "two", "three", "four")
GRADES = ("minimal", "mild", "moderate", "severe")


def by_name(*functions: Callable) -> dict[str, Callable]:
    """Return private functions by their names without the underscore."""
    return {function.__name__.removeprefix("_"): function for function in functions}


@dataclass(frozen=True)
class SceneSpec:
    """Specification of a scene; all its other properties follow from ``key``."""

    key: tuple[int, ...]
    site: str  # of several lesions, of the first one
    disease: str  # shared by all lesions
    grade: str  # the size of every lesion
    attribute: str = "one"  # mostly the number of lesions

    @property
    def count(self) -> int:
        """Number of lesions; 1 if the attribute is no number."""
        return COUNTS.index(self.attribute) + 1 if self.attribute in COUNTS else 1


@dataclass(frozen=True)
class Anatomy:
    """A kind of scene, shared by one or more modalities."""

    name: str
    sites: tuple[str, ...]  # possible locations of a lesion
    diseases: tuple[str, ...]  # possible kinds of a lesion
    attributes: tuple[str, ...]  # classes of a further property: COUNTS, or another visible one
    draw: Callable[[SceneSpec], Any]  # deterministic
    attribute: str = "count"
