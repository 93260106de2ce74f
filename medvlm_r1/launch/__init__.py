"""Everything between the command line and the first batch.

============  ======================================================================
compose.py    compose every job of a command with Hydra, plan it, fill in its config
validate.py   settings that exclude each other, found before data and weights load
suggest.py    nearest spelling of a misspelt key or option
attempt.py    lock of a run, what to resume, failure; exit codes
errors.py     errors that a user can fix, shown without a traceback
silence.py    library messages that no user can act on
============  ======================================================================
"""
