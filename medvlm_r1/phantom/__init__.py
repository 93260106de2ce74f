"""Phantom VQA: exact questions about synthetic patients, seen through small physics models.

A question is made in this order, one file a stop:

* ``spec.py``: what a scene is asked to hold, and what a kind of scene has to offer;
* ``scenes/``: anatomy and its lesions, drawn from a seed, without physics: a torso (``torso.py``, of
  ellipsoids, see ``geometry.py``), skin, a retina and a section of tissue (lesions as in ``outline.py``);
* ``physics/``: one function per modality that turns scene and acquisition into a picture; MRI, CT and
  X-ray in ``radiology.py`` (what each tissue looks like to them: ``tissues.py``), the others in files of
  their own, with shared brushes in ``paint.py``;
* ``modalities.py``: the table of modalities: what each looks at, how, and how one asks about it;
* ``questions.py``: questions, balanced options, and the source that serves them;
* ``domains.py``: sources put together as one row of Med-R1's matrices.

Two modalities may look at one scene: MRI, CT, X-ray and ultrasound see the same torso, fundus cameras
and OCT the same retina. A further modality is one function and one row of the table, and a kind of scene
if it looks at something new.
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
