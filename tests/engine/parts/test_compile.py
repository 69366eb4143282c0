import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from src.engine.cli import program
from src.engine.cli.cli import StarterCLI
from src.engine.parts.compile import is_compiler_error
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


@pytest.mark.slow
def test_nothing_is_compiled_once_training_has_begun(
    parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[str] = []
    compile_module = torch.nn.Module.compile
    now = ["before"]

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(now[0])
        return graph

    class Begun(Callback):
        def on_sanity_check_start(self, *_: object) -> None:
            now[0] = "in training"

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=backend))
    # Not a convolution: on some CPUs torch compiles it again for batches of fewer than 16, which it computes otherwise.
    words = ("--trainer.enable_checkpointing=false", "--trainer.logger=false", "--model.net=tests.toy.ToyMLP")
    cli = parse("fit", "--max_epochs=2", "--compile", *words)
    cli.trainer.callbacks.append(Begun())
    cli.run()
    assert graphs
    assert set(graphs) == {"before"}


def test_compiling_a_model_without_a_network_is_one_line(train: Train) -> None:
    with pytest.raises(InputError, match=r"--compile needs a task such as \w*Classifier, not BoringModel"):
        train(*SHORT, "--compile", "--model=lightning.pytorch.demos.boring_classes.BoringModel")


def break_compiler(monkeypatch: pytest.MonkeyPatch, text: str = "no working C++ compiler\nand a long story") -> None:
    class CompilerError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(*_: object) -> None:
        raise CompilerError(text)

    monkeypatch.setattr(Classifier, "forward", fail)


@pytest.mark.slow
def test_a_compiler_error_is_one_line(
    train: Train, eager: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_compiler(monkeypatch)
    with pytest.raises(InputError, match=r"--compile: torch cannot compile .*\(no working C\+\+ compiler\): leave it"):
        train(*SHORT, "--compile")
    break_compiler(monkeypatch, text="")
    with pytest.raises(InputError, match=r"cannot compile this network here \(CompilerError\): leave it out"):
        train(*SHORT, "--compile")


@pytest.mark.slow
def test_a_compiler_error_in_an_evaluation_is_one_line_too(
    train: Train,
    eager: list[torch.nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = train(*SHORT).folder / "checkpoints" / "last.ckpt"
    break_compiler(monkeypatch)
    given = write(tmp_path / "compiled.yaml", "compile: true\n")
    words = ["validate", f"--config={toy.RECIPE}", f"--config={given}", f"--ckpt_path={checkpoint}", *QUIET]
    monkeypatch.setattr(sys, "argv", ["train", *words, f"--trainer.default_root_dir={tmp_path}"])
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

    for kind in (TorchDynamoException, InductorError):
        assert is_compiler_error(kind.__new__(kind)), kind
    assert not is_compiler_error(RuntimeError("an own error"))
