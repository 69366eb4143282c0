"""Image networks, tasks and data."""
