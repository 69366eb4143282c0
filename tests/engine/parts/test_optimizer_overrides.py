from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace

from src.engine.cli import cli
from src.engine.parts.optimizer_overrides import OptimizerOverrides, retry_arguments
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks
from src.engine.training.checks import check_unchanged
from src.engine.training.finite_loss import NotFiniteError
from tests import toy
from tests.conftest import Run

Train = Callable[..., Run]
NEW = f"--config={toy.RECIPE}"
SHORT = ("fit", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """No recipe: a resumed run takes its checkpoint's, which names classes of the tests."""
    return ("--trust=tests.toy",)


def last(run: Run) -> str:
    return str(run.folder / "checkpoints" / "last.ckpt")


def test_a_resumed_run_keeps_the_checkpoints_optimizer_and_schedule(train: Train) -> None:
    schedule = ("--lr_scheduler=StepLR", "--lr_scheduler.step_size=1000", "--lr_scheduler.gamma=0.3")
    first = train(NEW, *SHORT, "--max_epochs=1", "--optimizer=SGD", "--optimizer.lr=0.02", *schedule)
    config = train(*SHORT, "--max_epochs=2", "--ckpt_path", last(first)).cli.config
    assert (config.optimizer.class_path.rpartition(".")[2], config.optimizer.init_args.lr) == ("SGD", 0.02)
    assert config.lr_scheduler.init_args.gamma == 0.3


@pytest.mark.slow
def test_new_arguments_override_the_checkpoints(train: Train) -> None:
    schedule = ("--lr_scheduler=StepLR", "--lr_scheduler.step_size=4", "--lr_scheduler.gamma=0.1")
    first = train(NEW, *SHORT, "--max_epochs=1", "--optimizer=SGD", "--optimizer.lr=1.0", *schedule)
    changed = ("--optimizer=SGD", "--optimizer.lr=0.5", "--optimizer.weight_decay=0.25", "--lr_scheduler.gamma=0.5")
    second = train(*SHORT, "--max_epochs=2", "--ckpt_path", last(first), *changed)
    group = second.cli.trainer.optimizers[0].param_groups[0]
    assert second.cli.trainer.global_step == 6
    assert group["weight_decay"] == 0.25
    assert group["lr"] == pytest.approx(0.5 * 0.5)  # one step of the schedule after the fourth batch


def test_a_parameter_group_with_its_own_value_keeps_it() -> None:
    spec = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.99]}}
    now = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "weight_decay": 0.5, "betas": [0.8, 0.99]}}
    groups = [{"weight_decay": 0.01, "betas": (0.9, 0.99)}, {"weight_decay": 0.0, "betas": (0.9, 0.99)}]
    checkpoint = {"optimizer_states": [{"param_groups": groups}], "lr_schedulers": []}
    OptimizerOverrides({"optimizer": spec}, {"optimizer": now}).on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [group["betas"] for group in groups] == [[0.8, 0.99]] * 2


def test_weight_decay_cannot_be_changed_where_groups_cannot_be_told_apart() -> None:
    saved, now = (
        {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": value}}} for value in (0.0, 0.1)
    )
    checkpoint = {"optimizer_states": [{"param_groups": [{"weight_decay": 0.0, "hidden": False}]}], "lr_schedulers": []}
    with pytest.raises(InputError, match="weight_decay cannot be changed from 0 in a continued run"):
        OptimizerOverrides(saved, now).on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_changed_learning_rate_scales_the_rest_of_a_cycle(train: Train) -> None:
    first = train(NEW, *SHORT, "--max_epochs=1", "--lr_scheduler.total_steps=9")
    path = last(first)
    rates = []
    for options in ((), ("--optimizer.lr=1.0",)):
        run = train(*SHORT, "--max_epochs=2", "--lr_scheduler.total_steps=9", "--ckpt_path", path, *options)
        rates.append(run.cli.trainer.optimizers[0].param_groups[0]["lr"])
    assert rates[1] == pytest.approx(100 * rates[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--optimizer=SGD",), "--optimizer SGD does not fit the state in the checkpoint, which is of AdamW"),
        (("--lr_scheduler=CosineAnnealingLR",), "--lr_scheduler CosineAnnealingLR does not fit the state"),
        (("--lr_scheduler.div_factor=5",), "--lr_scheduler.div_factor cannot be changed in a continued run"),
    ],
)
def test_an_optimizer_that_does_not_fit_the_saved_state_is_an_error_only_in_training(
    train: Train, toy_checkpoint: str, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(*SHORT, "--max_epochs=5", "--ckpt_path", toy_checkpoint, *words)
    assert train("test", "--ckpt_path", toy_checkpoint, *words).metrics["test/loss"] > 0


@pytest.mark.parametrize("name", ["lr", "head_lr", "learning_rate"])
def test_a_learning_rate_of_the_model_cannot_be_changed(name: str) -> None:
    before, now = ({"model": {"class_path": "Own", "init_args": {name: lr, "flr": lr}}} for lr in (0.1, 0.2))
    with pytest.raises(InputError, match=rf"^--model.{name} 0.2 cannot be changed in a continued run"):
        OptimizerOverrides(before, now)
    OptimizerOverrides(before, before)


def test_a_learning_rate_in_an_argument_of_the_model_cannot_be_changed() -> None:
    def spec(lr: float) -> dict[str, Any]:
        made = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr, "eps": lr}}
        return {"model": {"class_path": "Own", "init_args": {"optimizer": made}}}

    with pytest.raises(InputError, match=r"^--model\.optimizer\.lr 0\.2 cannot be changed in a continued run"):
        OptimizerOverrides(spec(0.1), spec(0.2))
    OptimizerOverrides(spec(0.1), spec(0.1))


