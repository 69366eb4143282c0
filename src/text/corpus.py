"""Plain text for language models: windows of tokens from a memory-mapped file."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from src import ROOT
from src.engine.data.batched import BatchDataset, BatchedDataModule, check_loaded
from src.engine.data.download import DownloadError, data_folder, published, unwritable, write_atomically
from src.engine.data.folds import check_fold
from src.engine.data.loading import IGNORED, Batches, Order, announce, batch_loader
from src.engine.system.errors import InputError, check_least
from src.text.sources import CHUNK, cache_key, file_stats, find_texts, known_hash, python_reference, read_texts
from src.text.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    check_tokens,
    pretrained_tokenizer,
    restore_tokenizer,
    train_bpe,
)

PARTS = ("train", "val", "test")
CHECKED = 10_000  # characters that are decoded again, to see whether the tokenizer keeps all of them
# Tiny Shakespeare (Karpathy 2015).
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

Batch = tuple[Tensor, Tensor]


class Windows(BatchDataset):
    """Windows of a token sequence; a whole batch is read in one indexing operation.

    Args:
        tokens: (N,) integers, such as a memory map.
        block_size: T, tokens per window.
        stride: tokens between the starts of two windows: 1 gives all full windows; T gives each token once, and the
            last window is padded.
        gap: start and end of tokens that no window may touch; with stride 1 only.
    """

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, stride: int, gap: tuple[int, int] = (0, 0)) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride
        self.before = max(gap[0] - block_size, 0)  # windows before the gap
        self.end = gap[1]

    def __len__(self) -> int:
        if self.stride < self.block_size:
            return self.before + max((len(self.tokens) - self.end - 1 - self.block_size) // self.stride + 1, 0)
        return -(-(len(self.tokens) - 1) // self.stride)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Inputs (B, T) int64 and targets (B, T) int64: the next tokens, or `IGNORED` after the last token."""
        starts = np.asarray(indices) * self.stride
        starts = np.where(starts < self.before, starts, starts - self.before + self.end)
        window = starts[:, None] + np.arange(self.block_size + 1)  # (B, T + 1)
        last = len(self.tokens) - 1
        tokens = torch.from_numpy(self.tokens[np.minimum(window, last)].astype(np.int64))
        targets = tokens[:, 1:].masked_fill(torch.from_numpy(window[:, 1:] > last), IGNORED)
        return tokens[:, :-1].contiguous(), targets  # pinned memory is copied without waiting only if contiguous


def random_starts(windows: Windows) -> Order:
    """Random window starts; memory does not grow with the text."""

    def draw(generator: torch.Generator) -> Iterator[int]:
        while True:
            yield from torch.randint(len(windows), (1024,), generator=generator).tolist()

    return draw


