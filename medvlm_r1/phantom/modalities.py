"""The table of modalities: anatomy, acquisitions, and the function that renders images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from medvlm_r1.phantom.physics.dermoscopy import DERMOSCOPY_MODES, dermoscopy
from medvlm_r1.phantom.physics.fundus import FUNDUS_MODES, fundus
from medvlm_r1.phantom.physics.microscopy import STAINS, microscopy
from medvlm_r1.phantom.physics.oct import OCT_DEVICES, oct_section
from medvlm_r1.phantom.physics.radiology import ct, mri, xray
from medvlm_r1.phantom.physics.tissues import CT_WINDOWS, MRI_ACQUISITIONS, XRAY_WINDOWS
from medvlm_r1.phantom.physics.ultrasound import PROBES, REACH, ULTRASOUND_ORGANS, ultrasound
from medvlm_r1.phantom.scenes import histology, retina, skin, torso
from medvlm_r1.phantom.spec import COUNTS, Anatomy

TORSO = Anatomy("torso", torso.ORGANS, torso.DISEASES, COUNTS, torso.draw_scene)
# Air blocks ultrasound, so lesions in lungs are excluded.
ABDOMEN = replace(
    TORSO,
    sites=ULTRASOUND_ORGANS,
    draw=partial(torso.draw_scene, hosts=ULTRASOUND_ORGANS, reach=REACH),
)
SKIN = Anatomy("skin", skin.SITES, skin.DISEASES, skin.TONES, skin.draw_skin, attribute="tone")
RETINA = Anatomy("retina", retina.SITES, retina.DISEASES, COUNTS, retina.draw_retina)
SECTION = Anatomy("section", histology.SITES, histology.DISEASES, COUNTS, histology.draw_section)


@dataclass(frozen=True)
class Modality:
    """One imaging modality.

    Attributes:
        key: seed of its random streams; never change it.
        render: ``(scene, acquisition, rng, size)`` to ``[size, size]`` or, in colour, ``[size, size, 3]``,
            nominally from 0 to 1 (values outside are clipped).
    """

    key: int
    anatomy: Anatomy
    acquisitions: tuple[str, ...]
    render: Callable[[Any, str, np.random.Generator, int], np.ndarray]


MODALITIES: dict[str, Modality] = {
    "mri": Modality(1, TORSO, tuple(MRI_ACQUISITIONS), mri),
    "ct": Modality(2, TORSO, tuple(CT_WINDOWS), ct),
    "xray": Modality(3, TORSO, tuple(XRAY_WINDOWS), xray),
    "ultrasound": Modality(4, ABDOMEN, tuple(PROBES), ultrasound),
    "dermoscopy": Modality(5, SKIN, DERMOSCOPY_MODES, dermoscopy),
    "fundus": Modality(6, RETINA, tuple(FUNDUS_MODES), fundus),
    "oct": Modality(7, RETINA, tuple(OCT_DEVICES), oct_section),
    "microscopy": Modality(8, SECTION, tuple(STAINS), microscopy),
}
"""Modalities by name, in the order of reports."""
