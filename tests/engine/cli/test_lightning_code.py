"""Lightning code that was not written for this project runs as it is."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.deploy.exporting import export
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.search.tuning import tune
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted
from tests.conftest import Run
from tests.engine.cli import lightning_code as code
from tests.engine.runs.processes import DDP, metrics, run_in
from tests.engine.search.studies import trials
from tests.spies import inject_fault

Train = Callable[..., Run]
Write = Callable[..., str]

CODE = code.__name__
STEPS = 6  # batches of an epoch


def of(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{CODE}.{name}", "init_args": init_args}


@dataclass
class Case:
    """A recipe, and what becomes of it.

    Args:
        tree: model and data.
        best: metric of the best checkpoint; None: the last one is kept.
        tested: metrics of the test; a text: why there is none.
        predicted: column of the predictions; in brackets: why there are none.
        per_batch: optimizer steps.
        metric: what a search minimizes.
    """

    tree: dict[str, Any]
    best: str | None
    tested: tuple[str, ...] | str
    predicted: str
    per_batch: int = 1
    metric: str | None = None


NO_DATA = "(has no DataModule, whose method prepare reads the inputs; see docs/your_own.md)"
NO_PREPARE = "(cannot prepare single inputs: give it a method prepare and input_kind)"
UNUSED = ("autoencoder without labels", "GAN")  # have parameters that a step does not use
LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}}
OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
PLATEAU = {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
HYDRA = of("HydraModule", net=LINEAR, optimizer=OPTIMIZER, scheduler=PLATEAU)
RICH = {"colour": "BLUE", "augmentation": {"noise": 0.3}, "transform": f"{CODE}.Scale"}
RICH["transforms"] = [of("Scale", factor=3.0)]
NUMBERS = of("NumbersData")
CASES = {
    "autoencoder": Case({"model": of("Autoencoder"), "data": NUMBERS}, "val_loss", ("test_loss",), "output"),
    "autoencoder without labels": Case(
        {"model": of("Autoencoder"), "data": of("OnlyNumbers")},
        "val_loss",
        "OnlyNumbers has no method test_dataloader",
        NO_PREPARE,
    ),
    "GAN": Case(
        {"model": of("GAN", latent=4), "data": NUMBERS}, None, "GAN has no method test_step", "output", 2, "g_loss"
    ),
    "agent": Case({"model": of("Agent")}, None, "Agent has no method test_step", NO_DATA, metric="policy_loss"),
    "fine-tuning": Case(
        {"model": of("Transfer"), "data": NUMBERS},
        "valid_acc",
        ("test_loss", "test_acc"),
        "probability",
        metric="test_loss",
    ),
    "trains only": Case({"model": of("Alone")}, None, "Alone has no method test_step", NO_DATA, metric="objective"),
    "loaders inside": Case({"model": of("LoadersInside")}, "valid_loss", ("test_loss", "test_acc"), NO_DATA),
    "several loaders": Case(
        {"model": of("Domains"), "data": of("DomainsData")},
        None,
        tuple(f"test_{name}/dataloader_idx_{number}" for name in ("acc", "loss") for number in (0, 1)),
        "probability",
        metric="valid_loss/dataloader_idx_1",
    ),
    "dict batches": Case({"model": of("DictModule"), "data": of("DictData")}, "Loss/Validation", ("acc",), NO_PREPARE),
    "graphs": Case(
        {"model": of("GraphModule"), "data": of("GraphData")}, "val/energy_loss", ("test/energy_loss",), NO_PREPARE
    ),
    "hydra": Case({"model": HYDRA, "data": NUMBERS}, "val/loss", ("test/loss",), "output"),
    "rich arguments": Case(
        {"model": of("RichModule", **RICH), "data": of("RichData", folder="some/where", **RICH)},
        "val_loss",
        ("test_loss",),
        "output",
    ),
}
each = pytest.mark.parametrize("name", CASES)
# What Lightning says of such modules
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "You passed in a .val_dataloader. but",
        "The provided params to be frozen",
        "Trying to infer the .batch_size.",
        "Attribute .* is an instance of",
    )
]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: each test has its own."""
    return ()


