"""Classes of one's own are rebuilt from a checkpoint with all their arguments."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from src.engine.deploy.inference import Inference
from src.engine.deploy.rebuild import build, load_model
from src.engine.runs.checkpoint import check_names, names_of, read_checkpoint
from src.engine.runs.trust import Trust, checked_class, checked_spec, model_arguments
from src.engine.system.classes import argument_types, parameters_of, present_path, with_present_paths
from src.engine.system.errors import InputError
from tests.conftest import Run, write
from tests.toy import CLASSES, SIDE, ToyData

Train = Callable[..., Run]


class Scale:
    """Not a module: its class is looked up only for an argument that takes anything."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor


class Untyped(nn.Module):
    """Takes objects of any class."""

    def __init__(self, scale=None, other: Any = None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.scale, self.other = scale, other


class Base(nn.Module):
    """A linear layer of the toy images."""

    def __init__(self, sides: tuple[int, int] = (SIDE, SIDE)) -> None:
        super().__init__()
        self.sides = sides
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(sides[0] * sides[1], CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class Passing(Base):
    """Passes on what it does not know."""

    def __init__(self, note: str = "none", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.note = note


class Open(Base):
    """Keeps what it does not know."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options


class Plain(LightningModule):
    """Trains a network, and validates it without a metric."""

    def __init__(self, net: nn.Module, lr: float = 1e-2) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        return F.cross_entropy(self.net(images), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class PassingPlain(Plain):
    """Passes on all but one argument."""

    def __init__(self, note: str = "none", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.note = note


OWN = Trust(modules=(__name__,))
SCALE = f"{__name__}.Scale"


def of(cls: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.{cls}", "init_args": init_args}


@pytest.mark.parametrize("argument", ["scale", "other"])
def test_a_class_for_an_argument_of_any_type_is_built_if_the_users_own_configuration_names_it(argument: str) -> None:
    spec = of("Untyped", **{argument: of("Scale", factor=3.0)})
    named = Trust(names=frozenset({f"{__name__}.Untyped", SCALE}))
    built = build(checked_spec(spec, (nn.Module,), named, "model.net"))
    assert isinstance(getattr(built, argument), Scale)
    assert getattr(built, argument).factor == 3.0
    unnamed = Trust(names=frozenset({f"{__name__}.Untyped"}))
    with pytest.raises(InputError, match=f"model.net.{argument} is a class, but only plain values are allowed"):
        checked_spec(spec, (nn.Module,), unnamed, "model.net")


def test_a_class_for_a_plain_argument_is_refused_whoever_names_it() -> None:
    with pytest.raises(InputError, match=r"model\.net\.note is a class, but only plain values are allowed"):
        checked_spec(of("Passing", note=of("Scale")), (nn.Module,), OWN, "model.net")


def test_arguments_that_are_passed_on_to_a_base_class_have_its_types() -> None:
    assert {"note", "sides"} <= parameters_of(Passing).keys()
    assert "sides" not in parameters_of(Untyped)
    assert argument_types(Passing)["sides"] == tuple[int, int]
    assert build(checked_spec(of("Passing", sides=[2, 3]), (nn.Module,), OWN, "model.net")).sides == (2, 3)


def test_an_argument_that_no_class_takes_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.net has an argument side, which Base does not take"):
        checked_spec(of("Base", side=3), (nn.Module,), OWN, "model.net")


def trained(train: Train, model: dict[str, Any], folder: Path) -> str:
    tree = {"model": model, "data": {"class_path": "tests.toy.ToyData", "init_args": {"size": 60}}}
    run = train("fit", f"--config={write(folder / 'own.yaml', yaml.safe_dump(tree))}", "--max_epochs=1")
    return str(run.folder / "checkpoints" / "last.ckpt")


def test_a_model_that_passes_on_its_arguments_is_built_with_all_of_them(train: Train, tmp_path: Path) -> None:
    path = trained(train, of("PassingPlain", note="kept", net=of("Base", sides=[4, 16]), lr=0.5), tmp_path)
    checkpoint = read_checkpoint(path)
    assert {"note", "net", "lr"} <= model_arguments(checkpoint, OWN)["init_args"].keys()
    model: Any = load_model(checkpoint, "forward", path, OWN)
    assert (model.note, model.lr, model.net.sides) == ("kept", 0.5, (4, 16))
    torch.testing.assert_close(dict(model.state_dict()), dict(checkpoint["state_dict"]))


def test_a_network_that_takes_any_argument_is_built_with_all_of_them(train: Train, tmp_path: Path) -> None:
    path = trained(train, of("Plain", net={**of("Open"), "dict_kwargs": {"depth": 3}}), tmp_path)
    model: Any = load_model(read_checkpoint(path), "forward", path, OWN)
    assert model.net.options == {"depth": 3}


@pytest.mark.parametrize("what", ["labels", "columns"])
def test_a_checkpoint_is_not_used_with_names_in_another_order(what: str) -> None:
    data: Any = SimpleNamespace(input_kind="table", columns=("a", "b"), labels=["x", "y", "z"])
    checkpoint = {"record": {"names": names_of(data)}}
    check_names(checkpoint, data)
    check_names({}, data)
    setattr(data, what, [*getattr(data, what)][::-1])
    with pytest.raises(InputError, match=rf"trained with . {what}, .* has .: number 1 was [ax], is [bz]: restore them"):
        check_names(checkpoint, data)
    setattr(data, what, [])  # not known before `setup`
    check_names(checkpoint, data)


def test_a_run_is_not_tested_with_labels_in_another_order(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    other = train("fit", "--max_epochs=1", "--data.size=96").folder
    monkeypatch.setattr(ToyData, "labels", ToyData.labels[::-1])
    for way in ("test", "fit"):
        with pytest.raises(InputError, match="was trained with 3 labels, ToyData has 3: number 1 was left, is "):
            train(way, f"--run={other}", "--max_epochs=2", "--data.size=96")
    with pytest.raises(InputError, match="was trained with 3 labels, ToyData has 3: number 1 was left, is "):
        Inference(str(other / "checkpoints" / "best.ckpt"), trust=["tests"])


def test_a_class_whose_module_was_renamed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = "src.tasks.classifier.Classifier"
    tree = {
        "model": {"class_path": "src.tasks.gone.Classifier", "init_args": {"net": [{"class_path": "src.gone.None_"}]}}
    }
    found = with_present_paths(tree)
    assert found["model"]["class_path"] == now
    assert found["model"]["init_args"] == tree["model"]["init_args"]  # there is no such class
    assert present_path("torch.nn.Gone") == "torch.nn.Gone"
    trust = Trust((), frozenset({now}))
    assert checked_class("src.tasks.gone.Classifier", (LightningModule,), trust, "model")[0] == now


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (np.array(["a", "b"]), ["a", "b"]),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (5, []),
        (len, []),
        (torch.tensor(3), []),
        (torch.zeros(9), []),  # one for each sample
        (torch.arange(9) / 7, []),
    ],
    ids=str,
)
def test_names_of_any_data_can_be_saved(names: Any, expected: list[str]) -> None:
    data = SimpleNamespace(input_kind="table", columns=names, labels=names)
    assert names_of(data) == {"columns": expected, "labels": expected}
    assert names_of(SimpleNamespace(columns=names))["columns"] == []  # options of other data, not inputs


@pytest.mark.parametrize("record", [["x"], "x", {"names": 3}, {"names": {"labels": {"a": 1}}}], ids=str)
def test_a_strangers_record_of_names_is_not_used(record: Any) -> None:
    check_names({"record": record}, SimpleNamespace(labels=["x"]))


def test_an_argument_without_a_type_may_have_a_class_that_has_moved() -> None:
    now = "src.tasks.weighted_bce.WeightedBCE"
    spec = {"class_path": f"{__name__}.Untyped", "init_args": {"other": {"class_path": "src.gone.WeightedBCE"}}}
    spec["init_args"]["other"]["init_args"] = {"label_weights": [1.0]}  # type: ignore[index]
    trust = Trust((), frozenset({f"{__name__}.Untyped", now}))
    assert checked_spec(spec, (nn.Module,), trust, "model.net")["init_args"]["other"]["class_path"] == now
