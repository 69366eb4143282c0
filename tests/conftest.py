"""Shared by all tests: no network, limited threads, and runs in this process or in a new one."""

import http.server
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from PIL import Image
from tensorboard.summary.writer import event_file_writer

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import STAGES
from src.engine.cli.program import run as run_program
from tests import forked, toy

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--accelerator=cpu")
PYCACHE = shutil.ignore_patterns("__pycache__")
NO_NETWORK = "http://127.0.0.1:9"  # the discard port: refused at once


def pytest_configure() -> None:
    """Divide the cores among the test processes, and block the network."""
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = NO_NETWORK
    os.environ["PYTHONPATH"] = str(ROOT)
    forked.install()
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    # TensorBoard sorts event files of the same second by this number as text, so 10 is before 9. Only tests continue a
    # run within a second.
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


@pytest.fixture(autouse=True)
def clean_distributed_environment() -> Iterator[None]:
    """Remove what Lightning leaves of a run with several devices: the next one would wait for other processes, or
    warn that it does not ask them.
    """
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


@dataclass
class Run:
    """A run of `src.train` in this process."""

    cli: StarterCLI
    output: str
    messages: list[str]

    @property
    def folder(self) -> Path:
        assert self.cli.record is not None
        return self.cli.record.folder

    @property
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return metrics

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        checkpoint = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        return checkpoint["state_dict"]


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """Messages of Lightning and this project through Lightning's loggers."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)  # an earlier run may have used --quiet
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """Arguments that `train` and `parse` add before those of a test; test folders override this."""
    return ()


@pytest.fixture
def train(
    tmp_path: Path, messages: list[str], capsys: pytest.CaptureFixture[str], recipe: tuple[str, ...]
) -> Callable[..., Run]:
    """Run `src.train` in this process, with run folders in `tmp_path`."""

    def run(*args: str) -> Run:
        del messages[:]
        cli = StarterCLI(with_recipe(args, recipe, tmp_path), time.perf_counter())
        cli.run()
        return Run(cli, capsys.readouterr().out, list(messages))

    return run


def with_recipe(args: Sequence[str], recipe: Sequence[str], folder: Path) -> list[str]:
    """The arguments of a test with its recipe after the stage, so that the test's options win."""
    words = list(args)
    stage = [words.pop(0)] if words[:1] and words[0] in STAGES else []
    return [*stage, *recipe, *words, *QUIET, f"--trainer.default_root_dir={folder / 'logs'}"]


def fit(folder: Path, *words: str) -> str:
    """Train, and return the path of the last checkpoint."""
    root = f"--trainer.default_root_dir={folder / 'logs'}"
    cli = StarterCLI(["fit", *words, *QUIET, root], time.perf_counter())
    cli.run()
    assert cli.record is not None
    return str(cli.record.folder / "checkpoints" / "last.ckpt")


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> str:
    """The result of `make(folder)`, called once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            done.write_text(make(folder))
    return done.read_text()


@pytest.fixture
def checked_types(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> str:
    """A folder for mypy's cache of a copy or a project, in which all modules of the repository are checked.

    One per test: what mypy finds in another copy would replace it.
    """

    def check(folder: Path) -> str:
        cache = str(folder / "cache")
        if (ROOT / ".mypy_cache").is_dir():  # of `make lint`
            return str(shutil.copytree(ROOT / ".mypy_cache", cache))
        in_copy(copy_of_the_repository(folder / "copy"), "-m", "mypy", "--cache-dir", cache)
        return cache

    return str(shutil.copytree(once(tmp_path_factory, "mypy", check), tmp_path / "mypy"))


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a checkpoint of the toy recipe, trained until it makes no mistakes."""
    return once(tmp_path_factory, "toy", lambda folder: fit(folder, f"--config={toy.RECIPE}"))