def written(folder: Path, name: str, **changes: Any) -> str:
    """Write the recipe of a case; returns the option that names it."""
    path = folder / "own.yaml"
    tree = {**CASES[name].tree, **changes, "trainer": {"max_epochs": 2, "log_every_n_steps": 2}}
    tree["trainer"] |= changes.get("trainer", {})
    path.write_text(yaml.safe_dump(tree))
    return f"--config={path}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda name, **changes: written(tmp_path, name, **changes)


@pytest.fixture
def checkpoint_of(tmp_path: Path, train: Train, write: Write) -> Callable[..., str]:
    """Train one epoch; returns the path of the checkpoint."""

    def make(name: str, **changes: Any) -> str:
        folder = train("fit", write(name, **changes), "--max_epochs=1").folder
        return str(folder / "checkpoints" / "last.ckpt")

    return make


# All that a run does


@each
def test_it_is_trained_and_tested(name: str, train: Train, write: Write) -> None:
    case = CASES[name]
    run = train(write(name))
    said = "\n".join(run.messages)
    assert f"Recipe {run.folder.parents[2] / 'own.yaml'}" in said
    checkpoint = read_checkpoint(str(run.folder / "checkpoints" / "last.ckpt"))
    assert checkpoint["global_step"] == 2 * STEPS * case.per_batch
    (state,) = (one for one in checkpoint["callbacks"].values() if "best_model_path" in one)
    assert state["monitor"] == case.best
    assert Path(state["best_model_path"]).is_file()
    assert f"best checkpoint {state['best_model_path']}" in re.sub(" +", " ", run.output)
    chooses = case.best not in ("val/loss", "valid_acc")
    assert ("The best checkpoint" in said) == chooses
    assert case.best is None or not chooses or f"lowest {case.best}" in said
    if isinstance(case.tested, str):
        assert f"Not tested: {case.tested}" in said
        return
    shown = re.findall(r"^(\S+) +-?\d+\.\d{4} *$", run.output, re.MULTILINE)
    assert sorted(shown) == sorted(case.tested)
    assert set(shown) <= run.metrics.keys()
    page = EventAccumulator(str(run.folder)).Reload().PluginTagToContent("hparams")["_hparams_/experiment"]
    assert all(metric.encode() in page for metric in case.tested)


def test_early_stopping_watches_the_same_metric_where_no_checkpoint_is_saved(train: Train, write: Write) -> None:
    run = train(
        "fit", write("autoencoder"), "--trainer.callbacks+=EarlyStopping", "--trainer.enable_checkpointing=false"
    )
    (callback,) = run.cli.trainer.early_stopping_callbacks
    assert callback.monitor == "val_loss"
    assert torch.isfinite(callback.best_score)  # it was compared
    assert not any("best checkpoint" in line for line in run.messages)
    assert not list(run.folder.rglob("*.ckpt"))


def test_early_stopping_follows_the_metric_of_a_validation_that_it_asks_at_once(train: Train, write: Write) -> None:
    words = ("--trainer.val_check_interval=0.5", "--trainer.num_sanity_val_steps=0", "--max_epochs=1")
    run = train("fit", write("autoencoder"), "--trainer.callbacks+=EarlyStopping", *words)
    (callback,) = run.cli.trainer.early_stopping_callbacks
    assert callback.monitor == "val_loss"


@pytest.mark.slow
def test_early_stopping_follows_a_metric_that_is_first_named_when_the_run_goes_on(train: Train, write: Write) -> None:
    first = train("fit", write("autoencoder"), "--trainer.callbacks+=EarlyStopping", "--max_epochs=1")
    for words in (("--max_epochs=2",), ("--max_epochs=3", "--checkpoint.monitor=train_loss", "--checkpoint.mode=max")):
        run = train("fit", f"--run={first.folder}", *words)
        (callback,) = run.cli.trainer.early_stopping_callbacks
        named = "--checkpoint.mode=max" in words
        assert (callback.monitor, callback.mode) == (("train_loss", "max") if named else ("val_loss", "min"))
        assert torch.isfinite(callback.best_score)


