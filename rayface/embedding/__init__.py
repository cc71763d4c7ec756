"""Embed datasets with a model, as a job, and read embeddings of any origin."""
