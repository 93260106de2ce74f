"""Evaluation: controls, predictions and their statistics.

==================  ===========================================================================
controls.py         perturbed test questions: blank or swapped image, permuted options, cut reasoning
predictions.py      one row per answered question; accuracy, format and length metrics
journal.py          answers on disk batch by batch, so that an interrupted evaluation resumes
control_metrics.py  paired differences between controls, with a verdict on image use
audit_warnings.py   audit results that affect a test set's numbers
statistics.py       confidence intervals and tests
==================  ===========================================================================
"""