@pytest.fixture
def parse(tmp_path: Path, recipe: tuple[str, ...]) -> Callable[..., StarterCLI]:
    """Build everything for a command line without running it."""

    def build(*args: str) -> StarterCLI:
        return StarterCLI(with_recipe(args, recipe, tmp_path), time.perf_counter())

    return build


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder over HTTP; yields the URL of the folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def program(*args: str, cwd: Path = ROOT, module: str = "src.train", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this project in a new process."""
    command = [sys.executable, "-m", module, *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a command that failed with exit code 2; it must be the last line, without a traceback."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.stderr.rstrip().endswith(line)
    return line.removeprefix("error: ")


@pytest.fixture
def error_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: tuple[str, ...]
) -> Callable[..., str]:
    """Run `src.train` in this process with invalid arguments; returns its error line."""

    def run(*words: str) -> str:
        root = () if "--trainer.default_root_dir" in words else (f"--trainer.default_root_dir={tmp_path / 'logs'}",)
        monkeypatch.setattr(sys, "argv", ["train", *recipe, *words, *root])
        with pytest.raises(SystemExit) as stop:
            run_program(time.perf_counter())
        return one_line(subprocess.CompletedProcess(sys.argv, stop.value.code, "", capsys.readouterr().err))  # type: ignore[arg-type]

    return run


@pytest.fixture
def full_data() -> str:
    """Folder of the full data sets, from FULL_DATA_DIR."""
    folder = os.environ.get("FULL_DATA_DIR")
    if not folder:
        pytest.skip("FULL_DATA_DIR is not set to a folder with the full MNIST")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def trainer(folder: Path, **options: object) -> Trainer:
    """A Trainer that prints and saves nothing."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **options})


def picture(path: Path, colour: object, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def pictures(folder: Path, count: int = 10) -> str:
    """Red and green pictures of many sizes, modes and formats."""
    for number in range(count):
        size = (20 + 7 * number, 50 - 2 * number)
        suffix = (".png", ".jpg", ".bmp")[number % 3]
        picture(folder / "red" / f"{number}{suffix}", (255, 0, 0), size=size)
        mode, colour = (("L", 90), ("RGBA", (0, 255, 0, 255)), ("P", 0), ("1", 1))[number % 4]
        picture(folder / "green" / f"{number}.png", colour, mode, size)
    (folder / "red" / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    return str(folder)


def copy_of_the_repository(folder: Path, compiled: bool = False) -> Path:
    """Copy the repository without history, environment, data and runs; `compiled`: with what Python has compiled."""
    top = shutil.ignore_patterns(".git", ".venv", "data", "logs", ".*_cache", "*.egg-info", ".coverage*", "__pycache__")
    inner = shutil.ignore_patterns("*.pyc.*") if compiled else PYCACHE  # what another process is writing
    shutil.copytree(ROOT, folder, ignore=lambda at, names: top(at, names) if at == str(ROOT) else inner(at, names))
    return folder


def in_copy(folder: Path, *words: str) -> str:
    """Run Python in a copy of the repository, or in a project made from it; returns its output."""
    done = python_in(folder, *words)
    reasons = "\n".join(line for line in done.stdout.splitlines() if re.match(r"E  |FAILED|ERROR", line))
    assert done.returncode == 0, f"{reasons[-6000:]}\n{done.stdout[-5000:]}"
    return done.stdout


def python_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in another repository than this one, forked from a process that has imported the libraries."""
    xdist = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID")  # not the number of workers, by which cores are divided
    environment = {name: value for name, value in os.environ.items() if name not in xdist}
    environment |= {"PYTHONPATH": str(folder), "FORK": "1"}
    output = folder.with_name(f"{folder.name}.txt")  # not a pipe: what it has started may go on
    with output.open("w") as file:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file, timeout=900, check=False)
    return subprocess.CompletedProcess(words, done.returncode, output.read_text(errors="replace"), "")


def wait_for(condition: str, path: Path, seconds: float) -> str:
    """Wait until a file's text matches a regular expression; returns the text."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = path.read_text(errors="replace") if path.exists() else ""
        if re.search(condition, text):
            return text
        time.sleep(0.5)
    raise AssertionError(f"no {condition} in {text[-3000:]}")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def own_text(folder: Path) -> str:
    return write(folder / "own.txt", "To be, or not to be: that is the question. " * 40)
