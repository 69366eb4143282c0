"""All benchmarks in turn, then one table of what `results.json` holds; `make bench` calls it.

python benchmarks/run.py [--data_dir FOLDER] [--quick] [--only overhead gpt2]
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from table import DATA_DIR, RESULTS, Row, parse, show

# Each with whether it takes --data_dir, and its own options.
BENCHMARKS: dict[str, tuple[bool, list[str]]] = {
    "reference": (False, []),
    "start": (False, []),
    "overhead": (True, []),
    "gpt2": (False, []),
    "data_path": (True, []),
    "generation": (False, []),
    "growth": (True, []),
    "memory": (True, []),
    "text_memory": (False, ["--megabytes", "5", "500"]),
    "ablation": (True, []),
    "serving": (False, []),
    "search": (False, []),
    "recipes": (True, ["--recipes", "mnist_fast", "default"]),
}


def main() -> None:
    only = ("--only", {"nargs": "+", "choices": list(BENCHMARKS), "default": list(BENCHMARKS)})
    options = parse(__doc__, DATA_DIR, only)
    results = options.results or RESULTS
    for name in options.only:
        takes_data, words = BENCHMARKS[name]
        words = [*words, "--results", str(results), "--pairs", str(options.pairs)]
        words += ["--quick"] if options.quick else []
        words += ["--data_dir", options.data_dir] if takes_data and options.data_dir else []
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(script), *words], check=False).returncode:
            sys.exit(f"{name} failed, see above; what was measured before is in {results}")
        print(f"{name} took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    known = json.loads(results.read_text(encoding="utf-8"))["rows"]
    show([Row(what, r["unit"], r["ours"], r["beside"], r["theirs"], r["asked for"]) for what, r in known.items()])
    print(f"Written to {results}")


if __name__ == "__main__":
    main()
