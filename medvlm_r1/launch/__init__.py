"""Before the first batch: compose, validate, explain mistakes."""
