"""Run folders on disk, and the processes that write them: every other part may import this one."""
