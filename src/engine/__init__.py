"""What you need not read: command line, runs, training, deployment and search."""
