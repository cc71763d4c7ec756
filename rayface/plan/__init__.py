"""Memory, time and network of a training run before it is launched."""
