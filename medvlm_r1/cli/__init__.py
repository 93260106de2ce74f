"""Command lines over the package, each also ``python -m medvlm_r1.NAME``."""
