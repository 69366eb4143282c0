"""Callbacks, optimizers and schedules for training."""
