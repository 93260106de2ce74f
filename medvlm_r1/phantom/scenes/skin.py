"""A patch of skin with one lesion in the field of a dermoscope, without optics.

The field is about 20 mm wide: one unit is 0.18 mm.
"""

from dataclasses import dataclass

import numpy as np

from medvlm_r1.phantom.scenes.outline import Outline, draw_outline
from medvlm_r1.phantom.spec import SceneSpec

SITES = ("face", "scalp", "trunk", "sole", "lip")
DISEASES = ("nevus", "melanoma", "keratosis", "hemangioma", "carcinoma")
TONES = ("fair", "olive", "brown", "dark")
# Lesion radius in units, +-4 %.
RADII = {"minimal": 9.0, "mild": 15.0, "moderate": 24.0, "severe": 38.0}

# Amplitude of the outline's waves: only a melanoma's border is notched.
_ROUGHNESS = {"nevus": 0.06, "melanoma": 0.24, "keratosis": 0.10, "hemangioma": 0.08, "carcinoma": 0.12}


@dataclass(frozen=True)
class Skin:
    """A patch of skin."""

    site: str
    tone: str
    disease: str
    lesion: Outline
    key: tuple[int, ...]  # seeds details without a label (hairs, dots, patches of colour)


def draw_skin(spec: SceneSpec) -> Skin:
    """Draw the scene of ``spec``, deterministic."""
    rng = np.random.default_rng(spec.key)
    radius = RADII[spec.grade] * float(rng.uniform(0.96, 1.04))
    x, y = rng.uniform(-5.0, 5.0, size=2).tolist()
    outline = draw_outline((x, y), radius, _ROUGHNESS[spec.disease], rng)
    return Skin(spec.site, spec.attribute, spec.disease, outline, (*spec.key, 1))
