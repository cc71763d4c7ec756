"""Prune a dataset to a core set: selection methods, the job, its result and report."""
