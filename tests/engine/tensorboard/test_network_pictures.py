import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from src.engine.tensorboard.network_pictures import NetworkPictures
from src.vision.vgg import VGG
from tests.conftest import Run

Train = Callable[..., Run]
CNN = ("--model.net=CNN", "--model.net.width=4", "--model.net.hidden=8", "--trainer.limit_train_batches=2")


def shown(run: Run) -> Any:
    return EventAccumulator(str(run.folder), size_guidance={"images": 0}).Reload()


def pixels(events: Any, tag: str) -> Any:
    (image,) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))


@pytest.mark.parametrize("stage", [(), ("fit",)])
def test_an_image_network_shows_its_batch_its_filters_and_its_graph_once(train: Train, stage: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        events = shown(train(*stage, *CNN, "--max_epochs=2"))
    assert b"conv1" in events.Graph().SerializeToString()
    filters = pixels(events, "network/filters of the first layer")
    assert filters.std() > 10
    batch = pixels(events, "network/a batch after augmentation")
    assert batch.shape == (2 + 4 * 30, 2 + 8 * 30)
    assert batch.std() > 10


def test_the_batch_is_shown_as_the_network_sees_it(train: Train) -> None:
    still = ("--data.max_shift=0", "--data.max_rotation=0", "--data.max_scale=0")
    same = [
        pixels(shown(train("fit", *CNN, "--max_epochs=1", *more)), "network/a batch after augmentation")
        for more in (still, still, ())
    ]
    assert (same[0] == same[1]).all()
    assert (same[0] != same[2]).mean() > 0.05


def test_a_transformer_has_a_graph(train: Train) -> None:
    words = ("--config=configs/text/language_id.yaml", "--model.net.d_model=16", "--trainer.limit_train_batches=2")
    events = shown(train(*words, "--max_epochs=1", sample=False))
    assert b"blocks" in events.Graph().SerializeToString()
    assert not [tag for tag in events.Tags()["images"] if tag.startswith("network/")]


def test_a_network_is_drawn_without_a_trace_in_it(tmp_path: Path) -> None:
    net = VGG(width=4, dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batch = (torch.randn(4, 1, 28, 28), torch.zeros(4))
    random = torch.get_rng_state()
    with SummaryWriter(str(tmp_path)) as writer:
        NetworkPictures()._draw_graph(writer, SimpleNamespace(net=net), batch)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert b"features" in EventAccumulator(str(tmp_path)).Reload().Graph().SerializeToString()


def test_drawing_changes_neither_the_network_nor_the_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = train(*CNN, "--max_epochs=1").metrics
    monkeypatch.setattr(NetworkPictures, "_draw", lambda *_: None)
    assert train(*CNN, "--max_epochs=1").metrics["test/loss"] == drawn["test/loss"]
