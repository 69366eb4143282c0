"""What a run sets of its machine."""

import ctypes
import resource

import pytest
import torch

from src.hardware import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


def page_faults() -> int:
    """Of twenty times 8 MB, written and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(mallopt is None, reason="this C library is not glibc")
def test_memory_of_a_step_serves_the_next() -> None:
    assert mallopt is not None
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        mallopt(option, 128 * 1024)  # as glibc begins
    assert page_faults() > 20 * 1000
    keep_freed_memory()
    page_faults()
    assert page_faults() < 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()