@pytest.mark.slow
@each
def test_ctrl_c_saves_and_the_run_goes_on(name: str, train: Train, write: Write, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(Interrupted):
        train("fit", write(name), "--name=own", *inject_fault("interrupt", 4, tmp_path / "happened"))
    run = train("fit", "--ckpt_path=last", "--name=own")
    steps = 2 * STEPS * case.per_batch + (5 if name == "agent" else 0)  # its loader has no length: it begins again
    assert read_checkpoint(str(run.folder / "checkpoints" / "last.ckpt"))["global_step"] == steps
    assert run.folder.name == "version_0"
    if isinstance(case.tested, tuple):
        assert set(case.tested) <= train("test", f"--run={run.folder}").metrics.keys()
    if name not in ("agent", "trains only"):
        assert train("predict", f"--run={run.folder}").metrics["total_seconds"] > 0


@each
def test_it_predicts_is_exported_and_served_or_says_what_it_lacks(
    name: str, checkpoint_of: Callable[..., str], tmp_path: Path
) -> None:
    column, path = CASES[name].predicted, checkpoint_of(name)
    (tmp_path / "in.csv").write_text("a,b,c,d\n1,2,3,4\n0,0,1,0\n")
    words = ["--ckpt_path", path, "--trust", CODE]
    table, weights = tmp_path / "out.csv", tmp_path / "model.safetensors"
    commands = (
        lambda: predict([str(tmp_path / "in.csv"), "--output", str(table), *words]),
        lambda: export(["--format", "safetensors", "--output", str(weights), *words, *folder_of(name)]),
        lambda: Inference(path, trust=[CODE], data=data_of(name)).check_on_sample(),
    )
    if column.startswith("("):
        reason, *more = column.strip("()").split(": ")
        for command in commands:
            with pytest.raises(InputError, match=": ".join([reason, *more])) as caught:
                command()
            assert "your_own.md" in str(caught.value)
        assert not table.exists()
        return
    if name == "rich arguments":  # the path of a stranger's checkpoint is not used
        with pytest.raises(InputError, match=r"--data.folder is missing"):
            commands[0]()
    else:
        assert commands[0]() == 0
        rows = list(csv.DictReader(table.open()))
        assert len(rows) == 2
        assert all(row[column] and not row["error"] for row in rows)
    commands[1]()
    assert weights.exists()
    commands[2]()


def test_a_prediction_of_two_rows_is_not_of_one_row_and_its_labels(
    checkpoint_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_of("fine-tuning")

    def unpacks(self: Any, batch: Any, batch_idx: int) -> Any:
        x, _ = batch
        return self(torch.stack([x, x]))

    monkeypatch.setattr(code.Transfer, "predict_step", unpacks)
    (tmp_path / "in.csv").write_text("a,b,c,d\n1,2,3,4\n0,0,1,0\n")
    words = ["--ckpt_path", path, "--trust", CODE]
    with pytest.raises(InputError, match=r"^Transfer\.predict_step does not take the inputs of .*, of shape \(1, 4\)"):
        predict([str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"), *words])


def data_of(name: str) -> dict[str, Any]:
    return {"folder": Path("some/where")} if name == "rich arguments" else {}


def folder_of(name: str) -> list[str]:
    return [f"--data.{key}={value}" for key, value in data_of(name).items()]


# Those that differ to several processes: in optimizers, loaders, batches, and parameters that are not used.
SHARED = [name for name in CASES if name not in ("autoencoder", "hydra", "rich arguments", "trains only")]


@pytest.mark.parametrize(
    "name", [name if name == "graphs" else pytest.param(name, marks=pytest.mark.slow) for name in SHARED]
)
def test_two_processes_run_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    more = ("--trainer.strategy=ddp_find_unused_parameters_true",) if name in UNUSED else ()
    run_in(tmp_path / "two", written(tmp_path, name), *DDP, *more)
    found = metrics(tmp_path / "two")
    assert found["total_seconds"] > 0
    assert isinstance(case.tested, str) or set(case.tested) <= found.keys()


@pytest.mark.slow
@each
def test_a_search_tries_it_twice(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    spec = {"recipe": written(tmp_path, name).removeprefix("--config="), "n_trials": 2, "sampler": "GridSampler"}
    spec["space"] = {"seed_everything": {"categorical": [1, 2]}}
    spec["options"] = {"trainer.max_epochs": 1}
    if case.metric:
        spec |= {"metric": case.metric, "direction": "minimize"}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(spec))
    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    assert tune(["--config", str(tmp_path / "search.yaml"), root, "--accelerator=cpu"]) == 0
    values = [trial.value for trial in trials(tmp_path, "search")]
    assert len(set(values)) == 2
    assert f"trial 1: {case.metric or case.best} {values[1]:.4f}" in capsys.readouterr().err
