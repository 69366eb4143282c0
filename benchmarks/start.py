"""Time of `--help` and `--print_config`, and of importing LightningCLI.

python benchmarks/start.py [--pairs 9] [--quick]
"""

import subprocess
import sys
import time
from functools import partial

from table import Row, alternate, parse, show

IMPORT = ["-c", "from lightning.pytorch.cli import LightningCLI"]


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    options = parse(__doc__)
    rows = []
    for flag in ("--help", "--print_config"):
        ours, theirs = alternate(partial(seconds, ["-m", "src.train", flag]), partial(seconds, IMPORT), options.pairs)
        rows.append(Row(f"start: {flag}", "s", ours, "import of LightningCLI", theirs, "ratio at most 1.3"))
    show(rows, options.results)


if __name__ == "__main__":
    main()
