import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from src.engine.cli.cli import StarterCLI
from src.engine.parts.hparams import hyperparameters
from src.engine.tensorboard.dashboard import Dashboard, joint_charts
from tests.conftest import Run

Train = Callable[..., Run]
SMALL = ("--trainer.limit_train_batches=4", "--max_epochs=2")


def shown(run: Run) -> Any:
    return EventAccumulator(str(run.folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()


@pytest.mark.slow
def test_training_and_validation_share_one_chart(train: Train) -> None:
    events = shown(train(*SMALL, "--trainer.log_every_n_steps=2"))
    proto = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(proto)
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    for name in ("acc", "loss"):
        tags = [re.compile(tag) for tag in charts[name]]
        assert [bool(tag.match(f"{stage}/{name}")) for tag in tags for stage in ("train", "val")] == [1, 0, 0, 1]
        assert not any(tag.match(f"train/{name}_step") for tag in tags)
    scalars = events.Tags()["scalars"]
    assert {"train/acc", "val/acc", "train/loss", "val/loss"} <= set(scalars)
    assert any(tag.startswith("lr-") for tag in scalars)


@pytest.mark.parametrize(
    ("names", "title", "shown"),
    [
        (["val_loss"], "loss", ["train_loss", "train_loss_epoch", "val_loss"]),
        (["Loss/Validation"], "Loss", ["Loss/Train", "Loss/Validation"]),
        (
            ["valid_acc/dataloader_idx_0", "valid_acc/dataloader_idx_1"],
            "acc",
            ["train_acc", "valid_acc/dataloader_idx_1"],
        ),
        (["acc"], "acc", ["acc"]),
    ],
)
def test_metrics_of_any_name_share_charts(names: list[str], title: str, shown: list[str]) -> None:
    ((found, (_, tags)),) = joint_charts(names).items()
    assert found == title
    assert all(any(re.match(tag, name) for tag in tags) for name in shown)
    assert not any(re.match(tag, name) for tag in tags for name in ("train_f1", "val_f1", "loss", "train_loss_step"))


def test_without_validation_the_charts_are_made_too(train: Train) -> None:
    events = shown(train("fit", *SMALL, "--trainer.limit_val_batches=0"))
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_the_gradient_norm_is_logged_at_log_steps(train: Train) -> None:
    run = train("fit", *SMALL, "--trainer.log_every_n_steps=2", "--trainer.gradient_clip_val=1e-3")
    norms = shown(run).Scalars("train/grad_norm")
    assert [norm.step for norm in norms] == [1, 3, 5, 7]
    assert all(norm.value > 10 * 1e-3 for norm in norms)  # before the clipping, which leaves a thousandth


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint")
def test_the_logged_norm_is_the_norm_of_all_gradients(parse: Callable[..., StarterCLI]) -> None:
    plain = ("--optimizer=SGD", "--optimizer.lr=1", "--lr_scheduler=null", "--precision=32-true")
    words = ("--trainer.log_every_n_steps=1", "--trainer.max_steps=1")
    cli = parse("fit", *SMALL, *plain, *words)
    before = [parameter.detach().clone() for parameter in cli.model.parameters()]
    cli.run()
    steps = [old - new for old, new in zip(before, cli.model.parameters(), strict=True)]
    assert cli.record is not None
    (norm,) = EventAccumulator(str(cli.record.folder)).Reload().Scalars("train/grad_norm")
    assert norm.value == pytest.approx(float(torch.nn.utils.get_total_norm(steps)), rel=1e-4)


@pytest.mark.slow
def test_settings_and_final_metrics_are_on_the_hyperparameters_page(train: Train) -> None:
    run = train(*SMALL, "--optimizer.lr=0.003")
    folder = EventAccumulator(str(run.folder)).Reload()
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (content,) = (folder.PluginTagToContent("hparams")["_hparams_/session_start_info"],)
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["optimizer.lr"].number_value == pytest.approx(0.003)
    assert given["model.net"].string_value == "ToyNet"
    experiment = HParamsPluginData.FromString(folder.PluginTagToContent("hparams")["_hparams_/experiment"]).experiment
    assert {"final/test/acc", "final/val/acc"} <= {metric.name.tag for metric in experiment.metric_infos}
    # Their values are the scalars of these names.
    for name in ("test/acc", "val/acc"):
        assert [one.value for one in folder.Scalars(f"final/{name}")] == pytest.approx([run.metrics[name]])
    assert [round(one.value, 6) for one in folder.Scalars("test/acc")] == [round(run.metrics["test/acc"], 6)]


def test_hyperparameters_have_the_names_of_the_command_line() -> None:
    net = {"class_path": "tests.toy.ToyNet", "init_args": {"width": 8, "loss": None}}
    tree = {
        "model": {"class_path": "src.tasks.classifier.Classifier", "init_args": {"net": net}},
        "data": {"class_path": "a.B", "init_args": {"sizes": [1, 2]}},
        "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "x.Y"}]},
    }
    assert hyperparameters(tree) == {
        "model": "Classifier",
        "model.net": "ToyNet",
        "model.net.width": 8,
        "data": "B",
        "data.sizes": "[1, 2]",
        "trainer.max_epochs": 3,
    }


def norms(optimizer: str, steps: list[int], precision_plugin: Any = None) -> list[tuple[int, float]]:
    """Step and gradient norm of what the dashboard logs, if the first optimizer of several steps at these steps."""
    logged: list[tuple[int, float]] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((step, values["train/grad_norm"])))
    module: Any = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    own = getattr(torch.optim, optimizer)(module.parameters(), lr=0.1, fused=True)
    trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=4, optimizers=[own, None], loggers=[logger])
    trainer.precision_plugin = precision_plugin
    dashboard = Dashboard()
    dashboard.on_train_start(trainer, module)
    for trainer.global_step in steps:
        dashboard.on_before_optimizer_step(trainer, module, own)
    return logged


def test_the_gradient_norm_of_the_first_of_two_optimizers_is_logged() -> None:
    assert norms("AdamW", [*range(8)]) == [(3, 5.0), (7, 5.0)]
    assert norms("AdamW", [*range(0, 16, 2)]) == [(4, 5.0), (8, 5.0), (12, 5.0)]


def test_the_gradient_norm_is_without_the_scale_of_the_loss() -> None:
    plugin = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 10.0))
    assert norms("AdamW", [3], plugin) == [(3, 0.5)]  # a fused optimizer unscales within its step
