"""Errors, hardware and signals."""
