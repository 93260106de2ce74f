"""Questions about images: read them, check them, split them, serve them to the trainer.

==================  ==================================================================
sample.py           :class:`VQASample`, the value that every later stage receives
skipped.py          count the reasons for which rows were skipped
splits.py           :class:`Questions`: training, validation and test; random splits
difficulty.py       pass rates of training questions, and a band of them
prompt_check.py     questions whose prompts cannot be used
datamodule.py       the Lightning data module: shuffled, sharded, encoded batches
perturbation.py     a test question under a control
formats/            files of your own: tables, JSON, labelled images
sources/            published sets, one file each
images/             resolve paths, decode (PNG, JPEG, DICOM, NIfTI), check, cache
==================  ==================================================================

``conf/data/<name>.yaml`` calls the function ``<name>`` of ``formats/<name>.py`` or ``sources/<name>.py``.
"""
