"""The example search and the same without pruning; and a search in two processes and in one with all cores.

python benchmarks/search.py [--only studies jobs] [--studies 3] [--pairs 9] [--quick]
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from optuna import load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from table import Row, alternate, parse, show

WORDS = ["--config=configs/tune/mnist.yaml", "--data.source=sample"]


def study(words: list[str]) -> list[FrozenTrial]:
    """Run a search with these options; returns its trials."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "src.tune", *WORDS, f"--trainer.default_root_dir={folder}/logs", *words]
        subprocess.run(command, check=True, capture_output=True)
        file = next(Path(folder).rglob("study.log"))
        return load_study(study_name=file.parent.name, storage=JournalStorage(JournalFileBackend(str(file)))).trials


def best_and_steps(words: list[str]) -> tuple[float, float]:
    """Best validation accuracy in %, and training steps of all trials."""
    trials = study(words)
    best = max(trial.value for trial in trials if trial.value is not None)
    return 100 * best, sum(trial.user_attrs.get("steps", 0) for trial in trials)


def trials_per_hour(jobs: int, trials: int, short: list[str]) -> float:
    """Trials per hour of random search without pruning, timed over the whole command."""
    words = ["--sampler=RandomSampler", "--pruner=NopPruner", f"--jobs={jobs}", *short, f"--n_trials={trials}"]
    start = time.perf_counter()
    study(words)
    return 3600 * trials / (time.perf_counter() - start)


def main() -> None:
    known = ["studies", "jobs"]
    options = parse(
        __doc__,
        ("--only", {"nargs": "+", "choices": known, "default": known}),
        ("--studies", {"type": int, "default": 3, "help": "number of searches of each kind"}),
    )
    short = ["--n_trials=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"] if options.quick else []
    short += ["--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1"] if options.quick else []
    rows = []
    if "studies" in options.only:
        kinds = {"as given": [], "random": ["--sampler=RandomSampler", "--pruner=NopPruner"]}
        best: dict[str, list[float]] = {kind: [] for kind in kinds}
        steps: dict[str, list[float]] = {kind: [] for kind in kinds}
        for seed in range(1 if options.quick else options.studies):
            for kind, words in kinds.items():
                accuracy, trained = best_and_steps([*words, f"--seed={seed}", *short])
                best[kind].append(accuracy)
                steps[kind].append(trained)
                print(f"study {seed}, {kind}: best {accuracy:.2f} %, {trained:.0f} steps", flush=True)
        other = "random search without pruning"
        rows.append(Row("search: best accuracy", "%", best["as given"], other, best["random"], "not less"))
        rows.append(Row("search: training steps", "", steps["as given"], other, steps["random"], "at most 0.6"))
    if "jobs" in options.only:
        one, two = (partial(trials_per_hour, jobs, jobs if options.quick else 8, short) for jobs in (1, 2))
        ours, theirs = alternate(two, one, options.pairs)
        rows.append(Row("search: trials per hour, two jobs", "", ours, "one job", theirs, "ratio at least 1.15"))
    show(rows, options.results)


if __name__ == "__main__":
    main()
