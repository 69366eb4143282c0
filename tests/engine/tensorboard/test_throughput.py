import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.system import cores
from src.engine.system.errors import InputError
from src.engine.tensorboard import throughput
from src.engine.tensorboard.throughput import faster_data, training_flops
from src.engine.training import default_callbacks
from src.tasks.classifier import Classifier
from tests.conftest import Run
from tests.engine.training.toys import TOKENS
from tests.toy import CLASSES, SIDE, ToyImages, ToyMLP, ToyNet

Train = Callable[..., Run]
PROFILER = ("--trainer.profiler=simple",)
SHORT = ("fit", "--max_epochs=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=4")


def test_samples_per_second_are_logged_at_log_steps(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    run = train(*SHORT, "--trainer.limit_train_batches=9", "--data.batch_size=10")
    events = EventAccumulator(str(run.folder)).Reload().Scalars("speed/samples_per_second")
    assert [event.step for event in events] == [3, 7]
    assert [event.value for event in events] == [40, 40]  # four batches of ten, and the clock moves by being read
    assert "speed/mfu" not in run.metrics  # the peak of a CPU is not known
    assert "speed/tokens_per_second" not in run.metrics


def test_text_is_counted_in_tokens(train: Train) -> None:
    metrics = train(*SHORT, *TOKENS, "--trainer.limit_train_batches=8").metrics
    length = SIDE * SIDE
    assert metrics["speed/tokens_per_second"] == pytest.approx(length * metrics["speed/samples_per_second"], rel=1e-4)


@pytest.mark.slow
def test_mfu_is_the_flops_divided_by_the_chips_peak(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1e12)
    run = train(*SHORT, "--trainer.limit_train_batches=8", "--data.batch_size=10")
    batch = (torch.zeros(10, 1, SIDE, SIDE), torch.zeros(10))
    rate = run.metrics["speed/samples_per_second"] / 10 * training_flops(ToyNet(), batch)
    assert run.metrics["speed/mfu"] == pytest.approx(rate / 1e12, rel=1e-3)


def test_flops_of_a_perceptron_equal_a_manual_count() -> None:
    first, second = 2 * 10 * SIDE * SIDE * 16, 2 * 10 * 16 * CLASSES
    # Backward each layer has as many for its weights, and the second as many again for its input.
    assert training_flops(ToyMLP(hidden=16), (torch.zeros(10, SIDE * SIDE), torch.zeros(10))) == 2 * first + 3 * second


def test_counting_flops_copies_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (torch.zeros(10, 1, SIDE, SIDE), torch.zeros(10))
    expected = training_flops(ToyNet(), batch)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *_: pytest.fail("copied"))
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda *_: pytest.fail("copied"))
    assert training_flops(ToyNet(), batch) == expected > 0


def test_mfu_counts_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(throughput, "training_flops", lambda _, batch: 100.0 * len(batch[0]))
    monkeypatch.setattr(throughput.time, "perf_counter", itertools.count().__next__)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(log_every_n_steps=1, precision="32-true", strategy=strategy, global_step=0)
    trainer.world_size, trainer.callback_metrics, trainer.loggers, trainer.profiler = 1, {}, [], None
    callback, found = throughput.Throughput(), []
    module: Any = SimpleNamespace(net=None)
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    for size in (4, 40):
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, (torch.zeros(size, 3), torch.zeros(size)), 0)
        found.append(trainer.callback_metrics["speed/mfu"].item())
    assert found[1] == pytest.approx(10 * found[0])


@pytest.mark.slow
def test_a_network_whose_flops_cannot_be_counted_trains_without_mfu(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncountable(*_: object) -> float:
        raise NotImplementedError("no meta tensors here")

    monkeypatch.setattr(throughput, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(throughput, "training_flops", uncountable)
    run = train(*SHORT, "--trainer.limit_train_batches=8")
    assert run.metrics["speed/samples_per_second"] > 0
    assert "speed/mfu" not in run.metrics


@pytest.mark.slow
def test_throughput_needs_log_steps(train: Train) -> None:
    short = ("fit", "--trainer.log_every_n_steps=0")
    run = train(*short, "--trainer.limit_train_batches=2", "--max_epochs=1")
    assert not any(name.startswith("speed/") for name in run.metrics)
    with pytest.raises(InputError, match="Throughput needs log steps"):
        train(*short, "--trainer.callbacks+=Throughput")


def waits(train: Train, monkeypatch: pytest.MonkeyPatch, share: float, *words: str) -> list[str]:
    """What a run says if each step takes a second and waits for data for a share of it."""
    clock = {"now": 0.0}
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    monkeypatch.setattr(default_callbacks, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    read, step = ToyImages.__getitems__, Classifier.training_step

    def slow_read(*args: Any) -> Any:
        clock["now"] += share
        return read(*args)

    def slow_step(*args: Any) -> Any:
        clock["now"] += 1 - share
        return step(*args)

    monkeypatch.setattr(ToyImages, "__getitems__", slow_read)
    monkeypatch.setattr(Classifier, "training_step", slow_step)
    run = train(*SHORT, "--max_epochs=3", "--data.batch_size=10", *words)  # 30 steps an epoch
    return [line for line in run.messages if line.startswith("Training waits")]


@pytest.mark.slow
def test_a_run_that_waits_for_data_says_once_what_to_type(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)
    assert waits(train, monkeypatch, 0.3) == ["Training waits for data 30% of the time: give --data.num_workers 4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "words"), [(0.15, ()), (0.3, ("--max_epochs=1", "--trainer.limit_train_batches=20")), (0.3, PROFILER)]
)
def test_a_run_that_hardly_waits_or_is_short_says_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, share: float, words: tuple[str, ...]
) -> None:
    assert waits(train, monkeypatch, share, *words) == []


def test_advice_names_only_options_that_exist_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice(device: str = "cuda", workers: int = 0, processes: int = 1, **options: object) -> str:
        monkeypatch.setattr(cores, "usable_cores", lambda: 8)
        strategy, loader = SimpleNamespace(root_device=torch.device(device)), SimpleNamespace(num_workers=workers)
        sizes = {"world_size": processes, "num_nodes": 1}
        return faster_data(
            SimpleNamespace(datamodule=SimpleNamespace(**options), train_dataloader=loader, strategy=strategy, **sizes)
        )

    assert advice(cache=False, num_workers=0) == "give --data.cache true or --data.num_workers 7"
    assert advice(cache=False, num_workers="auto", device="cpu") == "give --data.cache true"
    assert advice(cache=True, num_workers=2, workers=2, processes=2) == "give --data.num_workers 3"
    assert advice() == "give the DataLoader of the training part num_workers=7"
    assert advice(cache=True, num_workers=7, workers=7).startswith("store smaller or simpler files")


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989.4e12), ("NVIDIA H100 NVL", 835.5e12), ("NVIDIA L40S", 362e12)]
)
def test_the_peak_of_a_chip_is_without_sparsity(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    assert throughput.peak_flops(torch.device("cuda"), torch.bfloat16) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA RTX A4000")
    assert throughput.peak_flops(torch.device("cuda"), torch.bfloat16) not in throughput.DENSE.values()  # no A40
    assert throughput.peak_flops(torch.device("cpu"), torch.bfloat16) is None
