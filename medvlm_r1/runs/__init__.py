"""Run folders on disk: the ground floor that every other part may use.

============  =====================================================================
durable.py    write a file whole
ranks.py      which process of a run this is
folder.py     names of run folders, and which are free
status.py     what became of a run: attempts, failure, lock; the runs of a sweep
============  =====================================================================
"""
