"""Time of `--help`, `--print_config` and a wrong option, and of importing LightningCLI.

The time is that of the processor, which other programs hardly change.

python benchmarks/start.py [--pairs 9] [--quick]
"""

import resource
import subprocess
import sys
from functools import partial

from table import Row, alternate, parse, show

IMPORT = ["-c", "from lightning.pytorch.cli import LightningCLI"]


def seconds(words: list[str]) -> float:
    """Processor time of a Python program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check="--no_such_option" not in words, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = parse(__doc__)
    rows = []
    flags = ("--help", "--print_config", "--no_such_option")
    for flag in flags[:1] if options.quick else flags:
        ours, theirs = alternate(partial(seconds, ["-m", "src.train", flag]), partial(seconds, IMPORT), options.pairs)
        rows.append(Row(f"start: {flag}", "s", ours, "import of LightningCLI", theirs, "ratio at most 1.05"))
    show(rows, options.results)


if __name__ == "__main__":
    main()
