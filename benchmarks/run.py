"""Runs all benchmarks, then prints one table of `results.json`; `make bench` calls it.

python benchmarks/run.py [--data_dir FOLDER] [--quick] [--only overhead gpt2]
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from table import DATA_DIR, RESULTS, Row, has_domain, parse, show


@dataclass(frozen=True)
class Benchmark:
    """A benchmark script in this folder.

    Args:
        domains: it needs at least one of these domains; empty: none.
        takes_data: whether it has the option --data_dir.
        words: other options to pass.
    """

    domains: tuple[str, ...]
    takes_data: bool = False
    words: tuple[str, ...] = ()


ALL = {
    "reference": Benchmark(()),
    "start": Benchmark(("vision",)),
    "overhead": Benchmark(("vision", "text"), takes_data=True),
    "gpt2": Benchmark(("text",)),
    "data_path": Benchmark(("vision",), takes_data=True),
    "table_start": Benchmark(("text",)),
    "generation": Benchmark(("text",)),
    "growth": Benchmark(("vision", "text"), takes_data=True),
    "memory": Benchmark(("vision",), takes_data=True),
    "text_memory": Benchmark(("text",), words=("--megabytes", "5", "500")),
    "ablation": Benchmark(("vision", "text"), takes_data=True),
    "serving": Benchmark(("vision",)),
    "search": Benchmark(("vision",)),
    "sharing": Benchmark(("vision",)),
    "biology": Benchmark(("biology",)),
    "audio": Benchmark(("audio",)),
    "recipes": Benchmark(("vision",), takes_data=True, words=("--recipes", "mnist_fast", "default")),
}
FOLDER = Path(__file__).parent
# Benchmarks that can run: neither script nor domain has been deleted.
BENCHMARKS = {
    name: benchmark
    for name, benchmark in ALL.items()
    if (FOLDER / f"{name}.py").is_file() and (not benchmark.domains or any(map(has_domain, benchmark.domains)))
}


def main() -> None:
    only = ("--only", {"nargs": "+", "choices": list(BENCHMARKS), "default": list(BENCHMARKS)})
    options = parse(__doc__, DATA_DIR, only)
    # A quick run checks the scripts: its figures are not those to publish.
    results = options.results or (FOLDER.parent / "build" / "quick.json" if options.quick else RESULTS)
    results.parent.mkdir(exist_ok=True)
    for name in options.only:
        benchmark = BENCHMARKS[name]
        words = [*benchmark.words, "--results", str(results), "--pairs", str(options.pairs)]
        words += ["--quick"] if options.quick else []
        words += ["--data_dir", options.data_dir] if benchmark.takes_data and options.data_dir else []
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        if subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *words], check=False).returncode:
            sys.exit(f"{name} failed, see above{f'; earlier results are in {results}' if results.exists() else ''}")
        print(f"{name} took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    known = json.loads(results.read_text(encoding="utf-8"))["rows"]
    show([Row(what, r["unit"], r["ours"], r["beside"], r["theirs"], r["asked for"]) for what, r in known.items()])
    print(f"Written to {results}")


if __name__ == "__main__":
    main()
