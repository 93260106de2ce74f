"""Evaluation: controls (perturbed test questions), predictions and their statistics."""
