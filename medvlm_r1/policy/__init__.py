"""The model: everything that is particular to Qwen2-VL.

=============  ===========================================================================
weights.py     where a checkpoint is, and whether this machine can run it
checkpoint.py  whether a directory can be loaded, from its names and small files
load.py        a checkpoint becomes a :class:`Policy`; the recipe that goes with a model
tuning.py      what of it is trained, and in how many bits the rest is held
encode.py      a question becomes tensors, in a DataLoader worker
policy.py      log-probabilities, reference, generation, saving
export.py      directories for others to load: written, looked into
merge.py       an adapter becomes part of its base
confidence.py  the probability of each option's letter at the answer's place
asked.py       how a model is to be asked, by its record or by the configuration
=============  ===========================================================================
"""
