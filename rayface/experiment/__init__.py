"""Experiments: a sequence of stages from a file; finished stages are skipped."""
