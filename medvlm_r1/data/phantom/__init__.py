"""Phantom VQA: exact questions about a synthetic torso, seen through small physics models.

A question is made in this order, one file a stop:

* ``scene.py``: an anatomy of ellipsoids and its lesions, drawn from a seed;
* ``geometry.py``: what a view of an ellipsoid is: its silhouette, and the path of a ray through it;
* ``tissues.py``: what each tissue looks like to each modality, and what its acquisitions are;
* ``physics.py``: one function per modality that turns scene and acquisition into a picture;
* ``questions.py``: questions, balanced options, and the source that serves them.

A further modality is one function in ``physics.PHYSICS`` and one entry each in the tables at the top of
``questions.py`` (findings, wordings of the acquisition question, key of its random stream).
"""

from medvlm_r1.data.phantom.modalities import MODALITIES
from medvlm_r1.data.phantom.questions import (
    FINDINGS,
    QUESTION_TYPES,
    PhantomImage,
    PhantomSource,
)

__all__ = ["FINDINGS", "MODALITIES", "QUESTION_TYPES", "PhantomImage", "PhantomSource"]
