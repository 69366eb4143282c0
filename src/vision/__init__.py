"""Images: networks, tasks and data."""
