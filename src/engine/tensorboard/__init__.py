"""Pictures for TensorBoard."""
