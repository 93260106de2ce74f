"""Lightning callbacks of a run.

==================  ================================================================
checkpoint.py       checkpoints that a resumed run starts from
alarms.py           warnings when training goes nowhere
progress.py         progress bar
rollout_logger.py   completions on the console and on disk, pictures of questions
rollout_rows.py     one JSON row per completion
==================  ================================================================
"""
