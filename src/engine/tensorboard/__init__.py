"""Callbacks that write to TensorBoard."""