@pytest.mark.parametrize(("name", "argument"), [("OneCycleLR", "total_steps"), ("CosineAnnealingLR", "T_max")])
def test_a_schedule_that_may_have_another_length_sees_the_one_of_the_checkpoint(name: str, argument: str) -> None:
    path = f"src.engine.training.optim.schedulers.{name}"
    before, now = ({"lr_scheduler": {"class_path": path, "init_args": {argument: length}}} for length in (10, 20))
    state = {argument: 10, "last_epoch": 5}
    checkpoint: dict[str, Any] = {"optimizer_states": [], "lr_schedulers": [state]}
    OptimizerOverrides(before, now).on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    assert state[argument] == 10


def test_a_negative_number_of_retries_is_one_line(error_of: Callable[..., str]) -> None:
    assert error_of(NEW, "--retries=-1") == "--retries -1 is too small: give at least 0"


@pytest.mark.slow
def test_without_this_part_a_run_goes_on_with_its_own_optimizer_only(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "hooks", lambda name: [] if name == "OptimizerOverrides" else hooks(name))
    path = last(train(NEW, *SHORT, "--max_epochs=1"))
    assert train(*SHORT, "--max_epochs=2", "--ckpt_path", path).cli.trainer.global_step == 6
    with pytest.raises(InputError, match=r"^--optimizer\.lr 0\.5 cannot be changed in a continued run: leave it out$"):
        train(*SHORT, "--max_epochs=2", "--ckpt_path", path, "--optimizer.lr=0.5")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}, "--optimizer SGD"),
        ({"optimizer": {"class_path": "own.Adam", "init_args": {"lr": 0.1}}}, "--optimizer Adam"),
        ({"optimizer": None}, "--optimizer None"),
        ({"lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1}}}, "--lr_scheduler StepLR"),
        ({"model": {"class_path": "Own", "init_args": {"head_lr": 0.2, "flr": 0.1}}}, "--model.head_lr 0.2"),
        ({"model": {"class_path": "Own", "init_args": {"groups": [{"lr": 2}]}}}, "--model.groups.lr 2"),
    ],
)
def test_without_this_part_what_a_restored_optimizer_would_not_notice_is_refused(
    now: dict[str, Any], message: str
) -> None:
    saved = {
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}},
        "model": {"class_path": "Own", "init_args": {"head_lr": 0.1, "flr": 0.1, "groups": [{"lr": 1}]}},
    }
    own = {"class_path": "Own", "init_args": {"head_lr": 0.1, "flr": 0.3}}
    check_unchanged(saved, {**saved, "model": own})
    newer = {
        "class_path": "Own",
        "init_args": {"head_lr": 0.1, "flr": 0.1, "body_lr": 0.3},
    }  # its class got an argument
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "fused": True}}  # and Adam too
    check_unchanged(saved, {"optimizer": adam, "model": newer})
    with pytest.raises(InputError, match=rf"^{message} cannot be changed in a continued run: leave it out$"):
        check_unchanged(saved, {**saved, **now})


def test_retries_are_written_only_if_there_are_some(train: Train) -> None:
    for words, expected in (((), []), (("--retries=2",), ["retries: 2"])):
        text = (train(NEW, *SHORT, "--max_epochs=1", *words).folder / "config.yaml").read_text()
        assert [line for line in text.splitlines() if line.startswith("retries")] == expected


def test_a_retry_from_the_beginning_halves_every_learning_rate() -> None:
    optimizer = {"class_path": "x.MuonWithAdamW", "init_args": {"lr": 0.02, "adamw_lr": 0.01, "weight_decay": 0.1}}
    model = {"class_path": "x.TextClassifier", "init_args": {"head_lr": 1e-3, "net": {"class_path": "x.Net"}}}
    config = Namespace(optimizer=Namespace(optimizer), model=Namespace(model), retries=2)
    cli: Any = SimpleNamespace(config=config, record=None, from_path=None)
    words = retry_arguments(cli, NotFiniteError("the loss is NaN"), ["fit"])
    assert words == [
        "fit",
        "--optimizer.lr=0.01",
        "--optimizer.adamw_lr=0.005",
        "--model.head_lr=0.0005",
        "--retries=1",
    ]
    cli.from_path = "other.ckpt"  # whose rates are all scaled
    assert retry_arguments(cli, NotFiniteError("the loss is NaN"), []) == ["--optimizer.lr=0.01", "--retries=1"]


def test_advice_after_a_nan_names_retries_only_to_who_gave_none_and_can() -> None:
    config: Any = Namespace(optimizer=Namespace({"init_args": {"lr": 0.1}}), retries=0)
    cli: Any = SimpleNamespace(config=config, record=None, given={})
    with pytest.raises(NotFiniteError, match="or retry at half the learning rate with --retries 3; there is no"):
        retry_arguments(cli, NotFiniteError("the loss is NaN"), [])
    cli.given = {"retries": "1"}
    with pytest.raises(NotFiniteError, match=r"^the loss is NaN; there is no checkpoint"):
        retry_arguments(cli, NotFiniteError("the loss is NaN"), [])
    cli.given, config.optimizer = {}, None  # the model makes its own
    with pytest.raises(NotFiniteError, match=r"^the loss is NaN; there is no checkpoint"):
        retry_arguments(cli, NotFiniteError("the loss is NaN"), [])
