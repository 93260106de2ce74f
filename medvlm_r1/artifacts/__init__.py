"""Files of a finished run: metrics, predictions, timing, the model's directory and its card."""
