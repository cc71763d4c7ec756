"""Workers of a local Ray forked from one process that has imported PyTorch, in place of importing it each."""
