"""The examples of docs/own_code.md run as they stand there."""

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import src
from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.system.classes import project_classes
from tests.conftest import Run, pictures
from tests.recipes import DELETED

PAGE = (ROOT / "docs" / "own_code.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`((?:src|configs)/own/\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^`python -m src\.train (.*)`$", PAGE, re.MULTILINE)
SHORT = ("--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif({"vision", "text"} & DELETED != set(), reason="the examples use recipes of vision and text"),
]
Train = Callable[..., Run]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the files of the page, whose classes the command line finds by name."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    classes = {name: module for module, text in FILES.items() for name in re.findall(r"^class (\w+)", text, re.M)}
    monkeypatch.setattr(src, "__path__", [*src.__path__, str(tmp_path / "src")])
    for name, path in classes.items():
        monkeypatch.setitem(project_classes(), name, [f"src.own.{Path(path).stem}.{name}"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("src.own")]:
        del sys.modules[name]


def blocks(heading: str) -> list[str]:
    """The blocks of Python under a heading that are no files."""
    part = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [one for one in re.findall(r"```python\n(.*?)```", part, re.DOTALL) if one not in FILES.values()]


def given(folder: Path) -> None:
    """The data that the commands of the page name."""
    data = folder / "path" / "to"
    pictures(data / "images")
    pictures(data / "more_images")
    exec(blocks("Mixed data folders")[0], {})
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"the {word} sat" for word in ("cat", "dog") * 30], "label": ["cat", "dog"] * 30}
    texts = datasets.Dataset.from_dict(rows)
    parts = ("train", "validation", "test")
    datasets.DatasetDict(dict.fromkeys(parts, texts)).save_to_disk(data / "dataset")
    exec(blocks("Datasets of Hugging Face on disk")[0], {})
    pixels = torch.randint(256, (40, 28, 28), generator=torch.Generator().manual_seed(0))
    images = datasets.Dataset.from_dict({"pixels": pixels.tolist(), "label": [n % 10 for n in range(40)]})
    datasets.DatasetDict(dict.fromkeys(parts, images)).save_to_disk(data / "pixels")


def words_of(command: str) -> list[str]:
    words = shlex.split(command)
    if "--config" in words:
        return [*words, *(["--data.image_size=32"] if "image_folder" in command else [])]
    return words if "--data" in words else [*words, "--data.source=sample", "--data.batch_size=32"]


def test_the_page_shows_examples() -> None:
    assert len(COMMANDS) == len(set(COMMANDS)) >= 9
    assert len(FILES) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command: str, own: Path, train: Train) -> None:
    if ".path" in command:
        given(own)
    run = train(*words_of(command), "--max_epochs=2", *(() if "own/plain" in command else SHORT))
    assert run.cli.trainer.state.finished
    for name in re.findall(r"(?:--\S+[ =]|callbacks\+=)([A-Z]\w+)", command):
        used = (run.cli.model, run.cli.datamodule, run.cli.model.net, getattr(run.cli.model, "loss", None))
        assert name in {type(one).__name__ for one in (*used, *run.cli.trainer.callbacks)}  # type: ignore[attr-defined]


def command_with(word: str) -> list[str]:
    return words_of(next(one for one in COMMANDS if word in one))


def test_the_callback_logs(own: Path, train: Train) -> None:
    run = train(*command_with("WeightNorm"), "--max_epochs=1", *SHORT)
    parameters = [one for name, one in run.weights.items() if name in dict(run.cli.model.named_parameters())]
    events = EventAccumulator(str(run.folder)).Reload()
    logged = events.Scalars("weight_norm")[-1].value
    assert logged == pytest.approx(torch.cat([one.flatten() for one in parameters]).norm().item(), rel=1e-5)


def test_the_metrics_are_logged_and_select_the_best_checkpoint(own: Path, train: Train) -> None:
    run = train(*command_with("MoreMetrics"), "--max_epochs=2", *SHORT)
    assert 0.5 < run.metrics["test/auroc"] <= 1
    auroc: Any = type(run.cli.model.metrics["val"]["auroc"])(3, average=None, ignore_index=-100)
    auroc.update(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, -100]))
    assert auroc.compute() == 1  # the class that does not occur does not count
    assert 0 < run.metrics["test/kappa"] <= run.metrics["test/acc"]
    assert run.cli.trainer.checkpoint_callback.best_model_score == pytest.approx(run.metrics["val/auroc"])  # type: ignore[union-attr]


