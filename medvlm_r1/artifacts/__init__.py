"""Files of a finished run.

=============  ========================================================
record.py      metrics, predictions, timing, and the model's directory
model_card.py  the model card, from ``model_card.md``
=============  ========================================================
"""
