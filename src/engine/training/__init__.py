"""Callbacks and optimizers of every run."""
