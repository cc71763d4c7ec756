"""Sweeps: Ray Tune starts the trials, each a training run; an Optuna study says which, and remembers them."""