class TextDataModule(BatchedDataModule):
    """Plain text for language modelling.

    Args:
        path: your own text in UTF-8: a file, a folder (every .txt file in it), or a glob such as 'books/*.md'.
        val_path: the same for validation, together with `test_path`. Default: a part of `path`.
        test_path: the same for test, together with `val_path`. Default: a part of `path`.
        source: the text if no path is given: `tiny_shakespeare`, downloaded if missing; `python_reference`, the
            language reference included in Python; or `auto`, `tiny_shakespeare`, or
            `python_reference` if that is missing and cannot be downloaded.
        data_dir: folder for downloads. Default: `data/` in the project.
        cache_dir: folder for tokens, written once per text and tokenizer. Default: `data/tokens/` in the project.
        tokenizer: `bytes`; `bpe`, byte-pair encoding trained on the training part; or the hub name or folder of a
            pretrained model whose tokenizer is used.
        max_vocab_size: maximum number of tokens of `bpe`, at least 257.
        block_size: T, tokens per window, at least 2.
        batch_size: windows per batch, all processes together, at least 1.
        final: train on the validation part too, for the final test result.
        fold: validate on this fold of training and validation part, 1 to folds, and train on the text before and after
            it; default: none.
        folds: number of folds, at least 2.

    Files are joined in the order of their paths, with a line break between, so windows may cross from one to the
    next. Without paths for them, the last tenth of the characters is the test part, the last tenth of the rest the
    validation part. No window crosses a border. Batches are inputs (B, T) int64 and targets (B, T) int64, the next
    tokens. Training windows are random; validation and test use each token as a target once, except the first.

    Raises:
        InputError: an argument is out of range; the text is missing, too short, or not UTF-8 (the message names file
            and byte); or a folder cannot be written.
    """

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        source: Literal["auto", "tiny_shakespeare", "python_reference"] = "auto",
        data_dir: str | None = None,
        cache_dir: str | None = None,
        tokenizer: str = "bytes",
        max_vocab_size: int = 4096,
        block_size: int = 128,
        batch_size: int = 32,
        final: bool = False,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__()
        check_least(257, max_vocab_size=max_vocab_size)
        check_least(2, block_size=block_size)
        check_least(1, batch_size=batch_size)
        check_fold(fold, folds)
        if final and fold is not None:
            raise InputError(f"fold {fold} and final cannot be combined: final has no validation part")
        paths = (path, val_path, test_path)
        if any(paths[1:]) and not all(paths):
            raise InputError("--data.path, --data.val_path and --data.test_path: give all three, or only --data.path")
        self.save_hyperparameters()
        self.paths = {
            name: given for name, given in zip(("path", "val_path", "test_path"), paths, strict=True) if given
        }
        self.source = source
        self.data_dir = data_folder(data_dir)
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else ROOT / "data" / "tokens"
        self.tokenizer_name = tokenizer
        self.max_vocab_size = max_vocab_size
        self.block_size = block_size
        self.batch_size = batch_size
        self.final = final
        self.fold = (fold, folds)
        self._fold_key = [f"fold {fold} of {folds}"] if fold is not None else []
        self.tokens_per_char: dict[str, float] = {}
        """Tokens per character in each part; set by `setup`."""
        self.data_source = path or source
        """Path or source of the text in use; set by `setup`."""
        self._restored: Tokenizer | None = None
        self._text = self._restored_text = list[Any]()  # source, hash and fold, by which the text is split
        self._folder: Path | None = None

    def prepare_data(self) -> None:
        """Find or download the text and write its tokens, once per machine."""
        if self._folder is not None:
            return
        groups = self._find_files()
        files = [file for own in groups for file in own]
        stats = file_stats(files)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            # Others may share a folder that only its owner can write.
            with FileLock(self.cache_dir / ".lock") if os.access(self.cache_dir, os.W_OK) else nullcontext():
                known = [known_hash(own, file_stats(own), self.cache_dir) for own in groups]
                digest = known[0][0] if len(known) == 1 else cache_key(*(one for one, _ in known))
                if len({one for one, _ in known}) < len(known):
                    announce("two of --data.path, --data.val_path and --data.test_path hold the same text")
                characters = [count + (number > 0) for number, (_, count) in enumerate(known)]  # and a line break
                fold = self.fold if self.fold[0] else ()
                self._text, before = [str(self.data_source), digest, *fold, self.final], self._restored_text
                if before[:1] == self._text[:1] and before != self._text:
                    parts = "validation and test" if before[1:2] != [digest] else "validation"
                    changed = f"the text of {self.data_source}, its fold or --data.final has changed since training"
                    announce(f"{changed}: {parts} may contain text that was trained on")
                splits = split_sizes(characters, *self.fold)
                if not splits["train"] + splits.get("after", 0) or not splits["val"] or not splits["test"]:
                    raise InputError(
                        f"{self.data_source} has {sum(characters)} characters: too few to split, give a longer text"
                    )
                self.tokenizer = self._find_tokenizer(files, digest, splits)
                folder = self.cache_dir / cache_key(digest, self.tokenizer.state, *self._fold_key)
                if not folder.exists():
                    _write_tokens(files, splits, self.tokenizer, folder, stats)
        except OSError as error:
            raise unwritable(self.cache_dir, error, "cache_dir") from error
        self._folder = folder

    def setup(self, stage: str) -> None:
        """Open the tokens, in every process."""
        if hasattr(self, "train_set"):
            return
        self.prepare_data()
        assert self._folder is not None
        self.vocab_size = self.tokenizer.vocab_size
        facts = json.loads((self._folder / "facts.json").read_text(encoding="utf-8"))
        tokens = np.memmap(self._folder / "tokens.bin", dtype=facts["dtype"], mode="r").view(np.ndarray)
        counts, characters = facts["tokens"], facts["characters"]
        ends = np.cumsum([*counts.values()])
        parts = dict(zip(counts, np.split(tokens, ends[:-1]), strict=True))
        gap = (0, 0)
        if "after" in counts:
            parts["train"], gap = tokens[: ends[2]], (counts["train"], int(ends[1]))
            for sizes in (counts, characters):
                sizes["train"] += sizes["after"]
        if self.final:
            parts["train"] = tokens[: ends[1]]
            rank_zero_info("Training on the validation part too: val/loss does not measure generalization")
        for part, minimum in (("train", self.block_size + 1), ("val", 2), ("test", 2)):
            length = max(gap[0], len(parts[part]) - gap[1]) if part == "train" else len(parts[part])
            if length < minimum:
                raise InputError(
                    f"the {part} part of {self.data_source} has {length} tokens, block_size {self.block_size}"
                    f" needs {minimum}: give a longer text or a smaller --data.block_size"
                )
        if self._restored is None:
            check_tokens(self.tokenizer, [parts["train"][:CHUNK]], self.tokenizer_name)
        self.tokens_per_char = {part: counts[part] / characters[part] for part in PARTS if facts["is_whole"]}
        if not facts["is_whole"]:
            announce(f"the tokenizer {self.tokenizer_name} loses parts of the text: no bits_per_char is logged")
        self.save_hyperparameters({"data_source": self.data_source})
        self.train_set = Windows(parts["train"], self.block_size, stride=1, gap=gap)
        self.val_set, self.test_set = (Windows(parts[part], self.block_size, self.block_size) for part in PARTS[1:])

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the text."""
        self.setup("fit")
        return {"vocab_size": self.vocab_size, "block_size": self.block_size}

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.state, "text": self._text}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's tokenizer; call it before `prepare_data`."""
        check_loaded(self, state_dict, "tokenizer")
        self.tokenizer = self._restored = restore_tokenizer(state_dict["tokenizer"])
        self._restored_text = list(state_dict.get("text", ()))

    def train_dataloader(self) -> DataLoader[Batch]:
        # As many windows per epoch as hold all tokens once.
        count = max(1, (len(self.train_set) + self.block_size) // self.block_size)
        batches = Batches(count, self.batch_size, self.trainer, random_starts(self.train_set))
        return batch_loader(self.train_set, batches)

    def _find_files(self) -> list[list[Path]]:
        """The files of the text, or of each of its parts."""
        if self.paths:
            return [find_texts(path, option) for option, path in self.paths.items()]
        if self.source != "python_reference":
            place = self.data_dir / "tiny_shakespeare" / "input.txt"
            try:
                self.data_source = "tiny_shakespeare"
                return [[published(SHAKESPEARE_URL, SHAKESPEARE_SHA256, place)]]
            except DownloadError as error:
                if self.source == "tiny_shakespeare":
                    raise InputError(
                        f"tiny Shakespeare could not be downloaded ({error}): save it as {place}, or give your own text"
                        " with --data.path"
                    ) from error
                rank_zero_info(f"Tiny Shakespeare is not in {self.data_dir} and could not be downloaded: {error}")
            announce("*** NOT SHAKESPEARE: using Python's language reference; results are not comparable. ***")
        self.data_source = "python_reference"
        return [[python_reference(self.cache_dir)]]

    def _find_tokenizer(self, files: list[Path], digest: str, splits: dict[str, int]) -> Tokenizer:
        if self._restored is not None:
            return self._restored
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name != "bpe":
            return pretrained_tokenizer(self.tokenizer_name)
        cached = self.cache_dir / f"bpe-{cache_key(digest, str(self.max_vocab_size), *self._fold_key)}.json"
        if not cached.exists():
            rank_zero_info(f"Training byte-pair encoding with up to {self.max_vocab_size} tokens ...")
            read = {part: size for part, size in splits.items() if part != "test"}
            texts = (text for part, text in _pieces(files, read) if part != "val")
            write_atomically(cached, train_bpe(texts, self.max_vocab_size).state.encode("utf-8"), "cache_dir")
        return restore_tokenizer(cached.read_text(encoding="utf-8"))


def _pieces(files: list[Path], splits: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (part, text) pieces; they end at line breaks if possible, so that few words are cut."""
    texts = read_texts(files, "Tokenizing")
    buffer = ""
    for part, left in splits.items():
        while left:
            if len(buffer) < left:
                buffer += next(texts, "") or _raise_changed(files)
            piece = buffer[:left]
            if len(piece) < left:
                piece = piece[: piece.rfind("\n") + 1] or piece
            buffer = buffer[len(piece) :]
            left -= len(piece)
            yield part, piece


def _raise_changed(files: list[Path]) -> NoReturn:
    raise InputError(f"{files[0]}{' or another file' if len(files) > 1 else ''} changed while it was read: start again")


def _write_tokens(
    files: list[Path], splits: dict[str, int], tokenizer: Tokenizer, folder: Path, stats: list[list[int]]
) -> None:
    """Write tokens and sizes to a temporary folder, and rename it when complete."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    counts = dict.fromkeys(splits, 0)
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")  # not by tempfile, which overrides the user's umask
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    try:
        with (partial / "tokens.bin").open("wb") as file:
            is_whole, checked = True, 0
            for part, text in _pieces(files, splits):
                ids = tokenizer.encode(text).astype(dtype, copy=False)
                if is_whole and checked < CHECKED:  # a tokenizer may drop case, accents or line breaks
                    some = text[: CHECKED - checked]
                    checked += len(some)
                    is_whole = tokenizer.decode(tokenizer.encode(some).tolist()).strip() == some.strip()
                file.write(ids.data)
                counts[part] += len(ids)
        if [one[:2] for one in file_stats(files)] != [one[:2] for one in stats]:
            _raise_changed(files)
        facts = {"dtype": dtype.name, "tokens": counts, "characters": splits, "is_whole": is_whole}
        (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def split_sizes(characters: list[int], fold: int | None = None, folds: int = 5) -> dict[str, int]:
    """Number of characters in each part of a text, in their order; with a fold, `after` is for training too.

    `characters` are those of the whole text, or of its parts.
    """
    whole = sum(characters)
    development = whole - (characters[2] if len(characters) == 3 else whole - whole * 9 // 10)
    if fold is not None:
        start, end = development * (fold - 1) // folds, development * fold // folds
        parts = {"train": start, "val": end - start, "after": development - end}
    else:
        train = characters[0] if len(characters) == 3 else development * 9 // 10
        parts = {"train": train, "val": development - train}
    return {**parts, "test": whole - development}
