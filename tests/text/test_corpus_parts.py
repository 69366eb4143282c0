"""Plain text: parts of your own, folds, and texts at an address."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from src.engine.parts import remote
from src.engine.system.errors import InputError
from src.text.corpus import TextDataModule
from src.text.sources import find_texts
from tests.conftest import serving
from tests.text.helpers import WORDS, tiny_pretrained
from tests.text.test_corpus import own, ready


def test_folds_are_pieces_of_the_text_and_no_window_touches_that_of_validation(tmp_path: Path) -> None:
    content = bytes(range(100)) * 10
    whole = ready(tmp_path, path=own(tmp_path, content))
    seen: list[int] = []
    for fold in (1, 2, 3, 4):
        data = ready(tmp_path, path=own(tmp_path, content), fold=fold, folds=4)
        seen += data.val_set.tokens.tolist()
        assert data.test_set.tokens.tolist() == whole.test_set.tokens.tolist()
        assert data.tokens_per_char == {"train": 1, "val": 1, "test": 1}
        inputs, targets = data.train_set.__getitems__(list(range(len(data.train_set))))
        starts = [n for n in range(900 - 8) if n + 8 < 225 * (fold - 1) or n >= 225 * fold]
        assert inputs[:, 0].tolist() == [n % 100 for n in starts]
        assert torch.equal(targets, (inputs + 1) % 100)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert len(data.train_dataloader()) == -(-((len(starts) + 8) // 8) // 4)
    assert bytes(seen) == content[:900]


def test_validation_and_test_can_have_texts_of_their_own(tmp_path: Path, messages: list[str]) -> None:
    contents = {"path": "train" * 40, "val_path": "valid" * 20, "test_path": "tests" * 9}
    paths = {option: own(tmp_path, text.encode(), f"{option}.txt") for option, text in contents.items()}
    data = ready(tmp_path, **paths)
    sets = (data.train_set, data.val_set, data.test_set)
    first, *others = contents.values()
    assert [bytes(part.tokens.tolist()).decode() for part in sets] == [first, *(f"\n{text}" for text in others)]
    assert bytes(ready(tmp_path, **paths, final=True).train_set.tokens.tolist()).decode() == f"{first}\n{others[0]}"
    folded = [ready(tmp_path, **paths, fold=fold, folds=2) for fold in (1, 2)]
    assert "".join(bytes(one.val_set.tokens.tolist()).decode() for one in folded) == f"{first}\n{others[0]}"
    again = TextDataModule(paths["path"], paths["test_path"], paths["val_path"], cache_dir=str(tmp_path / "cache"))
    again.load_state_dict(data.state_dict())
    again.prepare_data()
    assert any("has changed since training: validation and test may" in line for line in messages)
    ready(tmp_path, **paths | {"test_path": paths["path"]})
    assert "two of --data.path, --data.val_path and --data.test_path hold the same text" in messages
    for wrong in ({"val_path": paths["val_path"]}, {"path": paths["path"], "test_path": paths["test_path"]}):
        with pytest.raises(InputError, match=r"give all three, or only --data\.path"):
            ready(tmp_path, **wrong)
    with pytest.raises(InputError, match=r"^--data\.val_path .*gone: no such file; give a file"):
        ready(tmp_path, **paths | {"val_path": str(tmp_path / "gone")})


def test_the_byte_pairs_of_a_fold_are_those_of_its_training_part(tmp_path: Path) -> None:
    given = {"path": own(tmp_path, "zqzq " * 180 + "abab " * 620), "tokenizer": "bpe", "max_vocab_size": 300}
    states = [ready(tmp_path, **given, fold=fold, folds=4).tokenizer.state for fold in (1, 2)]
    assert ["zqzq" in state for state in states] == [False, True]
    assert ready(tmp_path, **given, fold=1, folds=4).tokenizer.state == states[0]  # from the cache


def test_a_fold_without_the_validation_part_or_too_short_is_one_line(tmp_path: Path) -> None:
    path = own(tmp_path, "abcdefghij" * 3)
    for given, message in (
        ({"fold": 1, "final": True}, "fold 1 and final cannot be combined"),
        ({"fold": 9, "folds": 5}, "fold 9 is out of range: give 1 to 5"),
        ({"fold": 2, "folds": 3, "block_size": 20}, "train part .* has 9 tokens, block_size 20 needs 21"),
    ):
        with pytest.raises(InputError, match=message):
            ready(tmp_path, path=path, **given)


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


@pytest.mark.parametrize(
    ("before", "now", "parts"),
    [
        ({"folds": 5}, {"folds": 10}, ""),
        ({"fold": 1}, {"fold": 2}, "validation may"),
        ({"final": True}, {}, "validation may"),
    ],
    ids=str,
)
def test_another_fold_or_a_final_run_is_said_to_have_seen_the_validation_part(
    before: dict[str, Any], now: dict[str, Any], parts: str, tmp_path: Path, messages: list[str]
) -> None:
    path = own(tmp_path, "To be, or not to be. " * 60)
    data = TextDataModule(path=path, cache_dir=str(tmp_path / "cache"), block_size=8, **now)
    data.load_state_dict(ready(tmp_path, path=path, **before).state_dict())
    data.setup("test")
    said = [message for message in messages if "has changed since training" in message]
    assert [one.partition(": ")[2].removesuffix(" contain text that was trained on") for one in said] == [parts] * bool(
        parts
    )
