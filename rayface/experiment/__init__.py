"""Experiments: verbs one after the other, from a file; what is finished is not done again."""
