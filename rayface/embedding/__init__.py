"""Embed datasets with a model as a job, and read embedding files of any origin."""
