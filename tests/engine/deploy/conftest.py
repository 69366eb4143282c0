"""Checkpoints of the toys."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import toy
from tests.conftest import fit, once
from tests.engine.deploy import toys
from tests.engine.deploy.served import TOKEN, Service, service

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


@pytest.fixture(scope="session")
def image_service(toy_notes: str) -> Iterator[Service]:
    """Tells images apart, in small requests."""
    with service(toy_notes, "--max_body_mb", "0.2", "--timeout", "20") as found:
        yield found


@pytest.fixture(scope="session")
def text_service(toy_texts: str) -> Iterator[Service]:
    """Tells texts apart, for those who have the token."""
    with service(toy_texts, "--token", TOKEN) as found:
        yield found


@pytest.fixture(scope="session")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, `writer_service` stops behind the first letter of a text."""
    return tmp_path_factory.mktemp("writer") / "held"


@pytest.fixture(scope="session")
def writer_service(toy_writer: str, held: Path) -> Iterator[Service]:
    """Writes letters."""
    with service(toy_writer, **{toys.HELD: str(held)}) as found:
        yield found
