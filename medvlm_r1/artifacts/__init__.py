"""What a finished run leaves behind.

=============  ==========================================================
record.py      metrics, predictions, timing, and the model's folder
model_card.py  the model card, from ``model_card.md``
=============  ==========================================================
"""
