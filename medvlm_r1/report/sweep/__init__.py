"""The summary of a multirun: statuses, costs, and what each factor changes."""
