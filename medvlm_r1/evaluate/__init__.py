"""What makes a number worth printing: controls, and the statistics of answered questions."""
