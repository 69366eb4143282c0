"""Writes docs/figures.md from results.json; or trains recipes again and compares them with the documented results.

python benchmarks/figures.py [--rerun NAME ...] [--data_dir FOLDER] [--results FILE]
"""

import argparse
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from table import RESULTS, ROOT, spread

Entry = dict[str, Any]
PAGE = ROOT / "docs" / "figures.md"
FOLDER = "path/to/folder"  # the data folder in documented commands
HEAD = """# Figures

`make figures` writes this page from [results.json](../benchmarks/results.json). For what was tried and left out see
[benchmarks/README.md](../benchmarks/README.md). `make figures ARGS="--rerun NAME --data_dir path/to/folder"` trains a
recipe again and prints its result next to the one on this page.

- Accuracy and loss are of the test part. Settings were chosen on validation parts: 5,000 digits of MNIST, the
  9 % of a text before its test part, six folds of the training and validation reviews. Each test figure is one
  evaluation. For several seeds: mean ± standard error, then the value of each seed.
- Time is training time. The speed of these machines changes by the hour, so "scaled" seconds are the time at a speed of
  6,700 images per second of `python benchmarks/reference.py` in bfloat16; it printed 3,200 to 6,500 around these runs.
- Searches use 5,000 sample digits, 4,000 for training and 500 for validation (one digit is 0.2 points), and thirty
  trials of eight epochs (nine before 2026-11-30). Other programs ran at the same time, which changes neither accuracy
  nor steps.
- Services have 64 clients; each answer is compared with the offline prediction.
"""
# The script for rows of results.json, by the beginning of their name; the first match counts.
SCRIPTS = {
    "reference": "reference.py",
    "start": "start.py",
    "training: GPT, context": "gpt2.py",
    "training": f"overhead.py --data_dir {FOLDER}",
    "batches of MNIST": f"data_path.py --data_dir {FOLDER}",
    "JPEGs": "data_path.py",
    "table of": "table_start.py",
    "generation": "generation.py",
    "growth": f"growth.py --data_dir {FOLDER}",
    "memory: a run": f"memory.py --data_dir {FOLDER}",
    "memory": "text_memory.py --megabytes 5 500",
    "serving": "serving.py",
    "search": "search.py",
    "sharing": "sharing.py",
    "drugs": "biology.py",
    "genomes": "biology.py",
    "proteins": "biology.py",
    "spoken words": "audio.py",
    "": f"ablation.py --data_dir {FOLDER}",
}
ALTERNATELY = """Both sides run alternately, A B A B ...: median (lowest to highest); a value alone was measured once.
JPEGs with 0 workers are decoded by two threads here, by one in torchvision. Rows of shakespeare_gpt are of its network
without convolutions. Plain loops do not keep freed memory."""
RECIPE_ROWS = ("test/", "train_seconds", "total_seconds", "reference speed")  # written by recipes.py


def page(results: dict[str, Any]) -> str:
    """The text of docs/figures.md."""
    letter, machines = named_machines(results)
    found = results["figures"]
    lines = [f"{HEAD}\nMachines:\n", *(f"- {name}: {text}" for name, text in machines.items())]
    for section in dict.fromkeys(entry["section"] for entry in found.values()):
        names = ["what", "figure", "precision", "machine", "date", "command"]
        if section == "Recipes":
            names = ["name", "what", "figure", "time", *names[2:]]
        lines += ["", f"## {section}", "", *head(*names)]
        for name, entry in found.items():
            if entry["section"] == section:
                command = entry["command"]
                command = f"`{command}`" if command.startswith(("python ", "make ")) else command
                cells = {**entry, "name": name, "figure": figure(entry), "command": command}
                cells["time"] = entry.get("after", "")
                lines.append(line(*(cells[column] for column in names)))
    lines += ["", "## Comparisons", ""]
    lines += [f"{ALTERNATELY} On machine {letter}.", ""]
    columns = ("unit", "ours", "baseline", "value of baseline", "ratio", "target", "runs", "date", "command")
    lines += head("what", *columns)
    for what, row in results["rows"].items():
        if not what.partition(": ")[2].startswith(RECIPE_ROWS):
            values = [spread(row["ours"]), row["beside"], spread(row["theirs"]), ratio(row["ratio"])]
            script = next(words for prefix, words in SCRIPTS.items() if what.startswith(prefix))
            more = [str(len(row["ours"])), row["date"], f"`python benchmarks/{script}`"]
            lines.append(line(what, row["unit"], *values, target(row), *more))
    return "\n".join(lines) + "\n"


