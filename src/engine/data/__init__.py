"""Loading, splitting and downloading data."""
