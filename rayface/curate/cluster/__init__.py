"""Cluster embeddings into identities, and score clusters where labels are known."""
