"""What you need not read: what is behind the commands."""
