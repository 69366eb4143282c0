"""Errors, hardware, signals, seeds and class lookup."""
