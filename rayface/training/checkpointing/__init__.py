"""Checkpoints: what they hold, how they are written beside the training, and tools that read them."""
