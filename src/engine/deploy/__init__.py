"""Prediction, export and service."""
