"""lightning-starter; README.md describes the folders."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project folder, which holds `configs/`, `data/` and `logs/`; independent of the working directory."""
