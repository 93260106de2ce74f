"""Run folders on disk: the ground floor that every other part may use.

============  =====================================================================
durable.py    replace a file or folder as a unit; append lines to a log
ranks.py      rank of this process; processes that Lightning starts
progress.py   progress bar on rank 0
hub.py        whether the Hugging Face hub can be reached
folder.py     names of run folders, and which are free
status.py     status of a run: attempts, lock, failure; the runs of a sweep
renames.py    names of earlier versions: keys and metrics
============  =====================================================================
"""
