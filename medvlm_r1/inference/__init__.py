"""Answers outside training, from a local model or from a served one.

==================  ==========================================================
answerer.py         answer questions with a local model, with a confidence
answer_file.py      the JSON-lines file of answers
confidence.py       the probability of each option's letter
endpoint.py         a served model with the interface of a policy
endpoint_chat.py    questions as messages of the chat completions API
endpoint_client.py  the OpenAI client, a check before the run, error messages
endpoint_cache.py   responses on disk
==================  ==========================================================
"""
