"""A service in a thread of this process, with a model that does what a test says."""

import argparse
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image
from screenshots import free_port

from src.engine.deploy import connections, service
from tests.engine.deploy.served import Client


@dataclass
class Local(Client):
    service: service.Service
    server: connections.Server


@contextlib.contextmanager
def local(inference: Any, limit: int = 100, longest: float = 60, **options: Any) -> Iterator[Local]:
    """Serve a stand-in for `Inference`."""
    given = {"token": None, "max_body_mb": 1.0, "max_batch_size": 4, "batch_timeout": 0.01, "timeout": 20.0, **options}
    one = service.Service(inference, argparse.Namespace(**given), bfloat16=False)
    config = uvicorn.Config(one.app(), port=free_port(), **connections.connection_options(limit))
    server = connections.Server(config, "ready", longest)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Local(config.port, one, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def classifier(compute: Callable[[list[int]], Any], prepare: Callable[[Image.Image], Any] = lambda image: None) -> Any:
    """A classifier of images, each of which is its first pixel.

    Args:
        compute: pixels -> probabilities of two classes for each.
        prepare: called with each image.
    """

    def prepare_all(images: list[Image.Image]) -> torch.Tensor:
        for image in images:
            prepare(image)
        return torch.tensor([[[[np.asarray(image.convert("L"))[0, 0]]]] for image in images], dtype=torch.uint8)

    def row(probabilities: list[float]) -> dict[str, Any]:
        return {"label": "dark", "probabilities": dict(zip(("dark", "light"), probabilities, strict=True))}

    return SimpleNamespace(
        kind="image",
        data=SimpleNamespace(input_kind="image", prepare=prepare_all),
        task=None,
        device=torch.device("cpu"),
        predictions=lambda inputs: compute(inputs[0].flatten().tolist()),
        rows=lambda predictions, count, sizes: [row(one) for one in predictions],
    )


def writer(pieces: Callable[[str], Iterator[str]]) -> Any:
    """A language model that continues a prompt with these pieces."""
    tokenizer = SimpleNamespace(encode=lambda text: np.frombuffer(text.encode(), dtype=np.uint8), stream=pieces)
    generate = lambda prompt, *_, **__: bytes(prompt.tolist()).decode()  # noqa: E731
    task = SimpleNamespace(check_sampling=lambda *_: None, generate=generate)
    data = SimpleNamespace(tokenizer=tokenizer)
    return SimpleNamespace(kind="prompt", data=data, task=task, device=torch.device("cpu"))
