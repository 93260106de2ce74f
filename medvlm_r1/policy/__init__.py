"""The model: everything that is particular to Qwen2-VL.

==========  ==============================================================================
weights.py  where a checkpoint is, and whether this machine can run it
load.py     a checkpoint becomes a :class:`Policy`; the recipe that goes with a model
encode.py   a question becomes tensors, in a DataLoader worker
policy.py   log-probabilities, reference, generation, saving
export.py   directories for others to load: written, looked into, merged
==========  ==============================================================================
"""
