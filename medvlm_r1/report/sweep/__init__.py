"""The summary of a multirun: states, costs, and what each factor changes."""
