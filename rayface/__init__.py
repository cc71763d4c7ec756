"""Very-large-scale face-recognition training on Ray."""

__version__ = "0.1.0"
