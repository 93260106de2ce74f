"""Answers outside training: a model on this machine, or one behind an endpoint.

==================  ======================================================
answerer.py         answer questions with a model, with a confidence
answer_file.py      the JSON-lines file that keeps the answers
endpoint.py         a model behind an OpenAI-compatible endpoint
endpoint_cache.py   its replies on disk, as they come
==================  ======================================================
"""
