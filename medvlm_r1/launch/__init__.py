"""Everything between the command line and the first batch."""
