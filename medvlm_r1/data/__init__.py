"""Where questions come from.

=================  ==================================================================
sample.py          :class:`VQASample`, the value that every later stop receives
phantom/           the embedded data set: rendered scenes with exact truth
mcq_json.py        the papers' JSON schema, with images from any folder
medvlm_r1_set.py   MedVLM-R1's 600 training questions and its test file
sources/           the other published sets, one file each
module.py          the Lightning data module that serves questions to the trainer
=================  ==================================================================
"""
