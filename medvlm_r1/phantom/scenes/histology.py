"""A tissue section with foci of disease, without stain and optics.

The field is about 0.5 mm wide: one unit is 4.5 micrometres, about the radius of a resting nucleus.
"""

import math
from dataclasses import dataclass

import numpy as np

from medvlm_r1.phantom.scenes.outline import Outline, draw_outline
from medvlm_r1.phantom.spec import SceneSpec

SITES = ("colon", "lung", "kidney", "muscle", "epidermis")
DISEASES = ("inflammation", "necrosis", "fibrosis", "carcinoma", "hemorrhage")
# Radius of a focus in units, +-4 %.
RADII = {"minimal": 8.0, "mild": 13.0, "moderate": 20.0, "severe": 31.0}


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
        site: one of ``SITES``.
        disease: one of ``DISEASES``.
        lesions: outlines of the foci, one to four, not touching.
        key: integers that seed details without a label (positions of cells).
    """

    site: str
    disease: str
    lesions: tuple[Outline, ...]
    key: tuple[int, ...]


def draw_section(spec: SceneSpec) -> Section:
    """Draw the scene of ``spec``, deterministic."""
    rng = np.random.default_rng(spec.key)
    largest = RADII[spec.grade]
    room, apart = max(4.0, 50.0 - 1.1 * largest), 2.3 * largest + 3.0
    places: list[tuple[float, float]] = []
    tries = 0
    while len(places) < spec.count:
        tries += 1
        if tries % 60 == 0:  # dead end: start again with a smaller distance
            places, apart = [], 0.97 * apart
        place = tuple(rng.uniform(-room, room, 2).tolist())
        if all(math.dist(place, other) >= apart for other in places):
            places.append(place)
    lesions = tuple(draw_outline(p, largest * float(rng.uniform(0.96, 1.04)), 0.08, rng) for p in places)
    return Section(spec.site, spec.disease, lesions, (*spec.key, 1))
