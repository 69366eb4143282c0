"""lightning-starter; README.md describes the folders."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project folder, which holds `configs/`, `data/` and `logs/`; independent of the working directory."""

# Threads that wait for others sleep instead of spinning, which would slow down a run on a machine that others use too.
# Set before torch is imported; the user's own setting stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
