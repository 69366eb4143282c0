"""Runs are copied to an address, and continued from there."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from src.engine.cli.cli import StarterCLI
from src.engine.deploy.inference import Inference
from src.engine.parts import remote
from src.engine.parts.remote import RunCopy, claim_at, use_copies
from src.engine.runs import runs as runs_module
from src.engine.runs.checkpoint import damage
from src.engine.search.tuning import tune
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks
from tests.conftest import QUIET, serving
from tests.toy import RECIPE

ADDRESS = "memory://bucket/logs"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(remote, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def store() -> Iterator[Any]:
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def train(*words: str, address: str = ADDRESS) -> StarterCLI:
    cli = StarterCLI([*words, f"--trainer.default_root_dir={address}", *QUIET, "--data.size=64"], time.perf_counter())
    cli.run()
    return cli


def names(store: Any, run: str = "version_0") -> set[str]:
    found = {
        Path(name).relative_to(f"/bucket/logs/toy/{run}").as_posix() for name in store.find(f"/bucket/logs/toy/{run}")
    }
    return {name for name in found if not name.startswith(("claim-", "events"))}


@pytest.mark.slow
def test_a_run_is_here_and_at_the_address_and_goes_on_from_there(store: Any, project: Path) -> None:
    cli = train(f"--config={RECIPE}", "--max_epochs=2")
    folder = project / "logs" / "toy" / "version_0"
    assert cli.record is not None
    assert cli.record.folder == folder
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names(store) == {name for name in here if not name.startswith(("events", "."))}
    for name in ("metrics.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml"):
        assert store.cat(f"/bucket/logs/toy/version_0/{name}") == (folder / name).read_bytes()
    # On another machine: the run is fetched, continued, and copied to where it was.
    shutil.move(project / "logs", project / "away")
    given = f"{ADDRESS}/toy/version_0"
    again = StarterCLI(["--run", given, "--ckpt_path=last", "--max_epochs=3", *QUIET], time.perf_counter())
    again.run()
    assert again.trainer.global_step == 6
    assert damage(folder / "checkpoints" / "last.ckpt") is None
    saved = store.cat("/bucket/logs/toy/version_0/checkpoints/last.ckpt")
    assert saved == (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert saved != (project / "away/toy/version_0/checkpoints/last.ckpt").read_bytes()
    assert "config.resume-1.yaml" in names(store)
    # Fetched again, it is what is here; a run that differs is neither used nor overwritten.
    assert remote.fetch_run(given) == folder
    (folder / "config.yaml").write_text("seed_everything: 1\n")
    with pytest.raises(InputError, match=r"version_0 is here and differs: give --run"):
        remote.fetch_run(given)
    assert (folder / "config.yaml").read_text() == "seed_everything: 1\n"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder of a run that a server serves."""
    folder = tmp_path / "served" / "toy" / "version_0"
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_run_of_a_server_whose_lists_have_no_sizes_is_fetched_once(served: Path, project: Path) -> None:
    with serving(project / "served") as url:
        assert remote.fetch_run(f"{url}toy/version_0") == project / "logs" / "toy" / "version_0"
        fetched = project / "logs" / "toy" / "version_0" / "checkpoints" / "last.ckpt"
        assert fetched.read_text() == "checkpoints/last.ckpt"
        written = fetched.stat().st_mtime_ns
        assert remote.fetch_run(f"{url}toy/version_0/") == project / "logs" / "toy" / "version_0"
        assert fetched.stat().st_mtime_ns == written
        (served / "checkpoints" / "last.ckpt").write_text("longer than it was")
        with pytest.raises(InputError, match=r"version_0 is here and differs: give --run"):
            remote.fetch_run(f"{url}toy/version_0")


@pytest.mark.parametrize("name", ["../more.txt", "checkpoints/../../more.txt"])
def test_a_list_that_leads_out_of_the_folder_of_a_run_is_refused(name: str, served: Path, project: Path) -> None:
    (served.parent / "more.txt").touch()
    links = "".join(f'<a href="{one}">{one}</a>' for one in ("config.yaml", name))
    (served / "index.html").write_text(links)
    with (
        serving(project / "served") as url,
        pytest.raises(InputError, match=r"\.\./more\.txt leads out of its folder$"),
    ):
        remote.fetch_run(f"{url}toy/version_0")
    assert not (project / "logs").exists()


