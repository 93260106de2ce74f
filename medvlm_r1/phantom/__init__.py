"""Phantom VQA: questions with exact answers about synthetic patients, rendered by small physics models.

``scenes/`` draws anatomies and lesions from a seed, ``physics/`` renders a scene as one modality,
``modalities.py`` lists the modalities, and ``questions.py`` generates the questions.

Modalities share scenes: MRI, CT, X-ray and ultrasound render the same torso, fundus cameras and OCT the
same retina. A new modality needs one function, one row of the table, and a scene if its anatomy is new.
"""

from medvlm_r1.phantom.domains import phantom_domains
from medvlm_r1.phantom.modalities import MODALITIES
from medvlm_r1.phantom.questions import FINDINGS, QUESTION_TYPES, PhantomImage, PhantomSource

__all__ = ["FINDINGS", "MODALITIES", "QUESTION_TYPES", "PhantomImage", "PhantomSource", "phantom_domains"]
