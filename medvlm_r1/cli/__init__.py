"""Command lines. Each is ``python -m medvlm_r1.<name>`` and an installed script ``medvlm-r1-<name>``."""
