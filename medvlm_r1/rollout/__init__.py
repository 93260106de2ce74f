"""Rolling out: from prompts to completions.

============  =================================================================
engine.py     what every engine takes (:class:`Sampling`) and gives (:class:`Rollout`)
draws.py      random draws as a pure function of what is drawn
reference.py  the plain engine on transformers' ``generate``
============  =================================================================
"""

from medvlm_r1.rollout.draws import DrawKey
from medvlm_r1.rollout.engine import Rollout, RolloutEngine, Sampling
from medvlm_r1.rollout.reference import ReferenceEngine

__all__ = ["DrawKey", "ReferenceEngine", "Rollout", "RolloutEngine", "Sampling"]
