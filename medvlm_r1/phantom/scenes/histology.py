"""A tissue section with foci of disease, without stain and optics.

The field is about 0.5 mm wide: one unit is 4.5 micrometres, about the radius of a resting nucleus.
"""

import math
from dataclasses import dataclass

import numpy as np

from medvlm_r1.phantom.scenes.geometry import draw_apart
from medvlm_r1.phantom.scenes.outline import Outline, draw_outline
from medvlm_r1.phantom.spec import SceneSpec

SITES = ("colon", "lung", "kidney", "muscle", "epidermis")
DISEASES = ("inflammation", "necrosis", "fibrosis", "carcinoma", "hemorrhage")
# Radius of a focus in units, +-4 %.
RADII = {"minimal": 8.0, "mild": 13.0, "moderate": 20.0, "severe": 31.0}


@dataclass(frozen=True)
class Section:
    """A section."""

    site: str
    disease: str
    lesions: tuple[Outline, ...]  # foci, one to four, not touching
    key: tuple[int, ...]  # seeds details without a label (positions of cells)


def draw_section(spec: SceneSpec) -> Section:
    """Draw the scene of ``spec``, deterministic."""
    rng = np.random.default_rng(spec.key)
    largest = RADII[spec.grade]
    room, apart = max(4.0, 50.0 - 1.1 * largest), 2.3 * largest + 3.0
    places = draw_apart(
        spec.count,
        apart,
        draw=lambda places: tuple(rng.uniform(-room, room, 2).tolist()),
        fits=lambda place, others, apart: all(math.dist(place, other) >= apart for other in others),
    )
    lesions = tuple(draw_outline(p, largest * float(rng.uniform(0.96, 1.04)), 0.08, rng) for p in places)
    return Section(spec.site, spec.disease, lesions, (*spec.key, 1))
