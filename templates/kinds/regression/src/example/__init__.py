"""Data and network of this project."""
