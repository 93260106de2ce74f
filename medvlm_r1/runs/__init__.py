"""Run folders on disk: the ground floor that every other part may use.

============  =====================================================================
durable.py    write a file whole
ranks.py      which process of a run this is
progress.py   a progress bar on the first rank
hub.py        can the Hugging Face hub be reached?
folder.py     names of run folders, and which are free
status.py     what became of a run: attempts, failure, lock; the runs of a sweep
============  =====================================================================
"""
