"""Name, usage and short options of `src.train`; without imports, which take seconds."""

PROGRAM = "python -m src.train"
USAGE = f"{PROGRAM} [fit|validate|test|predict] [--config FILE ...] [--option VALUE ...]"
# Trainer options with a short form on the command line.
SHORT_FLAGS = ("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "fast_dev_run")
SHORT = ", ".join(f"--{name}" for name in SHORT_FLAGS)
DESCRIPTION = "Without a stage: fit, then test the best checkpoint. See README.md for examples."
DESCRIPTION += f" Short for --trainer.NAME: {SHORT}."
TEXTS = {"prog": PROGRAM, "usage": USAGE, "description": DESCRIPTION}
