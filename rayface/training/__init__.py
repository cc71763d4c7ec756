"""Training: the driver, the workers' training loop, and the run directory that they share."""
