"""Write docs/figures.md from results.json; or train recipes again, and print what they reach beside what is documented.

python benchmarks/figures.py [--rerun NAME ...] [--data_dir FOLDER] [--results FILE]
"""

import argparse
import json
import math
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
FOLDER = "path/to/folder"  # in a documented command: where the data lies
HEAD = """# Figures

`make figures` writes this page from [results.json](../benchmarks/results.json). What was tried and left out is told in
[benchmarks/README.md](../benchmarks/README.md). `make figures ARGS="--rerun NAME --data_dir path/to/folder"` trains a
recipe again and prints what it reaches beside what is written here.

- Accuracy and loss are those of the test part. Settings were chosen on validation parts: 5,000 digits of MNIST, the
  tenth before the last of a text, six folds of the reviews for training and validation. Each test figure is one look at
  a recipe. Of several seeds: mean ± standard error, then each seed in turn.
- "After" is the time of training. Such machines change speed by the hour, so "scaled" seconds are what they would be in
  an hour in which `python benchmarks/reference.py` prints 6,700 images a second; it printed 3,700 to 6,500 around these
  runs.
- Searches have 5,000 sample digits, 4,000 to train and 500 to validate (one of these is 0.2 points), and thirty trials
  of up to nine epochs each, as `configs/tune/mnist.yaml` says; they ran beside other work.
- Services have 64 clients; each answer is compared with the offline prediction.
"""
# The script of the rows of results.json that begin so; the first that fits.
SCRIPTS = {
    "reference": "reference.py",
    "start": "start.py",
    "training: GPT, context": "gpt2.py",
    "training": f"overhead.py --data_dir {FOLDER}",
    "batches of MNIST": f"data_path.py --data_dir {FOLDER}",
    "generation": "generation.py",
    "growth": f"growth.py --data_dir {FOLDER}",
    "memory: a run": f"memory.py --data_dir {FOLDER}",
    "memory": "text_memory.py --megabytes 5 500",
    "serving": "serving.py",
    "search": "search.py",
    "": f"ablation.py --data_dir {FOLDER}",
}
OF_RECIPES = ("test/", "train_seconds", "total_seconds", "reference around it")  # rows of recipes.py


def page(results: dict[str, Any]) -> str:
    """The text of docs/figures.md."""
    letter, machines = named_machines(results)
    found = documented(results)
    lines = [f"{HEAD}\nMachines:\n", *(f"- {name}: {text}" for name, text in machines.items())]
    for section in dict.fromkeys(entry["section"] for entry in found.values()):
        names = ["what", "figure", "precision", "machine", "date", "command"]
        if section == "Recipes":
            names = ["name", "what", "figure", "after", *names[2:]]
        lines += ["", f"## {section}", "", *head(*names)]
        for name, entry in found.items():
            if entry["section"] == section:
                command = entry["command"]
                command = f"`{command}`" if command.startswith(("python ", "make ")) else command
                cells = {"after": "", **entry, "name": name, "figure": figure(entry), "command": command}
                lines.append(line(*(cells[column] for column in names)))
    lines += ["", "## Beside something else", ""]
    lines += [f"Each of two things runs in turn, A B A B ...: medians, lowest to highest. On machine {letter}.", ""]
    lines += head("what", "unit", "ours", "beside", "theirs", "ratio", "asked for", "runs", "date", "command")
    for what, row in results["rows"].items():
        if not what.partition(": ")[2].startswith(OF_RECIPES):
            values = [spread(row["ours"]), row["beside"], spread(row["theirs"]), ratio(row["ratio"])]
            script = next(words for begin, words in SCRIPTS.items() if what.startswith(begin))
            more = [str(len(row["ours"])), row["date"], f"`python benchmarks/{script}`"]
            lines.append(line(what, row["unit"], *values, row["asked for"], *more))
    return "\n".join(lines) + "\n"


def head(*names: str) -> list[str]:
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def named_machines(results: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The letter of the machine of the rows, and all machines by their letters."""
    found = results["machine"]
    versions = f"Python {found['python']}, torch {found['torch']}, Lightning {found['lightning']}"
    gpus = ", ".join(found["gpus"]) or "no GPU"
    here = f"{found['cpu']}, {found['cores']} cores, {found['capabilities']}, {gpus}, {versions}"
    known = results["machines"]
    letter = next((name for name, text in known.items() if text == here), chr(ord("A") + len(known)))
    return letter, {**known, letter: here}


def documented(results: dict[str, Any]) -> dict[str, Entry]:
    """The entries; one that names a row of recipes.py has the values of this row, and is left out without it."""
    rows, found = results["rows"], {}
    for name, entry in results["figures"].items():
        if "row" not in entry:
            found[name] = entry
        elif row := rows.get(entry["row"]):
            recipe = entry["row"].partition(":")[0]
            train, total = (
                f"{interval(rows[what]['ours'])} s ({interval(rows[f'{what}, scaled']['ours'])} scaled)"
                for what in (f"{recipe}: train_seconds", f"{recipe}: total_seconds")
            )
            own = {"values": row["ours"], "date": row["date"], "machine": named_machines(results)[0]}
            found[name] = {**entry, **own, "after": f"{train}; {total} as a whole process"}
    return found


def ratio(values: list[float]) -> str:
    """Median, and lowest to highest."""
    middle = f"{statistics.median(values):.2f}" if values else ""
    return f"{middle} ({interval(values, 2)})" if len(values) > 1 else middle


def interval(values: list[float], digits: int | None = None) -> str:
    """Lowest to highest."""
    digits = (0 if max(values) >= 20 else 1) if digits is None else digits
    return " to ".join(f"{value:.{digits}f}" for value in (min(values), max(values)))


def figure(entry: Entry) -> str:
    """The value of an entry in words; of several seeds their mean, its standard error, and each."""
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
    """What metrics.json holds when the command of an entry has been run again with a seed."""
    words = shlex.split(entry["command"])[1:]
    for option in ("--seed_everything", "--data.data_dir"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    words += [f"--seed_everything={seed}", *([f"--data.data_dir={Path(data_dir).resolve()}"] if data_dir else [])]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words, f"--trainer.default_root_dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        (path,) = Path(folder).glob("*/version_0/metrics.json")
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return metrics


def compare(entries: dict[str, Entry], data_dir: str | None) -> None:
    """Train again, a run for each seed, and print each documented value beside the new one."""
    table = Table("name", "seed", "metric", "documented", "date", "machine", "now", "after", "data")
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
    parser.add_argument("--results", type=Path, default=RESULTS, help="file with the figures (results.json)")
    parser.add_argument("--rerun", nargs="+", metavar="NAME", help="train these again, and write nothing")
    parser.add_argument("--data_dir", help="folder with the full data, for --rerun; without it, it is downloaded")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    if not options.rerun:
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"written {PAGE}")
        return
    found = {name: entry for name, entry in documented(results).items() if "metric" in entry}
    for name in options.rerun:
        if name not in found:
            parser.error(f"--rerun {name}: give some of {', '.join(found)}")
    compare({name: found[name] for name in options.rerun}, options.data_dir)


if __name__ == "__main__":
    main()
