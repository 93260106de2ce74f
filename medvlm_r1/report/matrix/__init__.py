"""Generalisation matrices: models trained on one domain, tested on all."""
