"""From a path or hub id to a policy.

===============  ==============================================================
resolve.py       find a checkpoint: on disk, in the hub's cache, on the hub
validate.py      check file names and small files before loading weights
load.py          load a checkpoint as a :class:`~medvlm_r1.policy.policy.Policy`
tuning.py        which weights are trained, and which are quantized
architecture.py  the architecture of a checkpoint without its weights
===============  ==============================================================
"""
