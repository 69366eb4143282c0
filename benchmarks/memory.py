"""Peak resident memory of a run on MNIST, and of the bare import of torch and lightning.

python benchmarks/memory.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import subprocess
import sys
import tempfile
from functools import partial

from table import DATA_DIR, Row, in_turn, parse, show

# The kernel's own peak of this process: getrusage begins with what the parent had.
PEAK = "\nprint(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)"
IMPORT = "import torch, lightning" + PEAK
RUN = "import sys\nsys.argv = ['src.train', *sys.argv[1:]]\nfrom src.train import main\nmain()" + PEAK


def megabytes(code: str, words: list[str]) -> float:
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    with tempfile.TemporaryDirectory() as folder:
        words = ["--max_epochs=1", f"--trainer.default_root_dir={folder}"]
        words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        words += ["--trainer.limit_train_batches=20"] if options.quick else []
        run, bare = partial(megabytes, RUN, words), partial(megabytes, IMPORT, [])
        ours, theirs = in_turn(run, bare, min(3, options.pairs))
    more = [a - b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        Row("memory: a run on MNIST, at its peak", "MB", ours, "import of torch and lightning", theirs),
        Row("memory: a run on MNIST, above the import", "MB", more, target="at most 500"),
    ]
    show(rows, options.results)


if __name__ == "__main__":
    main()
