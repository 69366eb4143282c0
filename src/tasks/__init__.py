"""The LightningModules that tasks of your own subclass."""
