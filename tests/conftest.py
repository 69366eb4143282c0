"""What the tests share: no network, cores divided, and the program run in this process or in its own."""

import csv
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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from tensorboard.summary.writer import event_file_writer

from src import ROOT
from src.cli import StarterCLI

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--accelerator=cpu")
PYCACHE = shutil.ignore_patterns("__pycache__")
NO_NETWORK = "http://127.0.0.1:9"  # the discard port: refused at once


def pytest_configure() -> None:
    """Divide the cores among the test processes, and keep all of them off the network."""
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = NO_NETWORK
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    # TensorBoard reads the files of one second in the order of this number as text, where 10 is before 9. Tests go on
    # with a run within a second, which no command does.
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


def demo_files() -> set[str]:
    """What docs/delete.md says may be deleted."""
    page = ROOT / "docs" / "delete.md"
    return set(re.findall(r"`((?:src|configs|tests)/[^`]+)`", page.read_text())) if page.exists() else set()


DELETED = {path for path in demo_files() if not (ROOT / path).exists()}


def _class_of(path: str) -> str:
    """What the names of a file's classes begin with, in small letters; a short one would be in any word."""
    stem = Path(path).stem.replace("_", "")
    return stem if len(stem) > 4 else path


def skip_if_deleted(words: Sequence[str]) -> None:
    """Skip a test whose command line needs a part of the template that has been deleted."""
    needed = [path for path in DELETED for word in words if path in word or _class_of(path) in word.lower()]
    if "--data.source=sample" in words and "src/data/mnist.py" in DELETED:
        needed.append("src/data/mnist.py")
    if needed:
        pytest.skip(f"{needed[0]} has been deleted")


