import shutil
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch._dynamo.backends.distributed import DDPOptimizer

from src.engine.cli import program
from src.engine.cli.cli import StarterCLI
from src.engine.parts.compile import Compilation, _half, input_error
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier
from tests import toy
from tests.conftest import QUIET, Run, write

Train = Callable[..., Run]
SHORT = ("fit", "--max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=1")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Compile by tracing alone, which needs no C++ compiler and changes no number."""
    compiled: list[torch.nn.Module] = []
    compile_module = torch.nn.Module.compile

    def trace(self: torch.nn.Module) -> None:
        compiled.append(self)
        compile_module(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_compiled_run_equals_the_plain_one_in_weights_and_in_checkpoint_keys(
    precision: str, train: Train, eager: list[torch.nn.Module]
) -> None:
    words = (*SHORT, "--model.net.dropout=0.5", f"--precision={precision}")
    plain = train(*words)
    compiled = train(*words, "--compile")
    assert eager == [compiled.cli.model.net]
    assert list(plain.weights) == list(compiled.weights)
    assert all(torch.equal(value, compiled.weights[name]) for name, value in plain.weights.items())
    assert compiled.metrics["compile_seconds"] > 0
    assert "compile_seconds" not in plain.metrics


def test_a_smaller_batch_keeps_its_form() -> None:
    x = torch.zeros(4, 2)
    assert {name: len(part) for name, part in _half({"x": x, "y": x}).items()} == {"x": 3, "y": 3}
    halved = _half({"weights": torch.zeros(10), "x": x, "y": x})
    assert {name: len(part) for name, part in halved.items()} == {"weights": 10, "x": 3, "y": 3}
    pair = namedtuple("Pair", "x y")(x, [x, x])
    assert [len(part) for part in (_half(pair).x, *_half(pair).y)] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "expected"), [(192, [False]), (150, [False, True])])  # in batches of 64
def test_all_is_compiled_before_training_and_for_one_size_if_all_its_batches_have_it(
    size: int, expected: list[bool], parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[str] = []
    is_any_size: list[bool] = []  # of each graph for training
    compile_module = torch.nn.Module.compile
    now = ["before"]

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        graphs.append(now[0])
        if torch.is_grad_enabled():
            is_any_size.append(any(isinstance(one, torch.SymInt) for one in inputs))
        return graph

    class Begun(Callback):
        def on_sanity_check_start(self, *_: object) -> None:
            now[0] = "in training"

    torch.compiler.reset()  # it remembers the sizes of other tests
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    # Not a convolution: on some CPUs torch compiles it again for batches of fewer than 16, which it computes otherwise.
    words = ("--trainer.enable_checkpointing=false", "--trainer.logger=false", "--model.net=tests.toy.ToyMLP")
    cli = parse("fit", "--max_epochs=2", "--compile", f"--data.size={size}", "--data.batch_size=64", *words)
    cli.trainer.callbacks.append(Begun())
    cli.run()
    assert set(graphs) == {"before"}
    assert is_any_size == expected


@pytest.mark.slow
def test_with_ddp_the_network_is_split_where_gradients_are_sent(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    split, compile_fn = [], DDPOptimizer.compile_fn
    compile_module = torch.nn.Module.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    monkeypatch.setattr(DDPOptimizer, "compile_fn", lambda *given: (split.append(1), compile_fn(*given))[1])
    train(*SHORT, "--compile", "--strategy=ddp", "--devices=1", "--model.net=tests.toy.ToyMLP")
    assert split


def test_a_network_whose_losses_would_not_be_compiled_is_refused(train: Train) -> None:
    class WithLosses(toy.ToyNet):
        losses = None

    with pytest.raises(InputError, match="--compile does not reach the losses that WithLosses computes: leave it out"):
        Compilation().setup(SimpleNamespace(), Classifier(WithLosses()), "fit")  # type: ignore[arg-type]


def test_compiling_a_model_without_a_network_is_one_line(train: Train) -> None:
    with pytest.raises(InputError, match=r"--compile needs a task such as \w*Classifier, not BoringModel"):
        train(*SHORT, "--compile", "--model=lightning.pytorch.demos.boring_classes.BoringModel")


class CompilerError(RuntimeError):
    """An error of torch's compiler."""

    __module__ = "torch._inductor.exc"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_compiler_error_is_one_line(
    stage: str,
    train: Train,
    eager: list[torch.nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise CompilerError("no working C++ compiler\nand a long story")

    checkpoint = train(*SHORT).folder / "checkpoints" / "last.ckpt"
    monkeypatch.setattr(Classifier, "forward", fail)
    given = write(tmp_path / "compiled.yaml", "compile: true\n")
    words = [stage, f"--config={toy.RECIPE}", f"--config={given}", *QUIET, f"--trainer.default_root_dir={tmp_path}"]
    words += [f"--ckpt_path={checkpoint}"] if stage == "validate" else []
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as stop:
        program.run(time.perf_counter())
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "--compile: torch cannot compile this network here (no working C++ compiler): leave it out" in line


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs g++")
def test_the_real_compiler_trains_and_its_checkpoint_is_tested_without_it(train: Train) -> None:
    exact = ("--precision=32-true", "--trainer.limit_val_batches=1")
    run = train(*SHORT, "--model.net=tests.toy.ToyMLP", "--model.net.hidden=8", "--compile", *exact)
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    again = train("validate", f"--ckpt_path={checkpoint}", "--trust=tests.toy", *exact)
    assert again.cli.model.net._compiled_call_impl is None
    assert again.metrics["val/loss"] == pytest.approx(run.metrics["val/loss"], rel=1e-4)
    task = Classifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert task.net._compiled_call_impl is None
    assert not any("_orig_mod" in name for name in run.weights)


def test_errors_of_torchs_compiler_are_known_by_where_they_are_defined() -> None:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    for kind in (TorchDynamoException, InductorError, CompilerError):
        error = input_error(kind.__new__(kind), SimpleNamespace(compile=True))
        assert str(error) == f"--compile: torch cannot compile this network here ({kind.__name__}): leave it out"
        assert input_error(kind.__new__(kind), SimpleNamespace(compile=False)) is None
    assert input_error(RuntimeError("an own error"), SimpleNamespace(compile=True)) is None
