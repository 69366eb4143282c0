"""Record a terminal session as SVG, as in the README: a new project is made, trained and tested.

python scripts/recording.py FILE
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 104
# Each command with the folder in which it runs, and a pattern of the lines to show of its output.
COMMANDS = (
    ("python -m src.new ../tumours --kind regression", "template", "."),
    ("cd ../tumours", "tumours", "."),
    ("make train", "tumours", r"^(epoch (1|10|20),|test/|run folder|best checkpoint)"),
    ("make test", "tumours", r"passed|failed"),
)


def environment(folder: Path) -> None:
    """Give a project the environment of this process, as if its Makefile had installed it."""
    (folder / ".venv").mkdir()
    for name in ("bin", "lib"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder / ".venv")
    for name in (".installed", ".installed-dev"):
        (folder / ".venv" / name).touch()


def record(folder: Path) -> str:
    """Run the commands; returns what a terminal would show."""
    (folder / "template").symlink_to(ROOT)
    shown = []
    for command, place, wanted in COMMANDS:
        shown.append(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m")
        if command.startswith("cd "):
            continue
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        words = [word.replace("../tumours", str(folder / "tumours")) for word in words]
        done = subprocess.run(
            words, cwd=folder / place, capture_output=True, text=True, check=False, env={**os.environ}
        )
        if done.returncode:
            sys.exit(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        lines = re.sub(r" in \d+\.\d+s.*", "", done.stdout.replace(f"{folder}/", "../")).splitlines()
        shown += [line.rstrip() for line in lines if re.search(wanted, line.strip())]
        if place == "template":
            environment(folder / "tumours")
    return "\n".join(shown)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        text = Text.from_ansi(record(Path(name)))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        console.print(text)
    drawn = console.export_svg(title="lightning-starter", theme=MONOKAI)
    # Without the fonts of another host: a reader's own monospaced font is as good.
    Path(sys.argv[1]).write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
