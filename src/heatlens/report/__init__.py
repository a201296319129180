"""Pictures about a run, made from what the run wrote."""
