"""Rendering of scenes, one function per modality."""
