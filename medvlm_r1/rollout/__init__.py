"""Rolling out: from prompts to completions.

================  =============================================================================
engine.py         what every engine takes (:class:`Sampling`) and gives (:class:`Rollout`)
draws.py          random draws as a pure function of what is drawn
shared_prefix.py  the fast engine: each prompt is read once, its completions decode from there
recorded.py       its steps on a GPU, recorded as CUDA graphs
reference.py      the plain engine on transformers' ``generate``
================  =============================================================================
"""
