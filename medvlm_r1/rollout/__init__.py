"""Rolling out: from prompts to completions.

============  =================================================================
engine.py     what every engine takes (:class:`Sampling`) and gives (:class:`Rollout`)
draws.py      random draws as a pure function of what is drawn
reference.py  the plain engine on transformers' ``generate``
============  =================================================================
"""
