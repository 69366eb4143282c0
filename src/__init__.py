"""lightning-starter: the rooms of the project, see README.md."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project folder; `configs/`, `data/` and `logs/` are found from here, whatever the working directory."""
