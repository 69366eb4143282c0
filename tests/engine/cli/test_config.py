"""Recipes, overlays and class names in configurations and options."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F

from src.engine.cli.class_names import resolve_names
from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import check_mode, load_config, merge, merge_class_options
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier
from tests.conftest import Run, with_recipe, write
from tests.toy import RECIPE, ToyMLP

Train = Callable[..., Run]
Parse = Callable[..., StarterCLI]
MLP = "--model.net=tests.toy.ToyMLP"
LOGGER = ("--trainer.logger", "WandbLogger")
# A minimal run that trains, validates and tests.
SHORT = (MLP, "--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")


def test_another_metric_for_the_best_checkpoint_needs_its_mode() -> None:
    recipe = {"checkpoint": {"monitor": "val/acc", "mode": "max"}}
    loss, both = {"checkpoint": {"monitor": "val/loss"}}, {"checkpoint": {"monitor": "val/loss", "mode": "min"}}
    monitor, mode = ("--checkpoint.monitor", "val/loss"), ("--checkpoint.mode", "min")
    for trees, options in (
        ([recipe], []),
        ([recipe], [("--checkpoint.monitor", "val/acc")]),
        ([recipe], [("--checkpoint.monitor", "null")]),
        ([recipe], [monitor, mode]),
        ([recipe, both], []),
        ([recipe, loss], [mode]),
        ([recipe, loss], [("--checkpoint.monitor", "val/acc")]),
        ([recipe, loss], [("--checkpoint.monitor", "null")]),
        ([recipe, {"checkpoint": {"mode": "min"}}], [monitor]),
        ([{}], [monitor]),  # the default is for losses
        ([recipe], [("--checkpoint", "{monitor: val/loss, mode: min}")]),
    ):
        check_mode(trees, options)
    check_mode([{"checkpoint": {"mode": "min"}}], [monitor])  # saved by a run that has chosen by itself
    f1 = {"checkpoint": {"monitor": "val/f1", "mode": "max"}}
    given = ("--checkpoint", "{monitor: val/loss}")
    for trees, options in (
        ([recipe], [monitor]),
        ([recipe, loss], []),
        ([recipe, loss, {}], []),
        ([recipe], [given]),
        ([recipe, f1], [monitor]),
    ):
        with pytest.raises(InputError, match=r"^--checkpoint\.monitor val/loss: lowest or highest\? give --checkpoint"):
            check_mode(trees, options)
    with pytest.raises(InputError, match=r"^--checkpoint\.monitor val/r2: lowest or highest"):
        check_mode([{"checkpoint": {"monitor": "val/r2"}}], [])


def test_a_run_with_another_metric_and_without_its_mode_is_refused(error_of: Callable[..., str]) -> None:
    assert error_of("--config", RECIPE, "--checkpoint.monitor=val/loss").startswith(
        "--checkpoint.monitor val/loss: low"
    )


# Recipes and overlays


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A recipe outside this project."""
    return write(
        tmp_path / "mine.yaml",
        "model: {class_path: Classifier, init_args: {net: tests.toy.ToyMLP}}\n"
        "data: {class_path: tests.toy.ToyData, init_args: {size: 60, batch_size: 20}}\n"
        "optimizer: {class_path: SGD, init_args: {lr: 5e-2}}\n"
        "trainer: {max_steps: 50}\n",
    )


def test_a_recipe_replaces_the_default_recipe_completely(mine: str, tmp_path: Path) -> None:
    config = StarterCLI(with_recipe(["--config", mine], (), tmp_path), time.perf_counter()).config
    assert config.trainer.max_epochs is None  # the default recipe's max_epochs would end the run early
    assert config.trainer.max_steps == 50
    assert config.lr_scheduler is None
    assert config.optimizer.init_args.lr == 0.05
    assert config.name == "mine"


def test_the_last_of_two_recipes_is_used_alone(parse: Parse, mine: str) -> None:
    config = parse("--config", mine, "--config", RECIPE).config
    assert (config.name, config.trainer.max_steps) == ("toy", -1)
    assert config.optimizer.class_path == "torch.optim.AdamW"


