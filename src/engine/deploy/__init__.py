"""Prediction, text generation, export and serving."""
