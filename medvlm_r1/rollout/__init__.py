"""Rollouts: engines that sample completions of prompts; ``engine.py`` holds their interface."""
