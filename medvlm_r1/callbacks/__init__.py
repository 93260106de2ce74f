"""Lightning callbacks of a run.

==================  ================================================================
checkpoint.py       checkpoints that a resumed run starts from
alarms.py           warnings when training makes no progress
progress.py         progress bar
rollout_logger.py   completions on the console and on disk, images of questions
rollout_rows.py     rows of completions and small images, for the report
==================  ================================================================
"""
