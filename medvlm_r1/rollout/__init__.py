"""Rollouts: from prompts to completions.

=================  ==================================================================
engine.py          the interface of engines: :class:`Sampling` in, :class:`Rollout` out
sampling_noise.py  sampling noise as a hash of seed, step, row, position and token
shared_prefix.py   the fast engine: prefill each prompt once, decode its group from it
decoding_state.py  the completions of one rollout during decoding
cuda_graphs.py     decoding steps captured as CUDA graphs
reference.py       the plain engine on transformers' ``generate``
=================  ==================================================================
"""