def test_the_task_learns_and_a_checkpoint_rebuilds_it(own: Path, train: Train) -> None:
    words = command_with("Autoencoder")
    first, last = (train(*words, f"--max_epochs={epochs}").metrics["val/loss"] for epochs in (1, 3))
    assert last < first


def test_the_last_layer_is_trained_first(own: Path, parse: Callable[..., StarterCLI]) -> None:
    seen: list[Any] = []
    cli = parse(*command_with("UnfreezeBody"), "--max_epochs=3", *SHORT)
    weights = {name: one for name, one in cli.model.net.state_dict().items() if name != "head.1.bias"}

    def remember(*_: Any) -> None:
        seen.append({name: one.detach().clone() for name, one in weights.items()})

    cli.model.on_train_epoch_end, before = (lambda: (remember(), before())), cli.model.on_train_epoch_end  # type: ignore[func-returns-value]
    remember()
    cli.run()
    changed = [{name for name in weights if not torch.equal(new[name], old[name])} for old, new in pairwise(seen)]
    assert changed[0] == changed[1] == {"head.1.weight"}
    assert changed[2] == weights.keys()


def test_the_last_layer_of_torchvisions_networks_is_known_too(own: Path, parse: Callable[..., StarterCLI]) -> None:
    network = ("--model.net=TorchvisionNet", "--model.net.name=resnet18", "--data.image_size=32")
    given(own)
    words = ("--config=configs/vision/image_folder.yaml", "--data.path=path/to/images", "--model=TwoRates")
    cli = parse(*words, *network, "--model.head_lr=0.02")
    first, second = cli.model.parameter_groups()
    assert [one.shape[0] for one in second["params"]] == [cli.model.net.num_classes] * 2
    assert len(first["params"]) + 2 == len([*cli.model.parameters()])
    importlib.import_module("src.own.unfreeze_body").UnfreezeBody().on_train_start(cli.trainer, cli.model)
    assert sum(one.requires_grad for one in cli.model.parameters()) == 2


def test_the_head_has_its_own_learning_rate(own: Path, train: Train) -> None:
    run = train(*command_with("TwoRates"), "--max_epochs=1", *SHORT)
    first, second = run.cli.trainer.optimizers[0].param_groups
    assert second["max_lr"] == pytest.approx(20 * first["max_lr"])


def test_rare_classes_are_drawn_as_often_as_others(own: Path, parse: Callable[..., StarterCLI]) -> None:
    given(own)
    shutil.rmtree(own / "path" / "to" / "images" / "green")
    pictures(own / "rare", 4)
    (own / "rare" / "green").rename(own / "path" / "to" / "images" / "green")
    cli = parse(*command_with("BalancedImages"), "--data.batch_size=2")
    cli.datamodule.setup("fit")
    loader = cli.datamodule.train_dataloader()
    drawn = torch.cat([targets for epoch in range(40) for targets in _targets(loader, epoch)])
    counts = torch.bincount(torch.as_tensor(cli.datamodule.train_set.targets))
    assert counts.max() >= 2 * counts.min()
    assert 0.4 < drawn.float().mean() < 0.6


def _targets(loader: Any, epoch: int) -> Iterator[torch.Tensor]:
    loader.sampler.set_epoch(epoch)
    yield from (targets for _, targets in loader)


def test_mixed_folders_are_one_data_set(own: Path, train: Train) -> None:
    given(own)
    lines = (own / "mixed.csv").read_text().splitlines()
    assert lines[0] == "path,label"
    assert {Path(line.split(",")[0]).parents[1].name for line in lines[1:]} == {"images", "more_images"}


def test_the_plain_module_says_how_its_best_checkpoint_is_chosen(own: Path, train: Train) -> None:
    run = train(*command_with("own/plain"), "--max_epochs=1")
    said = " ".join([*run.messages, run.output])
    assert "The best checkpoint has the lowest val_loss" in said
    assert "PlainModule has no method test_step" in said
