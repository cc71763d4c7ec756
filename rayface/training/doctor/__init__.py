"""Diagnosis of a training run from its config and journal: what is wrong, and which key to change."""