def test_a_sharded_checkpoint_is_copied_whole_and_one_that_is_being_written_is_not(store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "version_0"
    for name in ("last.ckpt", ".last.ckpt-new"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        for file in (".metadata", "__0_0.distcp", "meta.pt"):
            (folder / "checkpoints" / name / file).write_text(file)
    assert remote.RunCopy(folder, ADDRESS).copy() == ""
    assert names(store) == {f"checkpoints/last.ckpt/{name}" for name in (".metadata", "__0_0.distcp", "meta.pt")}


def test_processes_that_want_the_same_run_copy_it_once_and_nothing_is_left_of_a_failure(
    store: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"{ADDRESS}/toy/version_0"
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        store.pipe_file(f"/bucket/logs/toy/version_0/{name}", name.encode())
    get_file, fetched = store.get_file, []

    def slow(source: str, *words: Any) -> None:
        fetched.append(source)
        time.sleep(0.05)
        get_file(source, *words)

    monkeypatch.setattr(type(store), "get_file", lambda _, *words: slow(*words))
    with ThreadPoolExecutor(2) as pool:
        assert {*pool.map(remote.fetch_run, [given, given])} == {project / "logs" / "toy" / "version_0"}
    assert len(fetched) == 2
    shutil.rmtree(project / "logs")
    monkeypatch.setattr(type(store), "get_file", lambda *_: 1 / 0)
    with pytest.raises(InputError, match="cannot be read"):
        remote.fetch_run(given)
    assert [path.name for path in (project / "logs" / "toy").iterdir()] in ([], [".version_0.lock"])


@pytest.mark.slow
def test_each_checkpoint_is_copied_while_the_run_goes_on(store: Any) -> None:
    seen: list[bool] = []
    cli = StarterCLI(
        [
            "fit",
            f"--config={RECIPE}",
            f"--trainer.default_root_dir={ADDRESS}",
            *QUIET,
            "--data.size=64",
            "--max_epochs=3",
        ],
        time.perf_counter(),
    )
    model: Any = cli.model
    step = model.training_step

    def training_step(*args: Any) -> Any:
        seen.append(store.exists("/bucket/logs/toy/version_0/checkpoints/last.ckpt"))
        return step(*args)

    model.training_step = training_step
    cli.run()
    assert seen == [False, False, True, True, True, True]


@pytest.mark.slow
def test_a_number_that_is_taken_here_or_at_the_address_is_not_used(store: Any, project: Path) -> None:
    store.pipe("/bucket/logs/toy/version_4/config.yaml", b"a: 1\n")
    (project / "logs" / "toy" / "version_1").mkdir(parents=True)
    assert train("fit", f"--config={RECIPE}", "--max_epochs=1").record.folder.name == "version_5"  # type: ignore[union-attr]
    assert store.cat("/bucket/logs/toy/version_4/config.yaml") == b"a: 1\n"
    assert claim_at(project / "logs" / "toy", ADDRESS).name == "version_6"


def test_a_run_that_is_faster_keeps_its_number(store: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.pipe_file

    def two_at_once(path: str, content: bytes) -> None:
        write(path, content)
        if "version_0" in path:
            write(path.replace("claim-", "claim-0"), content)

    monkeypatch.setattr(type(store), "pipe_file", lambda _, path, content: two_at_once(path, content))
    assert claim_at(project / "logs" / "toy", ADDRESS).name == "version_1"
    assert not (project / "logs" / "toy" / "version_0").exists()
    assert len(store.ls("/bucket/logs/toy/version_0")) == 1


@pytest.mark.slow
def test_an_address_that_fails_is_one_line_and_the_run_is_complete_here(
    store: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError("connection reset\nby peer")

    monkeypatch.setattr(type(store), "put_file", fail)
    with pytest.warns(UserWarning, match="trying again after the next checkpoint"), pytest.raises(InputError) as error:
        train(f"--config={RECIPE}", "--max_epochs=2")
    folder = project / "logs" / "toy" / "version_0"
    assert str(error.value) == f"{folder} could not be copied to {ADDRESS}/toy/version_0: connection reset by peer"
    assert "total_seconds" in json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--run", f"{ADDRESS}/toy/version_9"), "version_9: no run is there"),
        (("--checkpoint.dirpath", f"{ADDRESS}/more"), "--checkpoint.dirpath memory://.* are written on this machine"),
        (("--ckpt_path", f"{ADDRESS}/none.ckpt"), "memory://bucket/logs/none.ckpt cannot be read: no such file"),
        (("--trainer.default_root_dir", "odd://a"), "odd://a cannot be written: Protocol not known: odd"),
    ],
)
def test_what_an_address_cannot_do_is_one_line(store: Any, words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        StarterCLI(["fit", f"--config={RECIPE}", *QUIET, *words], time.perf_counter())


def test_the_folder_of_a_search_takes_no_runs(store: Any, project: Path) -> None:
    (project / "logs" / "toy" / "trials").mkdir(parents=True)
    with pytest.raises(InputError, match=r"toy holds a search: give another name, as in --name toy-run$"):
        train("fit", f"--config={RECIPE}")


def test_a_project_without_this_part_refuses_runs_at_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "hooks", lambda name: [] if name == "run_callbacks" else hooks(name))
    with pytest.raises(InputError, match=r"^s3://bucket/logs: this project has no part for addresses: give a path on"):
        train("fit", f"--config={RECIPE}", address="s3://bucket/logs")
    assert not Path("s3:").exists()
    record = train("fit", f"--config={RECIPE}", "--max_epochs=1", address=str(tmp_path)).record
    assert record is not None
    with pytest.raises(InputError, match=r"^s3://bucket/logs: this project has no part for addresses"):
        train("fit", f"--config={RECIPE}", "--max_epochs=2", f"--run={record.folder}", address="s3://bucket/logs")


def test_a_search_at_an_address_is_one_line() -> None:
    words = ["--config=configs/tune/seeds.yaml", f"--trainer.default_root_dir={ADDRESS}"]
    with pytest.raises(
        InputError, match=r"--trainer.default_root_dir memory://.*: a search needs a folder on this machine"
    ):
        tune(words)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_at_an_address_is_tested(store: Any, toy_checkpoint: str, tmp_path: Path) -> None:
    store.pipe("/bucket/model.ckpt", Path(toy_checkpoint).read_bytes())
    words = ["test", f"--config={RECIPE}", "--ckpt_path=memory://bucket/model.ckpt", "--trust=tests.toy", *QUIET]
    cli = StarterCLI([*words, f"--trainer.default_root_dir={tmp_path / 'logs'}"], time.perf_counter())
    cli.run()
    assert cli.trainer.callback_metrics["test/acc"] == 1


def test_a_checkpoint_at_an_address_predicts(store: Any, toy_checkpoint: str, project: Path) -> None:
    store.pipe("/bucket/model.ckpt", Path(toy_checkpoint).read_bytes())
    inference = Inference("memory://bucket/model.ckpt", trust=["tests.toy"])
    assert inference.path.is_relative_to(project / "data" / "remote")


@pytest.mark.parametrize("left", [(), (".nfs1",)])
def test_the_copy_of_a_run_that_is_deleted_here_stays(store: Any, tmp_path: Path, left: tuple[str, ...]) -> None:
    folder = tmp_path / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt"):
        (folder / name).write_text("a")
    copy = RunCopy(folder, ADDRESS)
    copy._system, copy._path = store, "/bucket/logs/default/version_0"
    assert copy.copy() == ""
    before = store.find("/")
    shutil.rmtree(folder)
    for name in left:
        folder.mkdir()
        (folder / name).touch()
    assert "is gone, deleted or renamed" in copy.copy()
    assert store.find("/") == before


def test_auto_says_that_it_looks_on_this_machine_only(store: Any, messages: list[str]) -> None:
    assert use_copies("auto", None, ADDRESS)[0] == "auto"
    assert messages[0].startswith("--ckpt_path auto looks for runs on this machine only: for one of memory://")
