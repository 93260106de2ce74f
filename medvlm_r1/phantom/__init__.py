"""Phantom VQA: questions with exact answers about synthetic patients, rendered by small physics models.

The files in the order in which they build a question:

* ``spec.py``: the specification of a scene, and the classes that each anatomy offers;
* ``scenes/``: anatomies and lesions drawn from a seed, without physics: a torso (``torso.py``, made of
  ellipsoids, see ``geometry.py``), skin, a retina and a tissue section (lesions as in ``outline.py``);
* ``physics/``: one function per modality, (scene, acquisition) -> image; MRI, CT and X-ray in
  ``radiology.py`` (their tissue constants in ``tissues.py``), each other modality in its own file, shared
  drawing functions in ``paint.py``;
* ``modalities.py``: the table of modalities: anatomy, acquisitions, question wordings and renderer;
* ``questions.py``: questions, balanced options, and the data source;
* ``domains.py``: sources combined into one row of Med-R1's matrices.

Modalities share scenes: MRI, CT, X-ray and ultrasound render the same torso, fundus cameras and OCT the
same retina. A new modality needs one function, one row of the table, and a scene if its anatomy is new.
"""

from medvlm_r1.phantom.domains import phantom_domains
from medvlm_r1.phantom.modalities import MODALITIES
from medvlm_r1.phantom.questions import (
    FINDINGS,
    QUESTION_TYPES,
    PhantomImage,
    PhantomSource,
)

__all__ = [
    "FINDINGS",
    "MODALITIES",
    "QUESTION_TYPES",
    "PhantomImage",
    "PhantomSource",
    "phantom_domains",
]