@pytest.mark.slow
def test_an_overlay_wins_over_the_recipe_in_any_order(parse: Parse, mine: str, tmp_path: Path) -> None:
    overlay = write(tmp_path / "over.yaml", "trainer: {max_steps: 7}\ndata: {batch_size: 11}\n")
    for order in (("--config", overlay, "--config", mine), ("--config", mine, "--config", overlay)):
        built = parse("fit", "--trainer.max_steps=9", *order, "--data.size=90")
        assert built.config.trainer.max_steps == 9  # options win even before --config
        assert built.datamodule.batch_size == 11
        assert built.config.name == "mine"
    assert parse("--config", overlay, "--config", mine).config.trainer.max_steps == 7


@pytest.mark.slow
def test_overlays_append_callbacks(parse: Parse) -> None:
    built = parse("--config=configs/callbacks/early_stopping.yaml", "--config=configs/callbacks/weight_averaging.yaml")
    names = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert {"EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor"} <= set(names)


@pytest.mark.slow
def test_overlays_append_callbacks_to_a_recipe_without_a_trainer_or_with_callbacks_of_its_own(
    parse: Parse, tmp_path: Path
) -> None:
    tree = yaml.safe_load(Path("configs/default.yaml").read_text())
    overlays = ("--config=configs/callbacks/early_stopping.yaml", "--config=configs/callbacks/weight_averaging.yaml")
    for trainer, more in ((None, set()), ({"callbacks+": {"class_path": "Timer"}}, {"Timer"})):
        recipe = write(tmp_path / "own.yaml", yaml.safe_dump({**tree, "trainer": trainer}))
        names = {type(callback).__name__ for callback in parse(f"--config={recipe}", *overlays).trainer.callbacks}
        assert {"EarlyStopping", "EMAWeightAveraging"} | more <= names


@pytest.mark.slow
def test_a_section_without_settings_changes_nothing_and_one_that_is_no_section_is_an_error(
    parse: Parse, tmp_path: Path
) -> None:
    before = parse().config.trainer.max_epochs
    assert parse("--config", write(tmp_path / "a.yaml", "trainer:\n  # later\n")).config.trainer.max_epochs == before
    with pytest.raises(InputError, match=r"b.yaml: trainer is 3: give its settings, as in trainer: \{NAME: VALUE\}"):
        parse("--config", write(tmp_path / "b.yaml", "trainer: 3\n"))


class StopsAtAccuracy(EarlyStopping):
    """Names the metric that it monitors itself."""

    def __init__(self, patience: int = 5) -> None:
        super().__init__("val/acc", patience=patience, mode="max")


@pytest.mark.slow
def test_an_early_stopping_that_names_its_metric_keeps_it(parse: Parse, tmp_path: Path) -> None:
    overlay = f"trainer:\n  callbacks+:\n  - class_path: {__name__}.StopsAtAccuracy\n"
    for words in (
        (f"--trainer.callbacks+={__name__}.StopsAtAccuracy", "--trainer.callbacks.patience=2"),
        ("--config", write(tmp_path / "stops.yaml", overlay)),
    ):
        (callback,) = parse(
            *words, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min"
        ).trainer.early_stopping_callbacks
        assert isinstance(callback, StopsAtAccuracy)
        assert (callback.monitor, callback.mode) == ("val/acc", "max")


def test_early_stopping_watches_the_metric_that_selects_the_best_checkpoint(parse: Parse) -> None:
    other = ("--checkpoint.monitor=val/f1", "--checkpoint.mode=max")
    for words, expected in (((), ("val/acc", "max")), (other, ("val/f1", "max"))):
        (callback,) = parse("--config=configs/callbacks/early_stopping.yaml", *words).trainer.early_stopping_callbacks
        assert isinstance(callback, EarlyStopping)
        assert (callback.monitor, callback.mode) == expected


def test_early_stopping_watches_the_validation_loss_if_no_metric_selects_the_best(parse: Parse) -> None:
    built = parse("--config=configs/callbacks/early_stopping.yaml", "--checkpoint.monitor=null")
    (callback,) = built.trainer.early_stopping_callbacks
    assert isinstance(callback, EarlyStopping)
    assert (callback.monitor, callback.mode) == ("val/loss", "min")


