"""Sweeps: Ray Tune runs the trials, each a training run; an Optuna study samples and stores them."""
