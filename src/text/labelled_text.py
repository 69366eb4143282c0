"""Texts with labels, from your own tables or a public data set, in batches of similar length."""

import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from src.engine.data.batched import BatchDataset, check_loaded
from src.engine.data.download import DownloadError, data_folder, download, write_atomically
from src.engine.data.folds import check_fold
from src.engine.data.labelled_files import LabelledDataModule
from src.engine.data.labelled_tables import Columns, Row, read_columns
from src.engine.data.labels import check_known, label_order
from src.engine.data.loading import Batches, Order, announce, batch_loader
from src.engine.data.split import PARTS, check_parts, fold_samples, report_duplicates, stratified_indices
from src.engine.data.texts import Texts
from src.engine.system.errors import InputError, check_least
from src.text.tokenizer import (
    ByteTokenizer,
    Ids,
    Tokenizer,
    check_tokens,
    pretrained_tokenizer,
    restore_tokenizer,
    train_bpe,
    train_words,
)

Batch = tuple[Tensor, Tensor, Tensor]

TRAINED = {"bpe": train_bpe, "words": train_words}
CHECKED = 100_000  # tokens with which a tokenizer is checked
CHUNK = 10_000  # texts that are tokenized together
CUT = 0.01  # share of the training texts from which cutting them off is reported
POOL = 50  # number of batches that are sorted by length together
# Sentence polarity dataset v1.0 (Pang and Lee 2005).
POLARITY_URL = "https://storage.googleapis.com/seldon-datasets/sentence_polarity_v1/rt-polaritydata.tar.gz"
POLARITY_SHA256 = "a05befe52aafda71d458d188a1c54506a998b1308613ba76bbda2e5029409ce9"
POLARITY_LABELS = {"neg": "negative", "pos": "positive"}
POLARITY_LINES = 5331  # in each of the two files

# Languages of the CLDR names; 20 of the 34 are written in Latin script.
LANGUAGES = (
    *("cs", "cy", "de", "es", "et", "eu", "fi", "fr", "hu", "is", "it", "lt", "nl", "pl", "pt", "sq", "sv", "sw"),
    *("tr", "vi", "am", "ar", "el", "he", "hi", "hy", "ja", "ka", "ko", "ru", "ta", "th", "uk", "zh"),
)


