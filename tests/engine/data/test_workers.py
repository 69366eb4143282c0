"""How many processes read files, and what an error in one of them says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.engine.data.loading import Batches, batch_loader
from src.engine.data.workers import check_num_workers, file_workers
from src.engine.system import cores as system_cores
from src.engine.system.errors import InputError


def test_auto_leaves_a_core_to_a_network_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, cores: int, processes: int = 1, nodes: int = 1, given: Any = "auto") -> int:
        monkeypatch.setattr(system_cores, "usable_cores", lambda: cores)
        strategy = SimpleNamespace(root_device=torch.device(device))
        return file_workers(given, SimpleNamespace(strategy=strategy, world_size=processes, num_nodes=nodes))

    assert [chosen("cpu", 8), file_workers("auto", None)] == [0, 0]
    assert [chosen("cuda", cores) for cores in (1, 2, 8, 128)] == [1, 1, 7, 16]
    assert [chosen("cuda", 32, 4), chosen("cuda", 32, 8, nodes=2), chosen("cuda", 8, 16)] == [7, 7, 1]
    assert chosen("cuda", 8, given=3) == 3
    with monkeypatch.context() as patch:
        patch.setenv(system_cores.JOBS, "4")  # of a search
        assert chosen("cuda", 32) == 7
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    monkeypatch.setenv("SLURM_NTASKS", "8")  # each has 12 cores of its own, if SLURM binds them
    assert [chosen("cuda", 12, 8), chosen("cuda", 96, 8), chosen("cuda", 12, 2)] == [11, 11, 5]
    with pytest.raises(InputError, match="num_workers -1 is out of range: give at least 0, or auto"):
        check_num_workers(-1)


class Broken:
    """A data set that raises an error for every batch."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: list[int]) -> None:
        raise KeyError("no such digit")


def test_an_error_without_workers_has_its_traceback_and_samples() -> None:
    with pytest.raises(KeyError) as caught:
        next(iter(batch_loader(Broken(), Batches(8, 4, None))))  # type: ignore[arg-type]
    assert caught.traceback[-1].name == "__getitems__"
    assert caught.value.__notes__ == ["in the batch of samples 0, 1, 2, 3"]


def test_an_error_in_a_worker_has_message_traceback_and_samples() -> None:
    loader = batch_loader(Broken(), Batches(8, 4, None), num_workers=2)  # type: ignore[arg-type]
    with pytest.raises(KeyError) as caught:
        next(iter(loader))
    message = str(caught.value)
    assert not any("torch" in entry.path.parts for entry in caught.traceback)  # its frames would keep the workers
    del caught, loader  # a garbage collection would wait 5 s for each worker
    for words in ("no such digit", "in __getitems__", "in the batch of samples 0, 1, 2, 3"):
        assert words in message
