"""One LightningDataModule a file, with the Dataset it feeds."""