class TokenizedTexts(BatchDataset):
    """Token sequences of any length, with class numbers.

    Args:
        ids: token IDs of all texts.
        lengths: number of tokens of each text.
        targets: class number of each text.
        starts: place of the first token of each text. Default: one text follows the other.
    """

    def __init__(self, ids: Ids, lengths: Any, targets: Any, starts: Any = None) -> None:
        self.ids = ids
        self.lengths = torch.as_tensor(lengths)
        self.starts = self.lengths.cumsum(0) - self.lengths if starts is None else torch.as_tensor(starts)
        self.targets = torch.as_tensor(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Tokens (B, T) int64, mask (B, T) bool, true for tokens, and targets (B,) int64."""
        starts, ends = self.starts[indices], self.starts[indices] + self.lengths[indices]
        tokens, mask = padded([self.ids[first:end] for first, end in zip(starts.tolist(), ends.tolist(), strict=True)])
        return tokens, mask, self.targets[indices]


def report_cut(lengths: list[int], limit: int, what: str) -> None:
    """Report how many training texts (or other `what`) may have been cut off, if more than a few."""
    if (count := sum(length >= limit for length in lengths)) > CUT * len(lengths):
        reached = f"{count:,} of {len(lengths):,} training {what} reach the limit of {limit} tokens"
        announce(f"{reached}; longer ones are cut off: to keep more, raise --data.max_length")


def padded(ids: list[Ids]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) int64, padded to the longest sequence, and mask (B, T) bool, true for tokens."""
    rows = [torch.from_numpy(one.astype(np.int64)) for one in ids]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, mask


def by_length(lengths: Tensor, batch_size: int) -> Order:
    """A shuffled order in which the texts of a batch have similar lengths, so that there is little padding."""

    def draw(generator: torch.Generator) -> Iterator[int]:
        pools = torch.split(torch.randperm(len(lengths), generator=generator), POOL * batch_size)
        order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        full = len(order) // batch_size
        # The incomplete batch comes last: anywhere else it would shift the borders of all later batches.
        for number in [*torch.randperm(full, generator=generator).tolist(), full]:
            yield from order[number * batch_size : (number + 1) * batch_size].tolist()

    return draw


class LabelledTextDataModule(LabelledDataModule):
    """Texts with labels, such as language, sentiment or topic.

    Args:
        path: your own table: .csv, .tsv, .jsonl or .parquet.
        val_path: table for validation. Default: `val_share` of `path`.
        test_path: table for test. Default: `test_share` of `path`.
        text_column: name of the column with the texts.
        label_column: name of the column with the labels, words or numbers.
        source: the texts if no path is given: `rt_polarity`, positive and negative sentences from film reviews,
            downloaded if missing; `language_names`, names of countries, languages and currencies in 34 languages, from
            the package Babel; or `auto`, `rt_polarity`, or `language_names` if that is missing and cannot
            be downloaded.
        data_dir: folder for downloads. Default: `data/` in the project.
        tokenizer: `bytes`; `bpe`, byte-pair encoding trained on the training part; `words`, the lower-case words of the
            training part; or the hub name or folder of a pretrained model whose tokenizer is used.
        max_vocab_size: maximum number of tokens of `bpe` or `words`, at least 257.
        max_length: maximum number of tokens per text, at least 2; the rest is cut off.
        batch_size: texts per batch, all processes together, at least 1.
        val_share: share of `path` for validation, in (0, 1), stratified, the same in every run.
        test_share: share of `path` for test, in (0, 1).
        fold: validate on this fold of training and validation part, 1 to folds, and train on the others; default: none.
        folds: number of folds, at least 2.

    Batches are tokens (B, T) int64, padded to the longest text, mask (B, T) bool, true for tokens, and targets (B,)
    int64, indices of `labels`.

    Raises:
        InputError: an argument is out of range, or a table or one of its rows cannot be used.
    """

    input_kind = "text"
    label_order = staticmethod(label_order)

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        source: Literal["auto", "rt_polarity", "language_names"] = "auto",
        data_dir: str | None = None,
        tokenizer: str = "bytes",
        max_vocab_size: int = 16384,
        max_length: int = 256,
        batch_size: int = 32,
        val_share: float = 0.1,
        test_share: float = 0.1,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__()
        check_least(257, max_vocab_size=max_vocab_size)
        check_least(2, max_length=max_length)
        check_least(1, batch_size=batch_size)
        check_fold(fold, folds)
        check_parts((path, val_path, test_path), "table", val_share, test_share)
        self.save_hyperparameters()
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.text_column = text_column
        self.label_column = label_column
        self.source = source
        self.data_dir = data_folder(data_dir)
        self.tokenizer_name = tokenizer
        self.max_vocab_size = max_vocab_size
        self.max_length = max_length
        self.batch_size = batch_size
        self.fold = (fold, folds)
        self.shares = {"val": val_share, "test": test_share}
        self.data_source = path or source  # the texts in use are known after `setup`

    def setup(self, stage: str) -> None:
        """Read, split and tokenize the texts, in every process."""
        if hasattr(self, "train_set"):
            return
        parts = self._load_source() if self.paths["train"] is None else self._load_tables()
        if self.fold[0] is not None:
            rows = {part: list(zip(*columns, strict=True)) for part, columns in parts.items()}
            folded = fold_samples(rows, *self.fold, label=itemgetter(1), key=itemgetter(0))
            parts = {part: _columns(own) for part, own in folded.items()}
        numbers = self.number_labels({part: labels for part, (_, labels) in parts.items()}, self.data_source, "texts")
        self.tokenizer = self._find_tokenizer(parts["train"][0])
        self.vocab_size = self.tokenizer.vocab_size
        self.save_hyperparameters({"data_source": self.data_source})
        texts = {part: texts for part, (texts, _) in parts.items()}
        report_duplicates(texts, "texts", lambda part, index: f"{texts[part][index][:60]!r}")
        self.train_set, self.val_set, self.test_set = (self._tokenize(texts[part], numbers[part]) for part in PARTS)
        if not self.restored:
            check_tokens(self.tokenizer, [self.train_set.ids[:CHECKED]], self.tokenizer_name)
        report_cut(self.train_set.lengths.tolist(), self.max_length, "texts")

    def network_arguments(self) -> dict[str, Any]:
        self.setup("fit")
        return {"vocab_size": self.vocab_size, "num_classes": self.num_classes}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "tokenizer": self.tokenizer.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's tokenizer and labels; call it before `setup`."""
        super().load_state_dict(state_dict)
        check_loaded(self, state_dict, "tokenizer")
        self.tokenizer = restore_tokenizer(state_dict["tokenizer"])

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens of texts (B, T) int64, padded to the longest text, and mask (B, T) bool, true for tokens.

        Call it after `setup` or `load_state_dict`, which set the tokenizer.
        """
        return padded(self.tokenizer.encode_batch(inputs, self.max_length))

    def notes(self, inputs: list[str]) -> list[str]:
        """Whether each text was cut off; not for a subclass that prepares its inputs itself."""
        if type(self).prepare is not LabelledTextDataModule.prepare:
            return [""] * len(inputs)
        # Half: a tokenizer may make more characters of one.
        long = [text for text in inputs if len(text.encode("utf-8", "replace")) > self.max_length // 2]
        lengths = map(len, self.tokenizer.encode_batch(long, self.max_length + 1))
        cut = {text for text, length in zip(long, lengths, strict=True) if length > self.max_length}
        return [f"cut off after {self.max_length} tokens" if text in cut else "" for text in inputs]

    def train_dataloader(self) -> DataLoader[Batch]:
        order = by_length(self.train_set.lengths, self.batch_size)
        return batch_loader(self.train_set, Batches(len(self.train_set), self.batch_size, self.trainer, order))

    def _tokenize(self, texts: Texts, targets: list[int]) -> TokenizedTexts:
        dtype = np.min_scalar_type(self.vocab_size - 1)
        if isinstance(self.tokenizer, ByteTokenizer) and texts.lengths.all():  # the texts are the tokens
            return TokenizedTexts(texts.data, texts.lengths.clip(max=self.max_length), targets, texts.starts)
        parts: list[Ids] = []
        lengths: list[int] = []
        empty: list[str] = []
        rest = iter(texts)
        while some := list(islice(rest, CHUNK)):
            ids = self.tokenizer.encode_batch(some, self.max_length)
            empty += [text for text, one in zip(some, ids, strict=True) if not len(one)]
            lengths += map(len, ids)
            parts.append(np.concatenate(ids).astype(dtype))
        if empty:
            problem = f"{len(empty):,} texts, such as {empty[0][:60]!a}, have no token in the tokenizer"
            raise InputError(f"{problem} {self.tokenizer_name}: remove them, or give another --data.tokenizer")
        return TokenizedTexts(np.concatenate(parts), lengths, targets)

    def _find_tokenizer(self, texts: Texts) -> Tokenizer:
        if self.restored:
            return self.tokenizer
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name in TRAINED:
            return TRAINED[self.tokenizer_name](iter(texts), self.max_vocab_size)
        return pretrained_tokenizer(self.tokenizer_name)

    def _load_source(self) -> dict[str, Columns]:
        if self.source != "language_names":
            try:
                self.data_source = "rt_polarity"
                return {part: _columns(rows) for part, rows in rt_polarity(self.data_dir).items()}
            except DownloadError as error:
                if self.source == "rt_polarity":
                    raise InputError(
                        f"rt-polarity could not be downloaded ({error}): put rt-polarity.neg and rt-polarity.pos into"
                        f" {self.data_dir / 'rt_polarity'}, or give your own table with --data.path"
                    ) from error
                rank_zero_info(f"rt-polarity could not be downloaded: {error}")
            announce("*** NOT REVIEWS: using names in 34 languages (CLDR); results are not comparable. ***")
        self.data_source = "language_names"
        return self._split(_columns(language_names()), ("val", "test"))

    def _load_tables(self) -> dict[str, Columns]:
        given = {part: path for part, path in self.paths.items() if path is not None}
        found = {part: read_columns(path, self.text_column, self.label_column) for part, path in given.items()}
        labels = {part: own for part, (_, own) in found.items()}
        check_known(labels, self.restored, lambda part, index: f"{given[part]}, row {index + 1}")
        return self._split(found.pop("train"), [part for part in ("val", "test") if part not in found]) | found

    def _split(self, columns: Columns, wanted: Sequence[str]) -> dict[str, Columns]:
        texts, labels = columns
        numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
        targets = torch.tensor([numbers[label] for label in labels])
        parts = stratified_indices(targets, [self.shares[part] for part in wanted])
        found = {
            part: (texts.take(indices), [labels[index] for index in indices.tolist()])
            for part, indices in zip(("train", *wanted), parts, strict=True)
        }
        return {part: found.get(part, _columns([])) for part in PARTS}


def _columns(rows: list[Row]) -> Columns:
    return Texts.of(text for text, _ in rows), [label for _, label in rows]


def rt_polarity(data_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """Text and label of 10,662 sentences from film reviews (Pang and Lee 2005), in three parts.

    In each file, counting from 0, line numbers that end in 8 are for validation, in 9 for test, the rest for training.

    Raises:
        DownloadError: the files are missing and cannot be downloaded.
        InputError: the folder cannot be written, or a file is incomplete.
    """
    paths = {suffix: data_dir / "rt_polarity" / f"rt-polarity.{suffix}" for suffix in POLARITY_LABELS}
    if not any(path.exists() for path in paths.values()):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "rt-polaritydata.tar.gz"
            download(POLARITY_URL, POLARITY_SHA256, archive)
            with tarfile.open(archive) as tar:
                for suffix, path in paths.items():
                    member = tar.extractfile(f"rt-polaritydata/rt-polarity.{suffix}")
                    assert member is not None  # the checksum guarantees it
                    write_atomically(path, member.read().decode("latin-1").encode("utf-8"))
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for suffix, path in paths.items():
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}): remove {path.parent} to download it again") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # as it is published
            text = content.decode("latin-1")
        lines = text.removesuffix("\n").split("\n")
        if len(lines) != POLARITY_LINES:
            raise InputError(f"{path} has {len(lines)} lines, not {POLARITY_LINES}: remove {path.parent}")
        for number, line in enumerate(lines):
            part = {8: "val", 9: "test"}.get(number % 10, "train")
            parts[part].append((line.strip(), POLARITY_LABELS[suffix]))
    return parts


def language_names() -> list[tuple[str, str]]:
    """Names of territories, languages and currencies, each with the English name of its language, from the CLDR.

    Names that several of the 34 languages share are left out.

    Raises:
        InputError: the package Babel, which contains them, is not installed.
    """
    try:
        from babel import Locale
    except ImportError as error:
        raise InputError("language_names needs the package Babel: pip install Babel, or give --data.path") from error
    found: dict[str, set[str]] = defaultdict(set)
    for code in LANGUAGES:
        locale = Locale(code)
        for names in (locale.territories, locale.languages, locale.currencies):
            for name in names.values():
                if len(name) > 3 or not name.isascii():  # short ones are codes
                    found[name].add(str(locale.english_name))
    unique = [(name, languages.pop()) for name, languages in sorted(found.items()) if len(languages) == 1]
    rank_zero_info(f"Left out {len(found) - len(unique):,} names that exist in several languages")
    return unique
