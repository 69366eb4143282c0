"""What a run sets of its machine."""

import ctypes
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from src.engine.system.hardware import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from tests import forked


def page_faults() -> int:
    """Of twenty times 8 MB, written and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def page_faults_before_and_after() -> tuple[int, int]:
    """Of a C library that gives all memory back, and then of ours."""
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, 128 * 1024)
    given_back = page_faults()
    keep_freed_memory()
    page_faults()
    return given_back, page_faults()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_memory_of_a_step_serves_the_next() -> None:
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as process:  # the settings of malloc last
        given_back, kept = process.submit(page_faults_before_and_after).result()
    assert given_back > 20 * 1000
    assert kept < 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_the_environment_says_of_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *option: made.append(option)))
    keep_freed_memory()
    assert len(made) == 2
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    keep_freed_memory()
    assert len(made) == 2


@pytest.mark.parametrize(("given", "expected"), [("auto", None), ("cpu", "cpu")])
@pytest.mark.parametrize("found", [None, "cuda", "mps", "xpu"])
def test_a_service_computes_on_the_accelerator_that_is_there(
    given: str, expected: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = pytest.importorskip("src.engine.deploy.service", reason="the service has been deleted")
    device = torch.device(found) if found else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)

    class MovedError(Exception):
        pass

    def move(device: torch.device) -> None:
        raise MovedError(device.type)

    monkeypatch.setattr(service, "Inference", lambda path: SimpleNamespace(to=move))
    with pytest.raises(MovedError, match=expected or found or "cpu"):
        service.run_service(SimpleNamespace(accelerator=given, ckpt_path="best"))
