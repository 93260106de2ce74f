"""The model: everything that is particular to Qwen2-VL.

=============  ===========================================================================
weights.py     where a checkpoint is, and whether this machine can run it
checkpoint.py  whether a directory can be loaded, from its names and small files
load.py        a checkpoint becomes a :class:`Policy`; the recipe that goes with a model
tuning.py      what of it is trained, and in how many bits the rest is held
encode.py      a question becomes tensors, in a DataLoader worker
policy.py      log-probabilities, reference, generation, saving
vision.py      picture features: each picture goes through the tower once
attention.py   the seam to the layers, and attention to a shared prefix
packed.py      each prompt once with its completions behind it: the layout of training passes
passes.py      teacher-forced log-probabilities, packed, and repeated to check them
head.py        log-probabilities from hidden states, in chunks
decoding.py    the next token of all rows, from one copy of each prompt
counters.py    what was computed, and how long it took
export.py      directories for others to load: written, looked into
merge.py       an adapter becomes part of its base
confidence.py  the probability of each option's letter at the answer's place
asked.py       how a model is to be asked, by its record or by the configuration
=============  ===========================================================================
"""
