"""Hyperparameter search; each trial is an ordinary run: `python -m src.tune --help`."""

import argparse
import difflib
import os
import signal
import subprocess
import sys
import threading
import time

from src.engine.cli.command import check_minimum, command_parser, parse_words, require
from src.engine.system.cores import JOBS, usable_cores
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted, Interruption

WORKER = "LIGHTNING_STARTER_TUNE_WORKER"  # set in worker processes


def tune(args: list[str]) -> int:
    """Run trials until there are enough, print the results and return the exit code.

    Raises:
        InputError: an option or a setting of the search is invalid.
    """
    options = _parse(args)
    is_worker = WORKER in os.environ
    if options.jobs > 1 and not is_worker:
        return _start_workers(options, args)
    from src.engine.search.search import open_search  # lazy import: keeps --help fast
    from src.engine.search.search_report import finish
    from src.engine.search.trials import run_trials

    if is_worker:
        threading.Thread(target=_stop_without_parent, args=(os.getppid(),), daemon=True).start()
    search = open_search(options, probes=not is_worker)
    signum = run_trials(search)
    if not is_worker:
        return finish(search, signum)
    return 128 + signum if signum else int(search.is_broken)


def _start_workers(options: argparse.Namespace, args: list[str]) -> int:
    """Run one study in several processes that share the CPU cores; each runs many trials."""
    from optuna.trial import TrialState

    from src.engine.search.search import open_search, trials_of
    from src.engine.search.search_report import finish
    from src.engine.search.trials import needs_more, print_progress

    search = open_search(options)
    threads = str(max(1, usable_cores() // options.jobs))
    environment = {**os.environ, WORKER: "1", JOBS: str(options.jobs), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "src.tune", *args]
    given = [*search.spec["options"].items(), *options.more]
    names_devices = not search.spec["first"] or any("devices" in name and str(value) != "1" for name, value in given)
    workers = []
    for number in range(options.jobs):
        own = {} if names_devices else gpu_of(number)
        workers.append(subprocess.Popen(command, env=environment | own, stdout=subprocess.DEVNULL))
    signum = 0
    try:
        Interruption().install()
        print_progress(search, workers)
    except Interrupted as stop:
        signum = stop.signum
        for worker in workers:  # Ctrl-C reaches them too, SIGTERM does not
            worker.terminate()
    codes = [worker.wait() for worker in workers]
    if signum == 0 and min(codes, default=0) < 0:
        print("a process was killed, perhaps for lack of memory: give fewer --jobs", file=sys.stderr)
    if lost := [code for code in codes if code == 1 or (code < 0 and not signum)]:
        # The machine stopped a process; others may have finished the study.
        search.is_broken = needs_more(search) or bool(trials_of(search, (TrialState.RUNNING,)))
        codes = [code for code in codes if code not in lost]
    return finish(search, signum) or (max(codes, default=0) if min(codes, default=0) >= 0 else 1)


def _stop_without_parent(parent: int) -> None:
    """Stop this worker, as by a signal, if the process that reports the results is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def gpu_of(number: int) -> dict[str, str]:
    """The variable that shows one of several processes its GPU, in turn; none on a machine without GPU."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(one) for one in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)]} if visible else {}


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.tune", "Search settings and networks. Each trial is an ordinary run folder.")
    parser.add_argument("--config", help="what to search: a file of configs/tune")
    parser.add_argument("--recipe", help="what to train (default: the recipe in the config file)")
    parser.add_argument("--name", help="name of the study and its folder in logs/ (default: names of the files given)")
    parser.add_argument("--n_trials", type=int, help="number of trials in total (default: that of the config file)")
    parser.add_argument("--timeout", type=float, help="seconds after which no new trial starts")
    parser.add_argument("--jobs", type=int, default=1, help="number of worker processes (%(default)s)")
    parser.add_argument("--storage", help="Optuna storage URL, to share a study (default: a file in its folder)")
    parser.add_argument("--sampler", help="class name in optuna.samplers (default: that of the config file)")
    parser.add_argument("--pruner", help="class name in optuna.pruners (default: that of the config file)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler (%(default)s)")
    options = parse_words(parser, args, also="")
    require("src.tune", "tune", "optuna")
    if not options.config:
        raise InputError("--config is missing: give what to search, a file of configs/tune")
    for flag, _ in options.more:  # else the error would list options of src.train only
        if near := difflib.get_close_matches(flag, [f"--{name}" for name in vars(options)], n=1, cutoff=0.85):
            raise InputError(f"{flag}: no such option, did you mean {near[0]}?")
    check_minimum(options, n_trials=1, jobs=1)
    if options.timeout is not None and not options.timeout > 0:
        raise InputError(f"--timeout {options.timeout:g}: give seconds above 0")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed} is out of range: give 0 to {2**32 - 1}")
    return options
