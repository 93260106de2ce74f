"""Forward passes: log-probabilities, prefill and decoding.

=============  =========================================================================
model.py       the type of a model, with or without PEFT's wrapper
attention.py   attention functions of our own for unmodified Qwen2-VL layers
packing.py     the layout of training passes: each prompt once, then its completions
logprobs.py    teacher-forced log-probabilities, packed, and repeated to test them
lm_head.py     log-probabilities from hidden states, in chunks
vision.py      image features, cached while the vision tower does not change
decoding.py    the layout of decoding steps, from one copy of each prompt's keys
=============  =========================================================================
"""