def _deleted_module(error: str) -> str | None:
    """The deleted file that an import did not find."""
    missing = re.search(r"No module named '(src\.[\w.]+)'", error)
    path = f"{missing[1].replace('.', '/')}.py" if missing else None
    if path is None and (name := re.search(r"cannot import name '(\w+)' from 'src'", error)):
        path = f"src/{name[1]}.py"
    return path if path in DELETED else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Leave out a module of tests that needs a deleted part."""
    report = yield
    if report.failed and (path := _deleted_module(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {path} has been deleted")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Leave out a test that needs a deleted part."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if path := _deleted_module(str(error)):
            pytest.skip(f"{path} has been deleted")
        raise


@pytest.fixture(autouse=True)
def no_place_among_processes() -> Iterator[None]:
    """Take away what Lightning leaves in the environment where a test has built a run for several devices.

    With it, the next run would take itself for one of several, and wait for the others.
    """
    yield
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


@dataclass
class Run:
    """A run of the program in this process."""

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
    """What Lightning and this project say through Lightning's logger."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)  # a run before may have been a quiet one
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def train(tmp_path: Path, messages: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the program in this process on the sample, with runs in a folder of the test's own."""

    def run(*args: str, sample: bool = True) -> Run:
        words = [*args, *QUIET, f"--trainer.default_root_dir={tmp_path / 'logs'}"]
        if sample:
            words.append("--data.source=sample")
        skip_if_deleted(words)
        del messages[:]
        cli = StarterCLI(words, time.perf_counter())
        cli.run()
        return Run(cli, capsys.readouterr().out, list(messages))

    return run


def fit(folder: Path, *words: str) -> str:
    """Train for a few steps; gives the path of the last checkpoint."""
    skip_if_deleted(words)
    root = f"--trainer.default_root_dir={folder / 'logs'}"
    cli = StarterCLI(["fit", *words, *QUIET, root], time.perf_counter())
    cli.run()
    assert cli.record is not None
    return str(cli.record.folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that knows digits fairly well, after seconds."""
    small = ("--model.net=CNN", "--model.net.width=8", "--model.net.hidden=32", "--data.source=sample")
    return fit(tmp_path_factory.mktemp("digits"), *small, "--max_epochs=6")


@pytest.fixture(scope="session")
def sentiments(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that tells good from bad, in words of a small table."""
    folder = tmp_path_factory.mktemp("sentiments")
    table = folder / "own.csv"
    rows = [
        f"{'a fine and good' if i % 2 else 'an awful and bad'} film number {i},{'good' if i % 2 else 'bad'}"
        for i in range(300)
    ]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    small = ("--model.net.d_model=16", "--model.net.num_heads=2", "--data.batch_size=32", "--max_epochs=5")
    return fit(folder, "--config=configs/sentiment_transformer.yaml", *small, f"--data.path={table}")


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small language model of bytes."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "own.txt").write_text("To be, or not to be: that is the question. " * 40)
    words = (f"--data.path={folder / 'own.txt'}", f"--data.cache_dir={folder / 'cache'}", "--data.block_size=32")
    small = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1", "--trainer.max_steps=20")
    return fit(folder, "--config=configs/shakespeare_gpt.yaml", *small, "--trainer.val_check_interval=20", *words)


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., StarterCLI]:
    """Build everything a command line asks for, and run nothing."""

    def build(*args: str) -> StarterCLI:
        skip_if_deleted(args)
        return StarterCLI([*args, *QUIET, f"--trainer.default_root_dir={tmp_path / 'logs'}"], time.perf_counter())

    return build


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on this machine; gives the address to put before their names."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


WORDS = "the cat sat on the mat and a dog ran over the hill to see the cat"


def tiny_pretrained(kind: str, folder: Path) -> str:
    """A random BERT, RoBERTa or GPT-2 with its tokenizer, saved as the hub's models are; gives its folder."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import WordLevelTrainer

    from src.data.tokenizer import train_bpe

    path = str(folder / kind)
    if kind == "gpt2":
        inner = train_bpe([WORDS] * 20, 300).inner
        options = {"eos_token": "!"}
    else:
        inner = Tokenizer(WordLevel(unk_token="[UNK]"))
        inner.pre_tokenizer = Whitespace()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        inner.train_from_iterator([WORDS], WordLevelTrainer(special_tokens=special, show_progress=False))
        inner.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **options).save_pretrained(path)
    torch.manual_seed(0)
    size = {"vocab_size": inner.get_vocab_size(), "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 40}
    if kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**size))
    elif kind == "roberta":
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**size, pad_token_id=0))
    else:
        shape = {"vocab_size": inner.get_vocab_size(), "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 40}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(path)
    return path


def program(*args: str, cwd: Path = ROOT, module: str = "src.train", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project as a user does, in its own process."""
    skip_if_deleted(args)
    command = [sys.executable, "-m", module, *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def full_data() -> str:
    """The folder of the full data sets, where the environment names one."""
    folder = os.environ.get("FULL_DATA_DIR")
    if not folder:
        pytest.skip("FULL_DATA_DIR does not name a folder with the full MNIST")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def trainer(folder: Path, **options: object) -> Trainer:
    """A Trainer that says and keeps nothing."""
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


def own_pairs(folder: Path) -> Path:
    """Pictures of one colour with a table of captions, which is given."""
    folder.mkdir()
    rows = []
    for number in range(60):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (30 + number, 40), colour).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"a {colour} picture of size {number}"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return folder / "captions.csv"


def copy_of_the_repository(folder: Path) -> Path:
    """A copy without history, environment, data and runs."""
    left_out = (".git", ".venv", "data", "logs", "__pycache__", ".*_cache", "*.egg-info", ".coverage*")
    top = shutil.ignore_patterns(*left_out)
    shutil.copytree(ROOT, folder, ignore=lambda at, names: top(at, names) if at == str(ROOT) else PYCACHE(at, names))
    return folder


def in_copy(folder: Path, *words: str) -> str:
    """What Python says of some words in a copy of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    reasons = "\n".join(line for line in done.stdout.splitlines() if re.match(r"E  |FAILED|ERROR", line))
    assert done.returncode == 0, f"{reasons[-6000:]}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def wait_for(condition: str, path: Path, seconds: float) -> str:
    """What a file holds once it matches; bytes that are no text are replaced."""
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
