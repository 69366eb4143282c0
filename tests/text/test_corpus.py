import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.engine.data.loading import IGNORED, Batches
from src.engine.system.errors import InputError
from src.text import corpus, sources
from src.text.corpus import TextDataModule, Windows, random_starts, split_sizes
from src.text.sources import find_texts
from tests.conftest import serving
from tests.text.helpers import WORDS, tiny_pretrained


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from where these texts really live."""
    monkeypatch.setattr(corpus, "SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")


def module(folder: Path, **arguments: object) -> TextDataModule:
    folders = {"data_dir": str(folder / "data"), "cache_dir": str(folder / "cache")}
    return TextDataModule(**{**folders, "block_size": 8, "batch_size": 4, **arguments})  # type: ignore[arg-type]


def ready(folder: Path, **arguments: object) -> TextDataModule:
    data = module(folder, **arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def own(folder: Path, content: str | bytes, name: str = "own.txt") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# Splits and windows


def test_the_split_is_the_customary_one() -> None:
    assert split_sizes([1_115_394]) == {"train": 903_468, "val": 100_386, "test": 111_540}


@pytest.mark.parametrize("letters", ["abcdefghij", "aä日\U0001f600ßcdefg"])
def test_the_parts_are_the_text_cut_at_characters(tmp_path: Path, letters: str) -> None:
    content = letters * 100
    data = ready(tmp_path, path=own(tmp_path, content))
    parts = [data.tokenizer.decode(part.tokens.tolist()) for part in (data.train_set, data.val_set, data.test_set)]
    assert parts == [content[:810], content[810:900], content[900:]]
    assert data.tokens_per_char["test"] == pytest.approx(len(letters.encode()) / len(letters))


def test_the_folds_of_a_text_are_pieces_of_its_first_nine_tenths() -> None:
    for folds in (2, 5):
        ends = []
        for fold in range(1, folds + 1):
            sizes = split_sizes([1003], fold, folds)
            assert list(sizes) == ["train", "val", "after", "test"]
            assert sum(sizes.values()) == 1003
            assert sizes["test"] == split_sizes([1003])["test"]
            ends += [sizes["train"], sizes["train"] + sizes["val"]]
        assert ends[0] == 0
        assert ends[1:-1:2] == ends[2::2]  # each begins where the last one ends
        assert ends[-1] == 902


def test_tokens_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o007)
    try:
        ready(tmp_path, path=own(tmp_path, "abcdefghij" * 100))
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    finally:
        os.umask(before)
    assert modes == {0o770}


def test_no_window_crosses_a_border(tmp_path: Path) -> None:
    data = ready(tmp_path, path=own(tmp_path, bytes(range(100)) * 10))
    # Each part holds numbers that go on by one; a window across a border would not.
    for part, first in ((data.train_set, 0), (data.val_set, 810), (data.test_set, 900)):
        last = first + len(part.tokens) - 1
        inputs, targets = part.__getitems__(list(range(len(part))))
        counted = targets != IGNORED
        assert torch.equal((inputs[counted] + 1) % 100, targets[counted])
        assert inputs[0, 0] == first % 100
        assert targets[counted][-1] == last % 100


def test_evaluation_asks_for_every_token_that_has_one_before_it_once(tmp_path: Path) -> None:
    data = ready(tmp_path, path=own(tmp_path, "".join(chr(33 + i % 90) for i in range(1003))))
    targets = torch.cat([targets[targets != IGNORED] for _, targets in data.test_dataloader()])
    assert targets.tolist() == data.test_set.tokens[1:].tolist()


def test_training_sees_every_window_and_repeats_by_seed_and_epoch() -> None:
    windows = Windows(np.arange(40), block_size=8, stride=1)
    assert len(windows) == 32  # starts 0 to 31, the last target is 39
    assert windows.__getitems__([31])[1][0, -1] == 39
    assert all(part.is_contiguous() for part in windows.__getitems__([0, 31]))  # else pinning does not help
    sampler = Batches(5, 2, None, random_starts(windows))
    assert list(sampler) == list(sampler)
    assert [len(batch) for batch in sampler] == [2, 2, 1]
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    drawn = set()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn |= {start for batch in sampler for start in batch}
    assert drawn == set(range(32))


def test_drawing_windows_takes_no_memory_that_grows_with_the_text() -> None:
    tokens = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (10**13,), (0,))  # no 10 TB behind it
    batches = iter(Batches(10**12, 4, None, random_starts(Windows(tokens, 128, 1))))
    assert max(max(next(batches)) for _ in range(25)) > 10**11


def test_a_final_run_trains_on_the_validation_part_too(tmp_path: Path, messages: list[str]) -> None:
    path = own(tmp_path, "abcdefghij" * 100)
    data, final = ready(tmp_path, path=path), ready(tmp_path, path=path, final=True)
    assert (len(data.train_set.tokens), len(final.train_set.tokens)) == (810, 900)
    assert final.test_set.tokens.tolist() == data.test_set.tokens.tolist()
    assert any("val/loss does not measure" in message for message in messages)


# The cache


def test_tokens_are_written_once_and_a_changed_text_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own(tmp_path, "abcdefghij" * 100)
    before = os.stat(path)
    ready(tmp_path, path=path)
    monkeypatch.setattr(corpus, "_write_tokens", lambda *_: pytest.fail("written again"))
    ready(tmp_path, path=path)
    monkeypatch.undo()
    own(tmp_path, "abcdefghiJ" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    changed = ready(tmp_path, path=path)
    assert changed.tokenizer.decode(changed.test_set.tokens.tolist()) == "abcdefghiJ" * 10


def test_the_name_of_a_text_need_not_be_utf8_and_its_rights_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("abcdefghij" * 100)
    pieces = corpus._pieces

    def changed(*arguments: Any) -> Any:
        path.chmod(0o600)
        return pieces(*arguments)

    monkeypatch.setattr(corpus, "_pieces", changed)
    assert len(ready(tmp_path, path=str(tmp_path)).test_set.tokens) == 100


def test_a_text_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads, hash_and_count = own(tmp_path, "abcdefghij" * 100), list[Path](), sources._hash_and_count
    monkeypatch.setattr(sources, "_hash_and_count", lambda files: (reads.extend(files), hash_and_count(files))[1])
    ready(tmp_path, path=path)
    ready(tmp_path, path=path)
    assert len(reads) == 1
    own(tmp_path, "abcdefghij" * 99)
    ready(tmp_path, path=path)
    (kept,) = (tmp_path / "cache").glob("text-*.json")
    kept.write_text("[")  # damaged: as if there were none
    ready(tmp_path, path=path)
    assert len(reads) == 3


def test_a_writing_that_was_cut_short_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path, "abcdefghij" * 100)
    pieces = corpus._pieces

    def cut(*arguments: object) -> object:
        yield next(pieces(*arguments))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_pieces", cut)
    with pytest.raises(KeyboardInterrupt):
        ready(tmp_path, path=path)
    assert not any(file.is_dir() for file in (tmp_path / "cache").iterdir())
    monkeypatch.undo()
    assert len(ready(tmp_path, path=path).test_set.tokens) == 100


def test_a_text_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path, "abcdefghij" * 100)
    hash_and_count = sources._hash_and_count

    def slow(files: list[Path]) -> tuple[str, int]:
        found = hash_and_count(files)
        own(tmp_path, "abcdefghiJ" * lengths.pop())
        return found

    monkeypatch.setattr(sources, "_hash_and_count", slow)
    lengths = [50, 101]
    while lengths:
        own(tmp_path, "abcdefghij" * 100)
        with pytest.raises(InputError, match="changed while it was read"):
            ready(tmp_path, path=path)
    assert not any(file.is_dir() for file in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (300, np.uint16)])
def test_tokens_take_the_smallest_type_that_fits(tmp_path: Path, size: int, dtype: type) -> None:
    options = {} if size == 256 else {"tokenizer": "bpe", "max_vocab_size": size}
    data = ready(tmp_path, path=own(tmp_path, "the cat sat on the mat. " * 100), **options)
    assert data.train_set.tokens.dtype == dtype
    base = data.train_set.tokens
    while type(base) is np.ndarray:
        base = base.base
    assert isinstance(base, np.memmap)  # not read into memory


def test_byte_pairs_are_trained_on_the_training_part_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path, "the cat sat. " * 100 + "zebra " * 40)  # zebras are in the test part only
    data = ready(tmp_path, path=path, tokenizer="bpe", max_vocab_size=280)
    assert "zebra" not in data.tokenizer.state
    assert "cat" in data.tokenizer.state
    monkeypatch.setattr(corpus, "train_bpe", lambda *_: pytest.fail("trained again"))
    again = ready(tmp_path, path=path, tokenizer="bpe", max_vocab_size=280)
    assert again.tokenizer.state == data.tokenizer.state
    assert data.network_arguments() == {"vocab_size": data.tokenizer.vocab_size, "block_size": 8}


def test_a_checkpoints_tokenizer_takes_the_place_of_a_new_one(tmp_path: Path) -> None:
    first = ready(tmp_path, path=own(tmp_path, "the cat sat. " * 100), tokenizer="bpe", max_vocab_size=280)
    second = module(tmp_path, path=own(tmp_path, "wholly other text " * 100, "b.txt"), tokenizer="bpe")
    second.load_state_dict(first.state_dict())
    second.prepare_data()
    second.setup("test")
    assert second.tokenizer.state == first.tokenizer.state


# Own texts


def test_folders_and_globs_are_read_in_order_with_a_line_between(tmp_path: Path) -> None:
    own(tmp_path, "B" * 500, "books/b.txt")
    own(tmp_path, "A" * 500, "books/deep/a.txt")
    own(tmp_path, "M" * 500, "books/c.md")
    assert [path.name for path in find_texts(str(tmp_path / "books"))] == ["b.txt", "a.txt"]
    data = ready(tmp_path, path=str(tmp_path / "books"))
    whole = "".join(
        data.tokenizer.decode(part.tokens.tolist()) for part in (data.train_set, data.val_set, data.test_set)
    )
    assert whole == "B" * 500 + "\n" + "A" * 500
    assert [path.name for path in find_texts(str(tmp_path / "books" / "*.*"))] == ["b.txt", "c.md"]


def test_byte_order_marks_and_hidden_files_are_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", ".git/c.txt", "._a.txt", "__MACOSX/a.txt"):
        own(tmp_path, "\ufeff" + name[0] * 500, f"books/{name}")
    data = ready(tmp_path, path=str(tmp_path / "books"))
    tokens = [token for part in (data.train_set, data.val_set, data.test_set) for token in part.tokens.tolist()]
    assert data.tokenizer.decode(tokens) == "a" * 500 + "\n" + "b" * 500


def test_a_bad_byte_behind_a_byte_order_mark_is_counted_from_the_start(tmp_path: Path) -> None:
    path = own(tmp_path, b"\xef\xbb\xbfabc\xff" + b"x" * 500)
    with pytest.raises(InputError, match="is not UTF-8: byte 6 is 0xff, in line 1"):
        ready(tmp_path, path=path)


@pytest.mark.parametrize("text", ["to be or not to be ", "быть или не быть\n"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_a_text_in_utf_16_is_named(tmp_path: Path, encoding: str, text: str) -> None:
    with pytest.raises(InputError, match=r"own.txt seems to be UTF-16: save it as UTF-8"):
        ready(tmp_path, path=own(tmp_path, (text * 50).encode(encoding)))


@pytest.mark.parametrize("start", [0, 70, sources.CHUNK - 1])
def test_a_bad_byte_is_named_with_file_and_offset(tmp_path: Path, start: int) -> None:
    own(tmp_path, "good text " * 50, "books/a.txt")
    content = ("é" * (start // 2 + 1)).encode()[:start] if start % 2 == 0 else b"x" + "é".encode() * (start // 2)
    own(tmp_path, content + b"\xff and more", "books/b.txt")
    with pytest.raises(InputError, match=rf"books/b\.txt is not UTF-8: byte {start} is 0xff"):
        ready(tmp_path, path=str(tmp_path / "books"))


def test_a_file_that_ends_within_a_character_is_named_too(tmp_path: Path) -> None:
    path = own(tmp_path, b"a" * 500 + b"\xe2\x82")
    with pytest.raises(InputError, match="is not UTF-8: byte 500 is 0xe2"):
        ready(tmp_path, path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has 0 characters: too few"), ("a", "has 1 characters"), ("a" * 50, r"the val part .* has 5 tokens|needs")],
)
def test_a_text_too_short_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(tmp_path, path=own(tmp_path, content), block_size=64)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("missing.txt", "no such file"), ("*.md", "no such file"), ("empty", "no .txt file")):
        with pytest.raises(InputError, match=message):
            ready(tmp_path, path=str(tmp_path / path))


@pytest.mark.parametrize("arguments", [{"block_size": 1}, {"batch_size": 0}, {"max_vocab_size": 256}])
def test_an_argument_out_of_range_is_named(arguments: dict[str, int]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        TextDataModule(**arguments)  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = own(tmp_path, "a" * 500)
    with pytest.raises(InputError, match=r"own.txt/cache cannot be written .*--data.cache_dir"):
        ready(tmp_path, path=path, cache_dir=f"{path}/cache")


def test_tokens_in_a_folder_that_only_its_owner_can_write_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own(tmp_path, "a" * 500)
    first = ready(tmp_path, path=path)
    (tmp_path / "cache" / ".lock").unlink(missing_ok=True)
    monkeypatch.setattr(corpus.os, "access", lambda *_: False)
    again = ready(tmp_path, path=path)
    assert len(again.train_set) == len(first.train_set)
    assert not (tmp_path / "cache" / ".lock").exists()


# Named texts


@pytest.fixture
def shakespeare(monkeypatch: pytest.MonkeyPatch) -> bytes:
    content = b"First Citizen: speak, speak. " * 50
    monkeypatch.setattr(corpus, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    return content


def test_shakespeare_is_downloaded_and_checked(
    shakespeare: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, shakespeare[:-1], "mirror/input.txt")
    with serving(tmp_path / "mirror") as url:
        monkeypatch.setattr(corpus, "SHAKESPEARE_URL", f"{url}input.txt")
        with pytest.raises(InputError, match=r"could not be downloaded .*invalid hash"):
            ready(tmp_path, source="tiny_shakespeare")
        assert not (tmp_path / "data").exists()
        own(tmp_path, shakespeare, "mirror/input.txt")
        data = ready(tmp_path)
    assert data.data_source == "tiny_shakespeare"
    assert [file.name for file in (tmp_path / "data" / "tiny_shakespeare").iterdir()] == ["input.txt"]
    assert ready(tmp_path).data_source == "tiny_shakespeare"  # without the network now


def test_another_text_in_its_place_is_not_taken_for_shakespeare(shakespeare: bytes, tmp_path: Path) -> None:
    own(tmp_path, "something else", "data/tiny_shakespeare/input.txt")
    with pytest.raises(InputError, match=r"input\.txt is not the published file"):
        ready(tmp_path)


def test_without_file_and_network_pythons_reference_is_announced(tmp_path: Path, messages: list[str]) -> None:
    data = ready(tmp_path)
    assert data.data_source == data.hparams["data_source"] == "python_reference"
    assert any("NOT SHAKESPEARE" in message for message in messages)
    assert len(data.train_set.tokens) > 100_000
    with pytest.raises(InputError, match="tiny Shakespeare could not be downloaded"):
        ready(tmp_path, source="tiny_shakespeare")


# Whole runs


def test_a_tokenizer_that_loses_text_gives_no_bits_per_character(tmp_path: Path, messages: list[str]) -> None:
    pytest.importorskip("transformers")
    text = own(tmp_path, f"{WORDS}\n" * 40)
    data = ready(tmp_path, path=text, tokenizer=tiny_pretrained("bert", tmp_path))  # which drops line breaks
    assert data.tokens_per_char == {}
    assert any("loses parts of the text: no bits_per_char is logged" in line for line in messages)
    messages.clear()
    data = ready(tmp_path, path=text, tokenizer="bpe", max_vocab_size=300)
    assert set(data.tokens_per_char) == {"train", "val", "test"}
    assert not any("loses parts" in line for line in messages)
