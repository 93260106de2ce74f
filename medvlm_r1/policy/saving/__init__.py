"""From a policy to model directories that other programs load."""
