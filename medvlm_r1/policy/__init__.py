"""The model: all code that depends on its family.

================  ============================================================================
loading/          from a path or hub id to a policy
resize.py         images at the size at which the vision tower takes them
encode.py         from a question to tensors, in a DataLoader worker
prompt_length.py  lengths of prompts before a run
control_tokens.py control tokens of chats; positions.py: rotary positions of prompts with images
policy.py         log-probabilities, reference, generation, saving
copies.py         the frozen reference, and the model to sample from under FSDP
forward/          the forward passes
counters.py       counters of the work done, and seconds per phase
saving/           Hugging Face directories
prompt_record.py  prompt and limits of a checkpoint, from its record or from ``conf/``
================  ============================================================================
"""
