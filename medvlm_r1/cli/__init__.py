"""Command lines: ``main.py`` is ``medvlm-r1``, and starts one of the others by its name."""
