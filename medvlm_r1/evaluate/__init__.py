"""What makes a number worth printing: controls, and the statistics of answered questions.

================  =============================================================================
controls.py       how each control asks a question
predictions.py    an answer's row, and what the plain rows sum up to
contrasts.py      what the rows of different controls say beside each other
labels.py         what the audit found that touches a number
statistics.py     intervals and tests
================  =============================================================================
"""
