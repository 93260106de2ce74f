"""Predict a run's parameters, memory and time from its configuration (``plan=true``)."""
