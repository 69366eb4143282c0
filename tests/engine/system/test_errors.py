"""Which errors of user-defined classes are one line, and which keep their traceback."""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.engine.cli.command import run_command
from src.engine.cli.program import run
from src.engine.system.errors import InputError, constructor_errors, machine_fault
from tests.conftest import write

ErrorOf = Callable[..., str]
HERE = "tests.engine.system.test_errors"


class LayerError(ValueError):
    """A user-defined exception, which keeps its traceback."""


class Fragile(nn.Module):
    """A user-defined network that raises errors.

    Args:
        layers: at least 1.
        wrong: which error to raise, in the constructor or in `forward`; default: none.
    """

    num_classes = 3

    def __init__(self, layers: int = 1, wrong: str = "") -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(
                f"layers {layers} is too small for Fragile: give at least 1"  # not on the line of the `raise`
            )
        _check(wrong)
        if wrong == "library":
            nn.init.calculate_gain("mish")
        if wrong == "layer":
            nn.Dropout(2.0)
        if wrong == "unpacking":
            _, _ = (1, 2, 3)
        if wrong == "number":
            int("a few")
        if wrong == "subclass":
            raise LayerError("no such layer")
        self.layers = layers
        self.wrong = wrong
        self.block = Block()
        self.layer = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.wrong == "size":
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit Fragile")
        if self.wrong == "block size":
            self.block(x)
        if self.wrong == "unpacking in forward":
            _, _ = x.shape
        if self.wrong == "library in forward":
            F.dropout(x, 2.0)
        if self.wrong == "layer in forward":
            nn.BatchNorm2d(64)(x.flatten(1))
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class Block(nn.Module):
    """A block of `Fragile`."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"Block takes (B, 3), not {tuple(x.shape)}")


def _check(wrong: str) -> None:
    if wrong == "check":
        raise ValueError("wrong check is not allowed in Fragile")


REFUSED = [
    ({"layers": 0}, "layers 0 is too small for Fragile: give at least 1"),
    ({"wrong": "check"}, "wrong check is not allowed in Fragile"),
]
BROKEN = [
    ("library", "Unsupported nonlinearity mish"),
    ("layer", "dropout probability has to be between 0 and 1"),
    ("unpacking", "too many values to unpack"),
    ("number", "invalid literal for int"),
    ("subclass", "no such layer"),
]
BROKEN_IN_FORWARD = [
    ("unpacking in forward", "too many values to unpack"),
    ("library in forward", "dropout probability has to be between 0 and 1"),
    ("layer in forward", "expected 4D input"),
]


def options(arguments: dict[str, object]) -> tuple[str, ...]:
    return (f"--model.net={HERE}.Fragile", *(f"--model.net.{name}={value}" for name, value in arguments.items()))


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: tuple[str, ...]) -> Callable[..., None]:
    """Run `src.train` in this process."""

    def begin(*words: str) -> None:
        root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
        monkeypatch.setattr(sys, "argv", ["train", *recipe, *words, root, "--accelerator=cpu"])
        run(time.perf_counter())

    return begin


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_a_constructor_that_rejects_its_arguments_is_one_line(
    arguments: dict[str, object], message: str, error_of: ErrorOf
) -> None:
    assert error_of(*options(arguments)) == message
    with pytest.raises(InputError, match=message), constructor_errors():
        Fragile(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wrong", "message"), BROKEN)
def test_a_bug_in_a_constructor_keeps_its_traceback(wrong: str, message: str, start: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=message):
        start(*options({"wrong": wrong}))
    with pytest.raises(ValueError, match=message) as caught, constructor_errors():
        Fragile(wrong=wrong)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("size", "images of shape (32, 1, 8, 8) do not fit Fragile"),
        ("block size", "Block takes (B, 3), not (32, 1, 8, 8)"),
    ],
)
def test_a_forward_that_rejects_its_input_is_one_line(
    wrong: str, message: str, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(*options({"wrong": wrong}), "--fast_dev_run", "--accelerator=cpu") == message
    monkeypatch.setattr(sys, "argv", ["predict"])
    with pytest.raises(SystemExit) as stop:  # the same in the other commands
        run_command(lambda _: Fragile(wrong=wrong)(torch.zeros(32, 1, 8, 8)))
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(("wrong", "message"), BROKEN_IN_FORWARD)
def test_a_bug_in_forward_keeps_its_traceback(wrong: str, message: str, start: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=message):
        start(*options({"wrong": wrong}), "--fast_dev_run")
    with pytest.raises(ValueError, match=message):
        run_command(lambda _: Fragile(wrong=wrong)(torch.zeros(32, 1, 8, 8)))


def test_an_error_of_a_class_outside_this_project_is_one_line_and_debug_shows_its_traceback(
    error_of: ErrorOf, start: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path / "mynet.py",
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    num_classes = 3\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        raise ValueError('mine, all mine')\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert error_of("--model.net=mynet.Net") == "mine, all mine"
    with pytest.raises(ValueError, match="mine, all mine") as caught:
        start("--model.net=mynet.Net", "--debug")
    assert f'{tmp_path / "mynet.py"}", line 6, in __init__' in "".join(traceback.format_exception(caught.value))


def test_what_torch_cannot_do_deterministically_says_what_works() -> None:
    error = RuntimeError("nll_loss2d_cuda does not have a deterministic implementation, but you set 'torch.use_...")
    assert machine_fault(error) == (
        "nll_loss2d_cuda does not have a deterministic implementation: give --trainer.deterministic warn, which repeats"
        " everything else"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    fault = machine_fault(error)
    assert fault is not None
    assert fault.startswith("too little memory: start again with a smaller batch_size (")
    assert (str(error) or "MemoryError") in fault


@pytest.mark.parametrize(
    "text",
    [
        "The NVIDIA driver on your system is too old (found version 12020).",
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line(text: str) -> None:
    assert (machine_fault(RuntimeError(text)) or "").startswith(f"the GPU cannot be used ({text}): update its driver")
