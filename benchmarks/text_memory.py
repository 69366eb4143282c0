"""Private memory of training on a long text and on a short one.

For each text a separate process tokenizes it, trains a few steps and reports its peak RssAnon: memory that the kernel
cannot free, unlike the pages of the memory-mapped tokens. The long text needs twice its size on disk.

    python benchmarks/text_memory.py [--megabytes 5 5000] [--folder FOLDER]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from table import Row, parse, show

RUN = """
import sys, threading, time
from src.engine.cli.cli import StarterCLI
from pathlib import Path

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

peak = [0.0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()

path, folder, steps = sys.argv[1:]
words = ["fit", "--config=configs/text/shakespeare_gpt_fast.yaml", f"--data.path={path}"]
words += [f"--data.cache_dir={folder}/cache"]
words += [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=4", f"--trainer.default_root_dir={folder}/logs"]
words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--accelerator=cpu"]
start = time.perf_counter()
StarterCLI([*words, f"--trainer.val_check_interval={steps}"], start).run()
print("MEASURED", peak[0], time.perf_counter() - start)
"""


def main() -> None:
    options = parse(
        __doc__,
        ("--megabytes", {"type": int, "nargs": 2, "default": [5, 5000], "help": "sizes of the two texts"}),
        ("--steps", {"type": int, "default": 100}),
        ("--folder", {"help": "folder for the texts; default: the system's temporary folder"}),
    )
    if options.quick:
        options.megabytes, options.steps = [1, 5], 5

    peaks: list[float] = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "text.txt"
            random = np.random.default_rng(0)
            with path.open("wb") as file:
                for _ in range(megabytes):
                    letters = random.integers(97, 123, 10**6, dtype=np.uint8)
                    letters[::6] = 32
                    letters[::80] = 10
                    file.write(letters.tobytes())
            command = [sys.executable, "-c", RUN, str(path), folder, str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            memory, seconds = map(float, done.stdout.split("MEASURED")[1].split())
        peaks.append(memory)
        print(f"{megabytes:,} MB of text: {memory:,.0f} MB peak private memory, {seconds:,.0f} s")
    small, large = (f"{megabytes:,} MB of text" for megabytes in options.megabytes)
    row = Row(f"memory: training on {large}", "MB", peaks[1:], small, peaks[:1], "at most 300 MB more")
    show([row], options.results)


if __name__ == "__main__":
    main()
