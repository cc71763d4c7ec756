"""Errors of checkpoints, for those who handle them without PyTorch."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or there is none to resume from; one line, the same on every rank."""
