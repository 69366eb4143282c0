"""A checkpoint that was tampered with runs nothing: it is one line that names what is wrong."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.engine.deploy.inference import Inference
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.system.errors import InputError
from tests.conftest import Run

Train = Callable[..., Run]
Change = Callable[[dict[str, Any], str], None]


def net(class_path: str, **init_args: Any) -> Change:
    def change(checkpoint: dict[str, Any], marker: str) -> None:
        arguments = {name: marker if value == "MARKER" else value for name, value in init_args.items()}
        checkpoint["hyper_parameters"]["net"] = {"class_path": class_path, "init_args": arguments}

    return change


def put(key: str, value: Any) -> Change:
    def change(checkpoint: dict[str, Any], marker: str) -> None:
        *parents, leaf = key.split("/")
        place = checkpoint
        for name in parents:
            place = place[name]
        place[leaf] = value.replace("MARKER", marker) if isinstance(value, str) else value

    return change


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


SHELL = {"cmd": "touch MARKER", "mode": "r", "buffering": -1}
PAYLOADS: dict[str, tuple[Change, str]] = {
    "a function that returns a module": (
        net("torch.fx.symbolic_trace", root="os.popen", concrete_args=SHELL),
        "model.net is torch.fx.symbolic_trace, a class that is not of this project",
    ),
    "functools.partial": (net("functools.partial", func="os.mkdir", path="MARKER"), "model.net is functools.partial"),
    "a function of torch.nn": (net("torch.nn.functional.relu", input=1), "model.net is torch.nn.functional.relu"),
    "a module of torch.nn": (net("torch.nn.init", tensor=1), "model.net is torch.nn.init"),
    "a file in place of a device": (
        net("torch.nn.Linear", in_features=1, out_features=1, device={"class_path": "tempfile.NamedTemporaryFile"}),
        "model.net.device is ",
    ),
    "a function by its name": (
        net("torch.nn.TransformerEncoderLayer", d_model=4, nhead=1, activation="os.abort"),
        "model.net.activation is 'os.abort'",
    ),
    "an argument that is not there": (net("torch.nn.ReLU", path="x", nope=1), "model.net"),
    "a class of another kind": (net("torch.optim.SGD"), "model.net is torch.optim.SGD"),
    "a callback": (net("lightning.pytorch.callbacks.LambdaCallback"), "model.net is lightning"),
    "a module that does something on import": (put("hyper_parameters/_class_path", "this.s"), "model is this.s"),
    "a class path that is none": (put("hyper_parameters/_class_path", "os; import os"), "which is not a class"),
    "a class path that is a list": (put("hyper_parameters/_class_path", ["os"]), "which is not a class"),
    "a loss that is a function": (put("hyper_parameters/loss", {"class_path": "subprocess.getoutput"}), "model.loss"),
    "hyperparameters that are text": (put("hyper_parameters", "x"), "hyper_parameters"),
    "hyperparameters that are nested": (put("hyper_parameters/num_classes", nested(300)), "levels"),
    "a configuration that calls": (put("config", "!!python/object/apply:os.mkdir [MARKER]"), "config"),
    "a configuration that is no YAML": (put("config", "a: ["), "config"),
    "a configuration that is a number": (put("config", 3), "config"),
    "data that is a function": (put("config", "data: {class_path: os.mkdir, init_args: {path: MARKER}}"), "data is os"),
    "an optimizer that is a function": (put("config", "optimizer: {class_path: os.abort}"), "optimizer is os.abort"),
    "no weights": (put("state_dict", {}), "state_dict"),
    "weights that are numbers": (put("state_dict", {"a": 1}), "state_dict"),
}


@pytest.fixture
def tampered(toy_checkpoint: str, tmp_path: Path) -> Callable[[Change], str]:
    def make(change: Change) -> str:
        checkpoint = copy.deepcopy(read_checkpoint(toy_checkpoint))
        change(checkpoint, str(tmp_path / "marker"))
        torch.save(checkpoint, tmp_path / "tampered.ckpt")
        return str(tmp_path / "tampered.ckpt")

    return make


@pytest.mark.parametrize("kind", PAYLOADS)
def test_what_a_checkpoint_may_not_name_is_one_line_and_does_nothing(
    kind: str, tampered: Callable[[Change], str], train: Train, tmp_path: Path
) -> None:
    change, message = PAYLOADS[kind]
    path = tampered(change)
    before = set(sys.modules)
    with pytest.raises(InputError) as caught:
        Inference(path, trust=["tests.toy"])
    assert message in str(caught.value)
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        train("test", f"--ckpt_path={path}")
    assert not (tmp_path / "marker").exists()
    assert "this" not in set(sys.modules) - before


def test_callbacks_profilers_and_loggers_of_a_checkpoint_are_not_built(
    tampered: Callable[[Change], str], train: Train, tmp_path: Path
) -> None:
    def change(checkpoint: dict[str, Any], marker: str) -> None:
        callback = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_test_start: os.abort}}"
        profiler = f"{{class_path: lightning.pytorch.profilers.SimpleProfiler, init_args: {{dirpath: {marker}}}}}"
        logger = f"{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {marker}}}}}"
        data = "{class_path: tests.toy.ToyData}"
        trainer = f"{{callbacks: [{callback}], profiler: {profiler}, logger: {logger}}}"
        checkpoint["config"] = f"data: {data}\ntrainer: {trainer}\n"

    run = train("test", f"--ckpt_path={tampered(change)}")
    assert run.metrics["test/acc"] > 0.9
    assert not (tmp_path / "marker").exists()


def test_classes_of_other_packages_need_the_users_word(toy_checkpoint: str) -> None:
    with pytest.raises(InputError, match=r"model.net is tests.toy.ToyNet, .* add --trust tests.toy"):
        Inference(toy_checkpoint)
    assert Inference(toy_checkpoint, trust=["tests.toy"]).labels == ["left", "middle", "right"]
