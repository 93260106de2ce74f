"""The trace browser: every test answer and every completion of training."""
