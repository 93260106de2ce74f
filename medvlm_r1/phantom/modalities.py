"""The table of modalities: anatomy, acquisitions, question wordings, and the function that renders images."""

from collections.abc import Callable
from dataclasses import dataclass
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

_ORGAN_WORDINGS = (
    "Which organ holds the lesion?",
    "In which organ is the lesion located?",
    "Where is the lesion in this image?",
)
TORSO = Anatomy(torso.ORGANS, torso.DISEASES, COUNTS, torso.draw_scene, _ORGAN_WORDINGS)
# Air blocks ultrasound, so lesions in lungs are excluded.
ABDOMEN = Anatomy(
    ULTRASOUND_ORGANS,
    torso.DISEASES,
    COUNTS,
    partial(torso.draw_scene, hosts=ULTRASOUND_ORGANS, reach=REACH),
    _ORGAN_WORDINGS,
)
SKIN = Anatomy(
    skin.SITES,
    skin.DISEASES,
    skin.TONES,
    skin.draw_skin,
    (
        "Where on the body is the lesion?",
        "Which kind of skin surrounds the lesion?",
        "On which part of the body was this image taken?",
    ),
    (
        "What is the skin tone of this patient?",
        "Which skin tone does this image show?",
        "How pigmented is the skin around the lesion?",
    ),
)
RETINA = Anatomy(
    retina.SITES,
    retina.DISEASES,
    COUNTS,
    retina.draw_retina,
    (
        "Which part of the retina holds the lesion?",
        "In which part of the retina is the lesion located?",
        "Where is the lesion in this image?",
    ),
)
SECTION = Anatomy(
    histology.SITES,
    histology.DISEASES,
    COUNTS,
    histology.draw_section,
    (
        "Which tissue surrounds the lesion?",
        "Which tissue was this section cut from?",
        "In which tissue is the lesion located?",
    ),
)


@dataclass(frozen=True)
class Modality:
    """One imaging modality.

    Attributes:
        key: seed of its random streams; never change it.
        anatomy: the anatomy that it shows.
        acquisitions: names of its acquisitions.
        wordings: questions about the acquisition.
        render: ``(scene, acquisition, rng, size)`` to ``[size, size]`` or, in colour, ``[size, size, 3]``,
            nominally from 0 to 1 (values outside are clipped).
    """

    key: int
    anatomy: Anatomy
    acquisitions: tuple[str, ...]
    wordings: tuple[str, ...]
    render: Callable[[Any, str, np.random.Generator, int], np.ndarray]


MODALITIES: dict[str, Modality] = {
    "mri": Modality(
        1,
        TORSO,
        tuple(MRI_ACQUISITIONS),
        (
            "Which weighting does this image have?",
            "Which sequence was this image acquired with?",
            "What is the contrast of this image?",
        ),
        mri,
    ),
    "ct": Modality(
        2,
        TORSO,
        tuple(CT_WINDOWS),
        (
            "Which window is this image shown in?",
            "Which display window was chosen for this image?",
            "What is the window of this image?",
        ),
        ct,
    ),
    "xray": Modality(
        3,
        TORSO,
        tuple(XRAY_WINDOWS),
        (
            "Which view does this image show?",
            "From which direction was this image taken?",
            "What is the projection of this image?",
        ),
        xray,
    ),
    "ultrasound": Modality(
        4,
        ABDOMEN,
        tuple(PROBES),
        (
            "Which probe was this image acquired with?",
            "Which transducer took this image?",
            "What is the type of the probe?",
        ),
        ultrasound,
    ),
    "dermoscopy": Modality(
        5,
        SKIN,
        tuple(DERMOSCOPY_MODES),
        (
            "Which light was this image taken in?",
            "How was the skin lit for this image?",
            "Which kind of photograph is this?",
        ),
        dermoscopy,
    ),
    "fundus": Modality(
        6,
        RETINA,
        tuple(FUNDUS_MODES),
        (
            "Which kind of fundus photograph is this?",
            "Which filter was this image taken with?",
            "How was this fundus image acquired?",
        ),
        fundus,
    ),
    "oct": Modality(
        7,
        RETINA,
        tuple(OCT_DEVICES),
        (
            "Which kind of tomograph took this image?",
            "How was this section acquired?",
            "Which technique of tomography does this image show?",
        ),
        oct_section,
    ),
    "microscopy": Modality(
        8,
        SECTION,
        tuple(STAINS),
        (
            "Which stain does this section have?",
            "How was this section stained?",
            "What is the staining of this image?",
        ),
        microscopy,
    ),
}
"""Modalities by name, in the order of reports."""
