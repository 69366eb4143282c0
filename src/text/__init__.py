"""Text: networks, tasks, data and tokenizers."""
