"""Forward passes: log-probabilities, prefill, decoding, image features, and the attention of each."""