def target(row: dict[str, Any]) -> str:
    """What was asked for, and whether a ratio misses it."""
    if wanted := re.fullmatch(r"ratio at (least|most) (\S+)", row["asked for"]):
        median, limit = round(statistics.median(row["ratio"]), 2), float(wanted[2])
        if median < limit if wanted[1] == "least" else median > limit:
            return f"{row['asked for']}: missed"
    return str(row["asked for"])


def head(*names: str) -> list[str]:
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def named_machines(results: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The letter of the machine that measured the rows, and all machines by letter."""
    found = results["machine"]
    versions = f"Python {found['python']}, torch {found['torch']}, Lightning {found['lightning']}"
    gpus = ", ".join(found["gpus"]) or "no GPU"
    here = f"{found['cpu']}, {found['cores']} cores, {found['capabilities']}, {gpus}, {versions}"
    known = results["machines"]
    letter = next((name for name, text in known.items() if text == here), chr(ord("A") + len(known)))
    return letter, {**known, letter: here}


def ratio(values: list[float]) -> str:
    """Median (lowest to highest)."""
    middle = f"{statistics.median(values):.2f}" if values else ""
    return f"{middle} ({interval(values, 2)})" if len(values) > 1 else middle


def interval(values: list[float], digits: int | None = None) -> str:
    """Lowest to highest."""
    digits = (0 if max(values) >= 20 else 1) if digits is None else digits
    return " to ".join(f"{value:.{digits}f}" for value in (min(values), max(values)))


def figure(entry: Entry) -> str:
    """The value of an entry as text; for several seeds mean ± standard error, then each value."""
    if "value" in entry:
        return str(entry["value"])
    texts = [number(value, entry) for value in entry["values"]]
    if len(texts) == 1:
        return f"{texts[0]} {entry['unit']}"
    mean, error = statistics.mean(entry["values"]), statistics.stdev(entry["values"]) / math.sqrt(len(texts))
    return f"{number(mean, entry)} ± {number(error, entry)} {entry['unit']}: {', '.join(texts)}"


def number(value: float, entry: Entry) -> str:
    value = 100 * value if entry["unit"] == "%" else value
    return f"{value:.{entry.get('digits', 3)}f}"


def rerun(entry: Entry, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Run the command of an entry again with a seed; returns the content of metrics.json."""
    words = shlex.split(entry["command"])[1:]
    takes = "configs/biology/" not in entry["command"]  # their data is in packages
    for option in ("--seed_everything", "--data.data_dir"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    words += [
        f"--seed_everything={seed}",
        *([f"--data.data_dir={Path(data_dir).resolve()}"] if data_dir and takes else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words, f"--trainer.default_root_dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        (path,) = Path(folder).glob("*/version_0/metrics.json")
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return metrics


def compare(entries: dict[str, Entry], data_dir: str | None) -> None:
    """Train again, one run per seed, and print documented and new values."""
    table = Table("name", "seed", "metric", "documented", "date", "machine", "now", "time", "data")
    for name, entry in entries.items():
        for seed, value in zip(entry["seeds"], entry["values"], strict=True):
            print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
            new = rerun(entry, seed, data_dir)
            cells = [name, str(seed), entry["metric"], number(value, entry), entry["date"], entry["machine"]]
            cells += [number(new[entry["metric"]], entry), f"{new['train_seconds']:.0f} s", str(new["data_source"])]
            table.add_row(*cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="file with the figures; default: results.json")
    parser.add_argument("--rerun", nargs="+", metavar="NAME", help="train these recipes again; write nothing")
    parser.add_argument("--data_dir", help="folder with the full data, for --rerun; default: download")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if not options.rerun:
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"written {PAGE}")
        return
    found = {name: entry for name, entry in results["figures"].items() if "metric" in entry}
    for name in options.rerun:
        if name not in found:
            parser.error(f"--rerun {name}: no such recipe; give {', '.join(found)}")
    compare({name: found[name] for name in options.rerun}, options.data_dir)


if __name__ == "__main__":
    main()
