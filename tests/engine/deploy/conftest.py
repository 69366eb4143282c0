"""Checkpoints of the toys."""

from pathlib import Path

import pytest
import torch

from tests import toy
from tests.conftest import fit, once
from tests.engine.deploy import toys

TOYS = toys.__name__


@pytest.fixture(scope="session")
def toy_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that tells good from bad by their letters."""
    words = (f"--config={toy.RECIPE}", f"--data={TOYS}.ToyTexts", f"--model.net={TOYS}.ToyTextNet")
    return once(tmp_path_factory, "toy_texts", lambda folder: fit(folder, *words, "--optimizer.lr=0.1"))


@pytest.fixture(scope="session")
def toy_writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that knows the alphabet."""
    words = (f"--config={toy.RECIPE}", f"--data={TOYS}.ToyLetters", f"--model={TOYS}.ToyWriter")
    more = (f"--model.net={TOYS}.ToyLanguageNet", "--optimizer.lr=0.5", "--checkpoint.monitor=val/loss")
    return once(tmp_path_factory, "toy_writer", lambda folder: fit(folder, *words, *more, "--checkpoint.mode=min"))


@pytest.fixture(scope="session")
def toy_notes(toy_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy checkpoint, of data that says what it has done to an image."""
    path = tmp_path_factory.mktemp("toy_notes") / "last.ckpt"
    return changed(toy_checkpoint, path, data=f"{TOYS}.{toys.NotingData.__name__}")


@pytest.fixture(scope="session")
def toy_matcher(toy_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy checkpoint, of a task that takes its classes from texts."""
    path = tmp_path_factory.mktemp("toy_matcher") / "last.ckpt"
    return changed(toy_checkpoint, path, data=f"{TOYS}.{toys.NamedData.__name__}", task=f"{TOYS}.ToyMatcher")


def changed(checkpoint: str, path: Path, data: str, task: str | None = None) -> str:
    """Write a checkpoint of other classes with the same arguments."""
    found = torch.load(checkpoint, weights_only=True)
    found["config"] = found["config"].replace("tests.toy.ToyData", data)
    if task is not None:
        found["hyper_parameters"]["_class_path"] = task
    torch.save(found, path)
    return str(path)
