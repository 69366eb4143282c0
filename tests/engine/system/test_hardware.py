"""Settings of the machine."""

import ctypes
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from src import ROOT, others_are_busy
from src.engine.system import cores as system_cores
from src.engine.system.errors import InputError
from src.engine.system.hardware import (
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    check_strategy,
    keep_freed_memory,
)
from tests import forked


def page_faults() -> int:
    """Page faults of writing and freeing 8 MB twenty times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def page_faults_before_and_after() -> tuple[int, int]:
    """Page faults of a C library that returns all freed memory, and then with our setting."""
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, 128 * 1024)
    given_back = page_faults()
    keep_freed_memory()
    page_faults()
    return given_back, page_faults()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as process:  # malloc's settings cannot be undone
        given_back, kept = process.submit(page_faults_before_and_after).result()
    assert given_back > 20 * 1000
    assert kept < 1000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_malloc_settings_in_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_service_uses_the_accelerator_it_finds(
    given: str, expected: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = pytest.importorskip("src.engine.deploy.service", reason="the service has been deleted")
    device = torch.device(found) if found else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)

    class MovedError(Exception):
        pass

    def move(device: torch.device) -> None:
        raise MovedError(device.type)

    monkeypatch.setattr(service, "Inference", lambda *_, **__: SimpleNamespace(to=move))
    with pytest.raises(MovedError, match=expected or found or "cpu"):
        service.run_service(SimpleNamespace(accelerator=given, ckpt_path="best", trust=[], more=[]))


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}], ids=str
)
def test_how_threads_wait_is_chosen_before_torch_is_imported_and_kept(given: dict[str, str]) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = f"import src, os, sys; print({{n: os.environ.get(n) for n in {names}}}, 'torch' in sys.modules)"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    chosen = given or ({"OMP_WAIT_POLICY": "PASSIVE"} if sys.platform == "linux" else {"GOMP_SPINCOUNT": "300000"})
    assert done.stdout == f"{dict.fromkeys(names) | chosen} False\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("ready", "cores", "usable", "busy"), [(1, 2, 2, False), (2, 2, 2, True), (3, 8, 6, False), (4, 8, 6, True)]
)
def test_programs_that_need_the_same_cores_are_seen(
    ready: int, cores: int, usable: int, busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    (tmp_path / "loadavg").write_text(f"0.11 1.11 1.54 {ready}/75 16102\n")
    assert others_are_busy(tmp_path / "loadavg") is busy
    assert not others_are_busy(tmp_path / "none")


def strategy(name: str, **arguments: object) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.strategies.{name}", init_args=Namespace(**arguments))


TOGETHER = "its processes cannot be stopped, continued or counted together: give ddp"
VECTORS = "makes all weights vectors, which have no weight decay: give ddp"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ddp_spawn", TOGETHER),
        ("ddp_fork", TOGETHER),
        ("ddp_notebook", TOGETHER),
        (strategy("DDPStrategy", start_method="spawn"), TOGETHER),
        ("fsdp", VECTORS),
        ("fsdp_cpu_offload", VECTORS),
        (strategy("FSDPStrategy"), VECTORS),
        (Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy"), VECTORS),
        ("dpp", "no such strategy, did you mean ddp"),
    ],
    ids=str,
)
def test_a_strategy_that_does_not_go_with_the_engine_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_strategy(given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "auto",
        "ddp",
        "ddp_find_unused_parameters_true",
        Namespace(class_path="src.engine.runs.fsdp2.FSDP2Strategy"),
        strategy("DDPStrategy", start_method="popen", static_graph=True),
    ],
    ids=str,
)
def test_other_strategies_are_taken(given: Any) -> None:
    check_strategy(given)


@pytest.mark.parametrize(
    ("share", "cores"), [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000", 1), ("", 8)]
)
def test_the_cores_of_a_container_are_its_share(
    share: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(system_cores, "SHARE", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(share)
    assert system_cores.usable_cores() == cores
