"""What a run sets of its machine."""

import ctypes
import subprocess
import sys

import pytest

from src import ROOT
from src.hardware import keep_freed_memory

# Page faults of twenty times 8 MB, written and freed: of a C library that gives all back, and then of ours.
PROGRAM = """
import ctypes, resource, torch
from src.hardware import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
    ctypes.CDLL(None).mallopt(option, 128 * 1024)
print(page_faults())
keep_freed_memory()
page_faults()
print(page_faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_memory_of_a_step_serves_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 20 * 1000
    assert kept < 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()
