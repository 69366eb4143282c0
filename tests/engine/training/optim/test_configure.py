from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.utils.data import DataLoader

from src.engine.cli.cli import StarterCLI
from src.engine.system.errors import InputError
from src.engine.training.optim.configure import configure_optimizers
from src.engine.training.optim.schedulers import CosineAnnealingLR, OneCycleLR
from src.tasks.classifier import Classifier
from tests.conftest import Run
from tests.toy import ToyData

Train = Callable[..., Run]
ONE = ("fit", "--fast_dev_run")
SHORT = ("fit", "--max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"momentum": "0.9"}),
        ("Adam", {"betas": "[0.8,0.9]"}),
        ("AdamW", {"weight_decay": "0.3"}),
        ("RMSprop", {"alpha": "0.5"}),
        ("NAdam", {"momentum_decay": "0.01"}),
        ("torch.optim.Adagrad", {"lr_decay": "0.1"}),
    ],
)
def test_any_optimizer_of_torch_trains_with_its_own_arguments(
    train: Train, name: str, arguments: dict[str, str]
) -> None:
    options = [f"--optimizer.{key}={value}" for key, value in arguments.items()]
    options += [f"--optimizer={name}", "--optimizer.lr=1e-3"]
    run = train(*ONE, *options)
    (optimizer,) = run.cli.trainer.optimizers
    assert type(optimizer).__name__ == name.rpartition(".")[2]
    group = optimizer.param_groups[0]
    assert group["initial_lr"] == pytest.approx(1e-3 / 25)  # where the recipe's one-cycle schedule begins
    for key, value in arguments.items():
        assert str(group[key]).replace(" ", "").replace("(", "[").replace(")", "]") == value


@pytest.mark.parametrize(
    ("name", "arguments", "length"),
    [
        ("OneCycleLR", (), 8),
        ("OneCycleLR", ("--trainer.accumulate_grad_batches=2",), 4),
        ("OneCycleLR", ("--lr_scheduler.total_steps=50",), 50),
        ("CosineAnnealingLR", (), 8),
        ("CosineAnnealingLR", ("--lr_scheduler.T_max=3",), 3),
        ("CosineAnnealingLR", ("--lr_scheduler_interval=epoch",), 2),
        ("CosineAnnealingLR", ("--lr_scheduler_interval=epoch", "--max_epochs=9", "--trainer.max_steps=10"), 3),
        ("CosineAnnealingLR", ("--lr_scheduler_interval=epoch", "--max_epochs=-1", "--trainer.max_steps=8"), 2),
    ],
)
def test_a_schedule_gets_the_length_of_the_run(
    train: Train, name: str, arguments: tuple[str, ...], length: int
) -> None:
    run = train(*SHORT, f"--lr_scheduler={name}", *arguments)
    schedule = run.cli.trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(schedule, OneCycleLR | CosineAnnealingLR)
    assert (schedule.T_max if isinstance(schedule, CosineAnnealingLR) else schedule.total_steps) == length


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer.lr=-1",), "AdamW does not take its arguments: Invalid learning rate: -1.0"),
        (("--lr_scheduler.div_factor=0",), "OneCycleLR does not take its arguments: float division by zero"),
    ],
)
def test_a_bad_argument_of_an_optimizer_or_schedule_is_one_line(
    train: Train, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(*ONE, *words)


class TooFew(ToyData):
    """Fewer samples than a batch, and no smaller batch."""

    def train_dataloader(self) -> Any:
        return DataLoader([torch.zeros(1)], batch_size=2, drop_last=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", ["--max_epochs=3", "--trainer.max_steps=9"])
@pytest.mark.filterwarnings("ignore:Total length of")
def test_a_schedule_of_a_run_without_batches_is_one_line(train: Train, length: str) -> None:
    with pytest.raises(InputError, match="the training part has no batch: give more data"):
        train("fit", f"--data={__name__}.TooFew", length)


@pytest.mark.parametrize(("interval", "moves"), [("step", 8), ("epoch", 2)])
def test_schedules_move_every_step_by_default(train: Train, interval: str, moves: int) -> None:
    schedule = ("--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5")
    options = () if interval == "step" else ("--lr_scheduler_interval=epoch",)
    run = train(*SHORT, "--optimizer.lr=1.0", *schedule, *options)
    assert run.cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5**moves)


@pytest.mark.slow
def test_reduce_on_plateau_watches_a_metric_every_epoch(train: Train) -> None:
    run = train(*SHORT, "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss")
    config = run.cli.trainer.lr_scheduler_configs[0]
    assert isinstance(config.scheduler, ReduceLROnPlateau)
    assert (config.monitor, config.interval) == ("val/loss", "epoch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "moves"),
    [
        (("--trainer.check_val_every_n_epoch=2",), 2),
        (("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=20"), 3),  # waits for the first
    ],
)
def test_reduce_on_plateau_needs_no_metric_after_every_epoch(train: Train, words: tuple[str, ...], moves: int) -> None:
    plateau = ("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss", "--lr_scheduler.threshold=10")
    plateau += ("--lr_scheduler.patience=0", "--lr_scheduler.factor=0.5", "--optimizer.lr=0.01")
    run = train("fit", *plateau, *words, "--max_epochs=4")
    assert run.cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**moves)


