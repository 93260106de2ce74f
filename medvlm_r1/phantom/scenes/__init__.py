"""Anatomies and their lesions, drawn from a seed; no physics."""
