"""The forward passes: log-probabilities, prefill and decoding.

=============  ======================================================================
attention.py   the seam to the layers, and attention to a shared prefix
packing.py     each prompt once, with its completions behind it
logprobs.py    teacher-forced log-probabilities, packed, and repeated to check them
lm_head.py     log-probabilities from hidden states, in chunks
vision.py      picture features: each picture goes through the tower once
decoding.py    the next token of all rows, from one copy of each prompt
=============  ======================================================================
"""
