"""From a path or hub id to a policy.

============  ================================================================
resolve.py    where a checkpoint is, and whether this machine can run it
validate.py   whether a directory can be loaded, from its names and small files
load.py       a checkpoint becomes a :class:`~medvlm_r1.policy.policy.Policy`
tuning.py     which weights are trained, and in how many bits the rest is held
============  ================================================================
"""
