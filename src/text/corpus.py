"""Plain text for language models: windows of tokens from a memory-mapped file."""

import codecs
import glob
import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from src import ROOT
from src.engine.data.batched import BatchDataset, BatchedDataModule, check_loaded
from src.engine.data.download import DownloadError, published, unwritable, write_atomically
from src.engine.data.files import find_files, not_utf8, open_utf8, skipped_line
from src.engine.data.loading import IGNORED, Batches, Order, announce, batch_loader
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError, check_least
from src.text.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    check_tokens,
    pretrained_tokenizer,
    restore_tokenizer,
    train_bpe,
)

CHUNK = 2**20  # bytes read at a time
CHECKED = 10_000  # characters that are decoded again, to see whether the tokenizer keeps all of them
FORMAT = "4"  # part of every cache key; increase it when the files change
PROGRESS_DELAY = 2.0  # seconds before a progress bar appears
# Tiny Shakespeare (Karpathy 2015).
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

AS_TABLES = {"json", "jsonl", "ndjson", "csv", "tsv"}  # endings of files that are not plain text

Batch = tuple[Tensor, Tensor]


class Windows(BatchDataset):
    """Windows of a token sequence; a whole batch is read in one indexing operation.

    Args:
        tokens: (N,) integers, such as a memory map.
        block_size: T, tokens per window.
        stride: tokens between the starts of two windows: 1 gives all full windows; T gives each token once, and the
            last window is padded.
    """

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, stride: int) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride

    def __len__(self) -> int:
        if self.stride < self.block_size:
            return max((len(self.tokens) - 1 - self.block_size) // self.stride + 1, 0)
        return -(-(len(self.tokens) - 1) // self.stride)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Inputs (B, T) int64 and targets (B, T) int64: the next tokens, or `IGNORED` after the last token."""
        starts = np.asarray(indices) * self.stride
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

    Files are joined in the order of their paths, with a line break between, so windows may cross from one to the next.
    The last tenth of the characters is the test part, the last tenth of the rest the validation part; no window crosses
    a border. Batches are inputs (B, T) int64 and targets (B, T) int64, the next tokens. Training windows are random;
    validation and test use each token as a target once, except the first.

    Raises:
        InputError: an argument is out of range; the text is missing, too short, or not UTF-8 (the message names file
            and byte); or a folder cannot be written.
    """

    def __init__(
        self,
        path: str | None = None,
        source: Literal["auto", "tiny_shakespeare", "python_reference"] = "auto",
        data_dir: str | None = None,
        cache_dir: str | None = None,
        tokenizer: str = "bytes",
        max_vocab_size: int = 4096,
        block_size: int = 128,
        batch_size: int = 32,
        final: bool = False,
    ) -> None:
        super().__init__()
        check_least(257, max_vocab_size=max_vocab_size)
        check_least(2, block_size=block_size)
        check_least(1, batch_size=batch_size)
        self.save_hyperparameters()
        self.path = path
        self.source = source
        self.data_dir = Path(data_dir).expanduser() if data_dir is not None else ROOT / "data"
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else ROOT / "data" / "tokens"
        self.tokenizer_name = tokenizer
        self.max_vocab_size = max_vocab_size
        self.block_size = block_size
        self.batch_size = batch_size
        self.final = final
        self.tokens_per_char: dict[str, float] = {}
        """Tokens per character in each part; set by `setup`."""
        self.data_source = path or source  # the text in use is known after `setup`
        self._restored: Tokenizer | None = None
        self._text = self._restored_text = list[Any]()  # source, hash and `final`, which decide what is trained on
        self._folder: Path | None = None

    def prepare_data(self) -> None:
        """Find or download the text and write its tokens, once per machine."""
        if self._folder is not None:
            return
        files = self._find_files()
        digest, characters = _hash_and_count(files)
        self._text = [str(self.data_source), digest, self.final]
        if self._restored_text[:1] == self._text[:1] and self._restored_text != self._text:
            changed = f"the text of {self.data_source} or --data.final has changed since training"
            announce(f"{changed}: validation or test may contain text that was trained on")
        splits = split_sizes(characters)
        if not all(splits.values()):
            raise InputError(f"{self.data_source} has {characters} characters: too few to split, give a longer text")
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache_dir / ".lock"):
                self.tokenizer = self._find_tokenizer(files, digest, splits)
                folder = self.cache_dir / _cache_key(digest, self.tokenizer.state)
                if not folder.exists():
                    _write_tokens(files, splits, digest, self.tokenizer, folder)
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
        if self.final:
            parts["train"] = tokens[: ends[1]]
            rank_zero_info("Training on the validation part too: val/loss does not measure generalization")
        for part, minimum in (("train", self.block_size + 1), ("val", 2), ("test", 2)):
            if len(parts[part]) < minimum:
                raise InputError(
                    f"the {part} part of {self.data_source} has {len(parts[part])} tokens, block_size {self.block_size}"
                    f" needs {minimum}: give a longer text or a smaller --data.block_size"
                )
        if self._restored is None:
            check_tokens(self.tokenizer, [parts["train"][:CHUNK]], self.tokenizer_name)
        self.tokens_per_char = {part: counts[part] / characters[part] for part in counts if facts["is_whole"]}
        if not facts["is_whole"]:
            announce(f"the tokenizer {self.tokenizer_name} loses parts of the text: no bits_per_char is logged")
        self.save_hyperparameters({"data_source": self.data_source})
        self.train_set = Windows(parts["train"], self.block_size, stride=1)
        self.val_set = Windows(parts["val"], self.block_size, self.block_size)
        self.test_set = Windows(parts["test"], self.block_size, self.block_size)

    def network_arguments(self) -> dict[str, Any]:
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

    def _find_files(self) -> list[Path]:
        if self.path is not None:
            return find_texts(self.path)
        if self.source != "python_reference":
            place = self.data_dir / "tiny_shakespeare" / "input.txt"
            try:
                self.data_source = "tiny_shakespeare"
                return [published(SHAKESPEARE_URL, SHAKESPEARE_SHA256, place)]
            except DownloadError as error:
                problem = f"tiny Shakespeare could not be downloaded ({error})"
                if self.source == "tiny_shakespeare":
                    raise InputError(f"{problem}: save it as {place}") from error
                rank_zero_info(problem)
            announce("*** NOT SHAKESPEARE: using Python's language reference; results are not comparable. ***")
        self.data_source = "python_reference"
        return [python_reference(self.cache_dir)]

    def _find_tokenizer(self, files: list[Path], digest: str, splits: dict[str, int]) -> Tokenizer:
        if self._restored is not None:
            return self._restored
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name != "bpe":
            return pretrained_tokenizer(self.tokenizer_name)
        cached = self.cache_dir / f"bpe-{_cache_key(digest, str(self.max_vocab_size))}.json"
        if not cached.exists():
            rank_zero_info(f"Training byte-pair encoding with up to {self.max_vocab_size} tokens ...")
            texts = (text for _, text in _pieces(files, {"train": splits["train"]}))
            write_atomically(cached, train_bpe(texts, self.max_vocab_size).state.encode("utf-8"), "cache_dir")
        return restore_tokenizer(cached.read_text(encoding="utf-8"))


def find_texts(path: str) -> list[Path]:
    """The files of a path: a file, a folder (its .txt files, without hidden ones) or a glob; sorted.

    Raises:
        InputError: there are none.
    """
    given = local_path(path)
    if given.is_dir():
        skipped: Counter[str] = Counter()
        files = sorted(find_files(given, (".txt",), skipped))
        if skipped:
            rank_zero_info(skipped_line(skipped, ".txt"))
        problem = "no .txt file in this folder; use a glob for other files"
    else:
        names = [str(given)] if given.is_file() else glob.glob(str(given), recursive=True)
        files = sorted(file for name in names if (file := Path(name)).is_file())
        problem = "no such file; give a file, a folder with .txt files, or a glob"
    if not files:
        raise InputError(f"--data.path {path}: {problem}")
    if found := sorted({file.name.lower().removesuffix(".gz").rpartition(".")[2] for file in files} & AS_TABLES):
        announce(f".{' and .'.join(found)} files are read as they are, with keys and quotes: .txt files have none")
    return files


def python_reference(folder: Path) -> Path:
    """A file with the language reference included in Python, half a million characters; written if missing."""
    from pydoc_data.topics import topics

    content = ("\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n").encode("utf-8")
    path = folder / f"python_reference-{hashlib.sha256(content).hexdigest()[:16]}.txt"
    if not path.exists():
        write_atomically(path, content, "cache_dir")
    return path


def _hash_and_count(files: list[Path]) -> tuple[str, int]:
    """SHA-256 and number of characters of a text."""
    digest, characters = hashlib.sha256(), 0
    for text in _read(files, "Reading"):
        digest.update(text.encode())
        characters += len(text)
    return digest.hexdigest(), characters


def _read(files: list[Path], title: str) -> Iterator[str]:
    """The text of all files in pieces, with a line break between files; with a progress bar."""
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, delay=PROGRESS_DELAY, leave=False) as bar:
        for number, path in enumerate(files):
            if number:
                yield "\n"
            try:
                with open_utf8(path) as file:
                    chunks = iter(partial(CallbackIOWrapper(bar.update, file).read, CHUNK), b"")
                    yield from codecs.iterdecode(chunks, "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path) from error
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _pieces(files: list[Path], splits: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (part, text) pieces; they end at line breaks if possible, so that few words are cut."""
    texts = _read(files, "Tokenizing")
    buffer = ""
    for part, left in splits.items():
        while left:
            if len(buffer) < left:
                more = next(texts, "")
                if not more:
                    raise InputError(f"{files[0].parent}: a text has changed while it was read: start again")
                buffer += more
            piece = buffer[:left]
            if len(piece) < left:
                piece = piece[: piece.rfind("\n") + 1] or piece
            buffer = buffer[len(piece) :]
            left -= len(piece)
            yield part, piece


def _write_tokens(files: list[Path], splits: dict[str, int], digest: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokens and sizes to a temporary folder, and rename it when complete."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    counts = dict.fromkeys(splits, 0)
    written = hashlib.sha256()
    partial = folder.with_name(f".{folder.name}-1")  # not by tempfile, which overrides the user's umask
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        with (partial / "tokens.bin").open("wb") as file:
            is_whole, checked = True, 0
            for part, text in _pieces(files, splits):
                written.update(text.encode())
                ids = tokenizer.encode(text).astype(dtype, copy=False)
                if is_whole and checked < CHECKED:  # a tokenizer may drop case, accents or line breaks
                    some = text[: CHECKED - checked]
                    checked += len(some)
                    is_whole = tokenizer.decode(tokenizer.encode(some).tolist()).strip() == some.strip()
                file.write(ids.data)
                counts[part] += len(ids)
        if written.hexdigest() != digest:
            raise InputError(f"{files[0].parent}: a text has changed while it was read: start again")
        facts = {"dtype": dtype.name, "tokens": counts, "characters": splits, "is_whole": is_whole}
        (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cache_key(*parts: str) -> str:
    return hashlib.sha256("\0".join((FORMAT, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def split_sizes(characters: int) -> dict[str, int]:
    """Number of characters in each part of a text, in their order."""
    development = characters * 9 // 10
    train = development * 9 // 10
    return {"train": train, "val": development - train, "test": characters - development}
