"""Plain text: files, texts at an address, and texts that have changed."""

import gzip
import random
from pathlib import Path

import pytest

from src.engine.parts import remote
from src.engine.system.errors import InputError
from src.text.corpus import TextDataModule, find_texts
from tests.conftest import serving
from tests.text.helpers import WORDS, tiny_pretrained
from tests.text.test_corpus import own, ready


def test_a_folder_gives_its_texts_and_says_what_it_skips(tmp_path: Path, messages: list[str]) -> None:
    for name in ("texts/a.txt", "texts/B.TXT", "texts/notes.md", "texts/.hidden/no.txt", "more/c.txt"):
        own(tmp_path / Path(name).parent, b"abc", Path(name).name)
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "more")
    found = find_texts(str(tmp_path / "texts"))
    assert [path.name for path in found] == ["B.TXT", "a.txt", "c.txt"]
    assert messages == ["Skipped files that are not .txt: 1 .md"]


@pytest.mark.parametrize("damage", ["incomplete", "changed"])
def test_a_damaged_compressed_text_is_one_line(tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(random.Random(0).randbytes(3000)))
    if damage == "changed":
        packed[1000:1100] = bytes(100)
    else:
        del packed[2000:]
    with pytest.raises(InputError, match=r"own.txt.gz cannot be read \(\w"):
        ready(tmp_path, path=own(tmp_path, bytes(packed), "own.txt.gz"))


def test_texts_of_a_server_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROOT", tmp_path / "project")
    content = bytes(range(100)) * 10
    for name in ("a.txt", "b.txt"):
        own(tmp_path / "served", content, name)
    with serving(tmp_path / "served") as url:
        assert ready(tmp_path, path=f"{url}a.txt").train_set.tokens.tolist() == [*content[:810]]
        assert [path.name for path in find_texts(url)] == ["a.txt", "b.txt"]


def test_a_text_that_has_changed_since_training_is_said_to_be_split_differently(
    tmp_path: Path, messages: list[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("To be, or not to be. " * 60)
    state = ready(tmp_path, path=str(folder)).state_dict()
    for changed in (False, True):
        if changed:
            (folder / "b.txt").write_text("That is the question. " * 60)
        data = TextDataModule(path=str(folder), cache_dir=str(tmp_path / "cache"), block_size=8)
        data.load_state_dict(state)
        data.setup("test")
        assert any("has changed since training" in message for message in messages) == changed


def test_a_tokenizer_that_loses_text_is_found_in_later_files_too(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the cat")
    (tmp_path / "texts" / "b.txt").write_text(f"{WORDS}\n" * 40)
    pytest.importorskip("transformers")
    data = ready(tmp_path, path=str(tmp_path / "texts"), tokenizer=tiny_pretrained("bert", tmp_path))
    assert data.tokens_per_char == {}


def test_tables_are_announced_to_be_read_as_they_are(tmp_path: Path, messages: list[str]) -> None:
    for name, count in (("a.md", 0), ("a.jsonl", 1), ("b.jsonl.gz", 2)):
        (tmp_path / name).write_text("{}")
        find_texts(str(tmp_path / name))
        assert sum("are read as they are" in message for message in messages) == count


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 60)
    ready(tmp_path, path=str(tmp_path / "a.txt"))
    (kept,) = (one for one in (tmp_path / "cache").iterdir() if one.is_dir())
    left = kept.with_name(f".{kept.name}-1")
    kept.rename(left)
    ready(tmp_path, path=str(tmp_path / "a.txt"))
    assert [one.name for one in (tmp_path / "cache").iterdir() if one.is_dir()] == [kept.name]


def test_a_final_run_is_said_to_have_seen_the_validation_part(tmp_path: Path, messages: list[str]) -> None:
    path = own(tmp_path, "To be, or not to be. " * 60)
    state = ready(tmp_path, path=path, final=True).state_dict()
    for final in (True, False):
        messages.clear()
        data = TextDataModule(path=path, cache_dir=str(tmp_path / "cache"), block_size=8, final=final)
        data.load_state_dict(state)
        data.setup("test")
        assert any("may contain text that was trained on" in message for message in messages) != final
