"""Where questions come from: sources that read them, splits, and the Lightning data module that serves them."""
