"""Base classes (LightningModules) for your own tasks."""
