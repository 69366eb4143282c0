"""Peak resident memory of a run on MNIST, and of importing only torch and lightning.

python benchmarks/memory.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import subprocess
import sys
import tempfile
from functools import partial

from table import DATA_DIR, Row, alternate, parse, show

# From /proc, because the peak of getrusage includes that of the parent process.
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
        ours, theirs = alternate(run, bare, min(3, options.pairs))
    difference = [a - b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        Row("memory: a run on MNIST, peak", "MB", ours, "import of torch and lightning", theirs),
        Row("memory: a run on MNIST, without the import", "MB", difference, target="at most 500"),
    ]
    show(rows, options.results)


if __name__ == "__main__":
    main()