def test_parameters_made_after_parsing_are_trained(parse: Callable[..., StarterCLI]) -> None:
    cli = parse("--lr_scheduler=null")
    late = torch.nn.Parameter(torch.zeros(3))
    cli.model.net.late = late
    cli.model.trainer = cli.trainer
    optimizer = cli.model.configure_optimizers()["optimizer"]
    assert any(late is parameter for parameter in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ((), True),
        (("--optimizer.fused=false",), False),
        (("--optimizer.foreach=true",), None),
        # Lightning clips no fused optimizer in mixed precision, which not every machine chooses.
        (("--trainer.gradient_clip_val=1", "--precision=bf16-mixed"), None),
        (("--trainer.gradient_clip_val=1", "--precision=32-true"), True),
        (("--optimizer=Adagrad",), True),
    ],
)
def test_an_optimizer_is_fused_if_possible(train: Train, options: tuple[str, ...], fused: bool | None) -> None:
    run = train(*ONE, *options)
    assert run.cli.trainer.optimizers[0].param_groups[0]["fused"] is fused


def test_a_schedule_for_an_endless_run_is_an_error(parse: Callable[..., StarterCLI]) -> None:
    cli = parse("--max_epochs=-1")
    cli.trainer.strategy.connect(cli.model)
    cli.model.trainer = cli.trainer
    spec = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    schedule = {"class_path": "src.engine.training.optim.schedulers.CosineAnnealingLR", "init_args": {"T_max": None}}
    with pytest.raises(InputError, match=r"give --max_epochs or --trainer\.max_steps"):
        configure_optimizers(cli.model, spec, schedule, "epoch")


@pytest.mark.slow
def test_a_task_that_clips_by_itself_is_not_fused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped = []

    def clip(self: Classifier, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        self.clip_gradients(optimizer, 1.0, "norm")
        clipped.append(optimizer)

    monkeypatch.setattr(Classifier, "configure_gradient_clipping", clip)
    train(*ONE, "--precision=bf16-mixed")
    assert clipped[0].param_groups[0]["fused"] is None
    train(*ONE, "--precision=32-true")
    assert clipped[-1].param_groups[0]["fused"] is True


def test_a_state_of_other_sizes_is_refused_for_every_optimizer_with_fused_steps() -> None:
    network = torch.nn.Linear(2, 2)
    groups = [{"params": [network.weight], "hidden": True}, {"params": [network.bias], "hidden": False}]
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(gradient_clip_val=1.0, precision_plugin=None, strategy=strategy)
    module: Any = SimpleNamespace(trainer=trainer, device_mesh=None, automatic_optimization=True)
    module.modules, module.parameters, module.parameter_groups = network.modules, network.parameters, lambda: groups
    spec = {"class_path": "src.engine.training.optim.muon.MuonWithAdamW", "init_args": {}}
    optimizer = configure_optimizers(module, spec, None, "step")["optimizer"]
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    state["state"][1]["exp_avg"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"the checkpoint's exp_avg of \(1,\) does not fit its weights"):
        optimizer.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [("true", "false"), ("false", "true")])
def test_a_resumed_run_uses_its_own_fused_setting_not_the_checkpoints(train: Train, before: str, now: str) -> None:
    short = ("fit", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    first = train(*short, "--max_epochs=1", f"--optimizer.fused={before}")
    path = first.folder / "checkpoints" / "last.ckpt"
    run = train(*short, "--max_epochs=2", f"--ckpt_path={path}", f"--optimizer.fused={now}")
    assert run.cli.trainer.optimizers[0].param_groups[0]["fused"] is (now == "true")