@pytest.mark.slow
def test_early_stopping_stops(train: Train, tmp_path: Path) -> None:
    never_better = write(
        tmp_path / "never.yaml",
        "trainer:\n  callbacks+:\n  - {class_path: EarlyStopping, init_args: {monitor: val/loss, min_delta: 1e9}}\n",
    )
    short = [word for word in SHORT if "max_epochs" not in word]
    run = train("fit", *short, "--max_epochs=9", "--config", never_better)
    assert run.cli.trainer.current_epoch == 4  # the first epoch, and the default patience of three
    overlay = train("fit", *SHORT, "--config=configs/callbacks/early_stopping.yaml")
    assert any(isinstance(callback, EarlyStopping) for callback in overlay.cli.trainer.callbacks)


@pytest.mark.slow
def test_weight_averaging_saves_averaged_weights_that_load(train: Train) -> None:
    run = train(*SHORT, "--config=configs/callbacks/weight_averaging.yaml")
    assert any(isinstance(callback, EMAWeightAveraging) for callback in run.cli.trainer.callbacks)
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    key = "net.layers.1.weight"
    assert not torch.equal(checkpoint["state_dict"][key], checkpoint["current_model_state"][key])
    loaded = Classifier.load_from_checkpoint(run.folder / "checkpoints" / "best.ckpt")
    assert torch.equal(loaded.state_dict()[key], checkpoint["state_dict"][key])


def test_gradient_clipping_runs(train: Train) -> None:
    assert train("fit", *SHORT, "--trainer.gradient_clip_val=1.0").cli.trainer.state.finished


def test_gradient_accumulation_steps_less_often(train: Train) -> None:
    run = train("fit", *SHORT, "--trainer.limit_train_batches=4", "--trainer.accumulate_grad_batches=2")
    assert run.cli.trainer.global_step == 2


# Classes


def test_a_class_chosen_by_name_starts_from_its_own_defaults(parse: Parse, messages: list[str]) -> None:
    built = parse("--optimizer.momentum=0.9", "--optimizer", "SGD", MLP, "--model.loss=MSELoss")
    assert isinstance(built.model.net, ToyMLP)
    assert isinstance(built.model.loss, nn.MSELoss)
    assert built.config.optimizer.class_path == "torch.optim.SGD"
    assert built.config.optimizer.init_args.momentum == 0.9
    assert built.config.optimizer.init_args.weight_decay == 0  # not the recipe's
    (line,) = [message for message in messages if message.startswith("optimizer: SGD")]
    assert "AdamW's lr=0.01" in line
    assert "weight_decay=0.02" in line


