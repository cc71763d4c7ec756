"""Checkpoints: their content, asynchronous writing, and tools that read them."""
