"""Answers outside training: with a local model (answerer.py), or from a served one (endpoint.py)."""
