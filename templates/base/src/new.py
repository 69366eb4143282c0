"""Take a newer engine from a clone of the template: `python -m src.new --update path/to/lightning-starter`."""

import subprocess
import sys
from pathlib import Path

from src import ROOT

PACKAGE = "src"  # of the template


def main() -> None:
    """Let the clone merge its newer files into this project; files that you have changed are kept."""
    clone = Path(sys.argv[2]).expanduser() if sys.argv[1:2] == ["--update"] and len(sys.argv) > 2 else None
    if clone is None or not (clone / PACKAGE / "new.py").is_file() or not (clone / "templates").is_dir():
        given = "" if clone is None else f", not {clone}"
        print(f"error: give a clone of the template{given}: --update path/to/lightning-starter", file=sys.stderr)
        sys.exit(2)
    words = ["--update", str(ROOT), *sys.argv[3:]]  # and what else to add
    sys.exit(subprocess.call([sys.executable, "-m", f"{PACKAGE}.new", *words], cwd=clone))


if __name__ == "__main__":
    main()
