"""Networks (`nn.Module`) and tasks (`LightningModule`), one a file."""