def test_print_config_reports_dropped_settings(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--optimizer=SGD", "--print_config")
    assert "optimizer: SGD starts from its own defaults; AdamW's lr=0.01" in capsys.readouterr().err


def test_an_unchanged_class_keeps_its_arguments(parse: Parse, messages: list[str], tmp_path: Path) -> None:
    overlay = write(tmp_path / "dropout.yaml", "model: {net: {dropout: 0.1}}\n")
    names = ("--optimizer", "torch.optim.adamw.AdamW", "--model.net=tests.toy.ToyNet")
    built = parse("--config", overlay, *names, "--model.net.width=4")
    assert built.config.optimizer.init_args.lr == 0.01
    assert (built.model.net.width, built.model.net.dropout) == (4, 0.1)
    assert not any("dropped" in message for message in messages)


def test_a_class_changed_in_an_overlay_starts_from_its_own_defaults(
    parse: Parse, tmp_path: Path, messages: list[str]
) -> None:
    overlay = write(tmp_path / "sgd.yaml", "optimizer: {class_path: SGD, init_args: {nesterov: true, momentum: .5}}\n")
    init_args = parse("--config", overlay).config.optimizer.init_args
    assert (init_args.nesterov, init_args.momentum, init_args.weight_decay) == (True, 0.5, 0.0)
    assert any("AdamW's lr=0.01" in message for message in messages)


@pytest.mark.slow
def test_this_projects_class_wins_over_a_library_class_of_that_name(parse: Parse) -> None:
    own = parse("--lr_scheduler=OneCycleLR").config.lr_scheduler  # torch has one too
    assert own.class_path == "src.engine.training.optim.schedulers.OneCycleLR"
    library = "torch.optim.lr_scheduler.OneCycleLR"
    other = parse(f"--lr_scheduler={library}", "--lr_scheduler.max_lr=0.1").config.lr_scheduler
    assert other.class_path == library
    assert other.init_args.max_lr == 0.1


def test_model_and_data_are_given_by_name(parse: Parse) -> None:
    data = "tests.engine.cli.toys.SizedData"
    built = parse(f"--data={data}", "--model=MultiLabelClassifier", MLP, "--model.net.hidden=7")
    assert type(built.model).__name__ == "MultiLabelClassifier"
    assert type(built.datamodule).__name__ == "SizedData"
    assert isinstance(built.model.net, ToyMLP)
    assert built.model.net.hidden == 7


class Choosing(LightningModule):
    """Has arguments that are an object, a class, a function, and what makes an object."""

    def __init__(
        self,
        net: nn.Module | None = None,
        act: type[nn.Module] = nn.ReLU,
        norm: type[nn.Module] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        super().__init__()


CHOOSING = f"{__name__}.Choosing"
AS_IT_IS = {"act": "torch.nn.GELU", "norm": "torch.nn.BatchNorm1d", "loss": "torch.nn.functional.mse_loss"}
OBJECTS = {"net": "torch.nn.GELU", "optimizer": "torch.optim.SGD"}
CHOSEN = {**AS_IT_IS, **{name: {"class_path": path} for name, path in OBJECTS.items()}}


def test_a_class_or_function_itself_is_text_and_what_makes_an_object_is_a_class() -> None:
    names = {"net": "GELU", "optimizer": "SGD"}
    for given in ({**AS_IT_IS, **OBJECTS}, {**AS_IT_IS, **names}):
        found = resolve_names({"model": {"class_path": CHOOSING, "init_args": given}})
        assert found["model"]["init_args"] == CHOSEN


def test_a_class_or_function_itself_is_an_option_as_it_is() -> None:
    plain, objects = ([(f"--model.{name}", path) for name, path in given.items()] for given in (AS_IT_IS, OBJECTS))
    tree, left = merge_class_options({"model": {"class_path": CHOOSING}}, [*plain, *objects], [])
    assert tree["model"]["init_args"] == {name: CHOSEN[name] for name in OBJECTS}
    assert left == plain


def test_print_config_prints_the_complete_configuration(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--print_config", "--max_epochs=3", "--optimizer=SGD")
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_epochs"] == 3
    assert printed["optimizer"]["class_path"] == "torch.optim.SGD"
    net = printed["model"]["init_args"]["net"]["init_args"]
    assert (net["width"], net["dropout"]) == (8, 0.0)  # the second is a default


def test_a_printed_configuration_is_a_recipe_named_after_its_file(
    parse: Parse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("--print_config", "--max_epochs=3")
    config = parse("--config", write(tmp_path / "printed.yaml", capsys.readouterr().out)).config
    assert (config.name, config.trainer.max_epochs) == ("printed", 3)


def test_a_printed_configuration_chooses_its_metric_again(
    parse: Parse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write(tmp_path / "own.yaml", Path(RECIPE).read_text().partition("checkpoint:")[0])
    with pytest.raises(SystemExit):
        parse("--config", own, "--print_config")
    printed = capsys.readouterr().out
    assert "monitor" not in yaml.safe_load(printed)["checkpoint"]
    assert "checkpoint.monitor" not in parse("--config", write(tmp_path / "printed.yaml", printed)).given


def test_a_metric_and_its_mode_may_be_given_as_one_option(parse: Parse, tmp_path: Path) -> None:
    own = write(tmp_path / "own.yaml", Path(RECIPE).read_text().partition("checkpoint:")[0])
    cli = parse("--config", own, "--checkpoint={monitor: val/acc, mode: max}")
    assert (cli.best.monitor, cli.best.mode) == ("val/acc", "max")
    assert "checkpoint.monitor" in cli.given


def test_of_an_option_given_twice_the_last_counts(parse: Parse) -> None:
    trainer = "--trainer={max_epochs: 5}"
    assert parse("--max_epochs=3", trainer).config.trainer.max_epochs == 5
    assert parse(trainer, "--max_epochs=3").config.trainer.max_epochs == 3
    for options in ([("--strategy", "ddp"), ("--strategy", "DDPStrategy")], [("--trainer.logger", "false"), LOGGER]):
        given = {"trainer": {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger"}}}
        assert merge_class_options(given, options, [])[1] == []
    for word in ("trainer={max_epochs: 1", "trainer.callbacks=[Timer", "checkpoint={mode: a", "model.net={class_path"):
        with pytest.raises(InputError, match=rf"^--{word.partition('=')[0]} .*: not YAML: "):
            parse(f"--{word}")


def test_a_network_may_be_given_before_its_task(parse: Parse) -> None:
    cli = parse("--model.net=tests.toy.ToyMLP", "--model=MultiLabelClassifier")
    assert (type(cli.model).__name__, type(cli.model.net).__name__) == ("MultiLabelClassifier", "ToyMLP")


def test_one_more_logger_ends_no_other(parse: Parse) -> None:
    csv, mlflow = (load_config(f"configs/logger/{name}.yaml")[1] for name in ("csv", "mlflow"))
    for first in (csv, {"trainer": {"logger": csv["trainer"]["logger+"]}}, {"trainer": {"logger": True}}):
        both = merge(merge({"trainer": {}}, first, "", []), mlflow, "", [])["trainer"]["logger"]
        names = [one["class_path"].rpartition(".")[2] for one in both]
        assert names == ["CSVLogger", "MLFlowLogger"][int(first == {"trainer": {"logger": True}}) :]
    of_list = merge(merge({}, csv, "", []), {"trainer": {"logger": {"init_args": {"name": "mine"}}}}, "", [])
    assert [one["init_args"]["name"] for one in of_list["trainer"]["logger"]] == ["mine"]
    dropped: list[str] = []
    given = {"trainer": {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"name": "a"}}}}
    tree, _ = merge_class_options(given, [("--trainer.logger", "WandbLogger")], dropped)
    assert "init_args" not in tree["trainer"]["logger"]
    assert len(dropped) == 1


def test_classes_in_a_list_on_the_command_line_are_found_by_name() -> None:
    value = "{class_path: ThroughputMonitor, init_args: {window_size: 5}}"
    strategy = [("--trainer.strategy", "{class_path: lightning.pytorch.strategies.DDPStrategy}")]
    assert "DDPStrategy" in merge_class_options({}, strategy, [])[1][0][1]
    ((_, found),) = merge_class_options({}, [("--trainer.callbacks+", value)], [])[1]
    assert json.loads(found)["class_path"] == "lightning.pytorch.callbacks.ThroughputMonitor"


def test_a_strategy_may_be_a_class_name(parse: Parse) -> None:
    assert type(parse("--strategy=DDPStrategy").trainer.strategy).__name__ == "DDPStrategy"


def test_without_an_optimizer_the_models_own_is_used_without_a_scheduler(train: Train, messages: list[str]) -> None:
    run = train("fit", *SHORT, "--optimizer=null")
    assert any(message.startswith("lr_scheduler dropped") for message in run.messages)
    assert run.cli.trainer.lr_scheduler_configs == []
    assert "lr_scheduler: null" in (run.folder / "config.yaml").read_text()


def test_tabs_behind_values_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "tabs.yaml", "trainer:\n  max_epochs: 2\t# a comment\n  log_every_n_steps:\t5\t\n")
    assert load_config(path)[1] == {"trainer": {"max_epochs": 2, "log_every_n_steps": 5}}


def test_a_name_that_yaml_reads_as_a_number_is_one_line(tmp_path: Path, error_of: Callable[..., str]) -> None:
    path = write(tmp_path / "named.yaml", "name: 2024\n")
    for words in (("--ckpt_path=auto",), ("--ckpt_path=last",)):
        assert "name 2024 is not the name of a folder" in error_of("fit", f"--config={path}", *words)
