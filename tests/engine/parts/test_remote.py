"""Files at addresses are read through copies."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from src.engine.data import labelled_tables
from src.engine.data.labelled_tables import local_paths, read_table
from src.engine.parts import remote
from src.engine.system import addresses
from src.engine.system.addresses import is_address, local_path
from src.engine.system.errors import InputError
from tests.conftest import serving


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder."""
    monkeypatch.setattr(remote, "ROOT", tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a server serves."""
    (tmp_path / "served" / "more").mkdir(parents=True)
    (tmp_path / "served" / "table.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "served" / "more" / "a.txt").write_text("a")
    (tmp_path / "served" / "more" / "b.txt").write_text("b")
    return tmp_path / "served"


def copied(messages: list[str]) -> list[str]:
    found = [message for message in messages if message.startswith("Copying")]
    messages.clear()
    return found


@pytest.mark.parametrize("given", ["s3://bucket/a.csv", "https://host/a?b", "hf://datasets/a", "memory://a"])
def test_an_address_has_a_protocol(given: str) -> None:
    assert is_address(given)
    for path in ("a.csv", "C:/a.csv", "/a://b", "", None):
        assert not is_address(path)


def test_a_table_of_a_server_is_read_and_copied_again_only_if_it_has_changed(
    folder: Path, root: Path, messages: list[str]
) -> None:
    with serving(folder) as url:
        assert read_table(f"{url}table.csv", "text", "label") == [("good", "1"), ("bad", "0")]
        assert len(copied(messages)) == 1
        read_table(f"{url}table.csv", "text", "label")
        assert copied(messages) == []
        (folder / "table.csv").write_text("text,label\nfine,1\nbad,0\n")  # of the same size
        os.utime(folder / "table.csv", (time.time() + 5, time.time() + 5))
        assert read_table(f"{url}table.csv", "text", "label")[0] == ("fine", "1")
    assert local_path(str(folder)) == folder
    assert [path.name for path in root.rglob("*.csv")] == ["table.csv"]


def test_a_folder_is_copied_with_what_is_in_it_and_without_what_is_gone(
    store: fsspec.AbstractFileSystem, messages: list[str], root: Path
) -> None:
    for name in ("a/1.txt", "a/2.txt", "b/deep/3.txt"):
        store.pipe(f"/data/{name}", name.encode())
    path = local_path("memory://data")
    assert sorted(file.relative_to(path).as_posix() for file in path.rglob("*.txt")) == [
        "a/1.txt",
        "a/2.txt",
        "b/deep/3.txt",
    ]
    assert (path / "b/deep/3.txt").read_text() == "b/deep/3.txt"
    assert "Copying 3 of 3 files of memory://data to" in copied(messages)[0]
    store.rm("/data/a/2.txt")
    store.pipe("/data/a/1.txt", b"changed")
    assert local_path("memory://data/") == path
    assert sorted(file.name for file in path.rglob("*.txt")) == ["1.txt", "3.txt"]
    assert (path / "a/1.txt").read_text() == "changed"
    for record in (root / "data" / "remote").glob(".*.json"):
        record.write_text("")  # half-written
    assert local_path("memory://data/") == path


def test_a_folder_of_a_server_ends_with_a_slash(folder: Path) -> None:
    with serving(folder) as url:
        assert sorted(file.name for file in local_path(f"{url}more/").rglob("*.*")) == ["a.txt", "b.txt"]


def test_files_that_a_table_names_are_beside_it_or_at_their_own_addresses(
    folder: Path, store: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    store.pipe("/own/c.txt", b"c")
    with serving(folder) as url:
        found = local_paths(["more/a.txt", "memory://own/c.txt", f"{url}more/b.txt"], f"{url}table.csv")
        assert [path.read_text() for path in found] == ["a", "c", "b"]
        assert local_path(f"{url}table.csv").parent / "more" / "a.txt" == found[0]
    assert local_paths(["more/a.txt"], str(folder / "table.csv")) == [folder / "more/a.txt"]
    mixed = local_paths(["more/a.txt", "memory://own/c.txt"], str(folder / "table.csv"))
    assert [path.read_text() for path in mixed] == ["a", "c"]


def test_names_and_servers_that_differ_have_copies_of_their_own(store: Any, root: Path) -> None:
    names = ["<5mm/a.txt", ">5mm/a.txt", "cats & dogs/a(1).txt", "cats & dogs/a[1].txt"]
    for name in names:
        store.pipe_file(f"/cells/{name}", name.encode())
    place = remote.copy_of("memory://cells/")
    found = {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert found == {name: name for name in names}
    servers = [SimpleNamespace(protocol=("sftp", "ssh"), host=host) for host in ("lab-a", "lab-b")]
    assert len({remote._place(server, "/data/x.parquet") for server in servers}) == 2


def test_addresses_that_differ_in_their_query_have_copies_of_their_own(folder: Path) -> None:
    with serving(folder) as url:
        first, second = (local_path(f"{url}table.csv?key={key}") for key in "ab")
    assert first != second
    assert first.name == second.name == "table.csv"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://none/a.csv", "memory://none/a.csv cannot be read: no such file"),
        ("URLnone.csv", "none.csv cannot be read: no such file"),
        ("http://127.0.0.1:9/a.csv", "http://127.0.0.1:9/a.csv cannot be read: Cannot connect"),
        ("odd://a", "odd://a cannot be read: Protocol not known: odd"),
        ("sftp://host/a", "sftp://host/a cannot be read: .*paramiko"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: Path, root: Path, address: str, expected: str) -> None:
    with serving(folder) as url, pytest.raises(InputError, match=expected) as error:
        local_path(address.replace("URL", url))
    assert "\n" not in str(error.value)
    assert not list(root.rglob("*.csv"))
    with pytest.raises(InputError, match="cannot be read"):
        local_paths(["none.csv"], "memory://table.csv")
    with serving(folder) as url, pytest.raises(InputError, match=rf"^{url}more/none\.txt cannot be read: no such file"):
        local_paths(["more/a.txt", "more/none.txt"], f"{url}table.csv")


def test_a_project_without_this_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (addresses, labelled_tables):
        monkeypatch.setattr(module, "hooks", lambda _: [])
    assert local_paths(["a.png"], "folder/table.csv") == [Path("folder/a.png")]
    for read in (lambda: local_path("s3://bucket/a.csv"), lambda: local_paths(["s3://bucket/a.png"], "table.csv")):
        with pytest.raises(InputError, match=r"^s3://bucket/a\.\w+: this project has no part for addresses: give a"):
            read()
