import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.tensorboard.network_pictures import NetworkPictures
from tests.conftest import Run
from tests.engine.tensorboard.toys import FLAT
from tests.toy import SIDE, ToyNet

Train = Callable[..., Run]
SHORT = ("--max_epochs=1", "--trainer.limit_train_batches=2")
BATCH = "network/a batch after augmentation"


def shown(folder: Path) -> Any:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def pixels(events: Any, tag: str) -> Any:
    (image,) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [(), ("fit",)])
def test_an_image_network_shows_its_batch_its_filters_and_its_graph_once(train: Train, stage: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        events = shown(train(*stage, "--trainer.limit_train_batches=2", "--max_epochs=2").folder)
    assert b"conv" in events.Graph().SerializeToString()
    assert pixels(events, "network/filters of the first layer").std() > 10
    batch = pixels(events, BATCH)
    assert batch.shape == (4 * (SIDE + 2), 8 * (SIDE + 2))
    assert batch.std() > 10


@pytest.mark.slow
def test_the_batch_is_shown_as_the_network_sees_it(train: Train) -> None:
    plain = pixels(shown(train("fit", *SHORT).folder), BATCH).astype(int)
    data = "--data=tests.engine.tensorboard.toys.NegativeData"
    negative = pixels(shown(train("fit", *SHORT, data).folder), BATCH).astype(int)
    image = (slice(1, 1 + SIDE), slice(1, 1 + SIDE))  # the first, without the frame
    assert abs(plain[image] + negative[image] - 255).max() <= 1


def test_a_network_for_other_data_gets_a_graph_but_no_pictures(train: Train) -> None:
    events = shown(train("fit", *SHORT, *FLAT).folder)
    assert b"layers" in events.Graph().SerializeToString()
    assert not [tag for tag in events.Tags()["images"] if tag.startswith("network/")]


def test_drawing_does_not_change_the_network(tmp_path: Path) -> None:
    net = ToyNet(dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger], global_step=0)
    task: Any = SimpleNamespace(net=net, modules=net.modules, device=torch.device("cpu"))
    pictures = NetworkPictures()
    pictures.on_train_batch_start(trainer, task, (torch.ones(4, 1, SIDE, SIDE), torch.zeros(4)), 0)
    pictures.on_fit_end(trainer, task)
    logger.experiment.close()
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert b"conv" in shown(tmp_path).Graph().SerializeToString()


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_pictures(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = train(*SHORT)
    monkeypatch.setattr(NetworkPictures, "on_train_batch_start", lambda *_: None)
    plain = train(*SHORT)
    assert BATCH in shown(drawn.folder).Tags()["images"]
    assert BATCH not in shown(plain.folder).Tags()["images"]
    assert plain.metrics["test/loss"] == drawn.metrics["test/loss"]
    assert all(torch.equal(value, drawn.weights[name]) for name, value in plain.weights.items())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_part_of_a_batch_may_be_sparse() -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[])
    task: Any = SimpleNamespace(net=ToyNet(), modules=ToyNet().modules)
    pictures = NetworkPictures()
    images = torch.ones(40, 1, SIDE, SIDE)
    pictures.on_train_batch_start(trainer, task, (images, torch.eye(40).to_sparse_csr()), 0)
    assert [part.shape for part in pictures._batch] == [(32, 1, SIDE, SIDE)]
    pictures.on_fit_end(trainer, task)


@pytest.mark.slow
def test_a_run_without_a_test_has_pictures_too(train: Train) -> None:
    run = train("--max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=0")
    assert "network/filters of the first layer" in shown(run.folder).Tags()["images"]
