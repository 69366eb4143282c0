"""Texts with labels, from tables of the user's own or from a named source, in batches of similar length."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src import ROOT
from src.engine.data.download import DownloadError
from src.engine.data.loading import Batches, Order, announce, batch_loader
from src.engine.data.split import check_shares, stratified_split
from src.engine.data.tables import Row, read_table
from src.engine.system.errors import InputError
from src.text.sources import language_names, rt_polarity
from src.text.tokenizer import (
    ByteTokenizer,
    Ids,
    Tokenizer,
    pretrained_tokenizer,
    restore_tokenizer,
    train_bpe,
    train_words,
)

Batch = tuple[Tensor, Tensor, Tensor]

TRAINED = {"bpe": train_bpe, "words": train_words}
POOL = 50  # batches whose texts are sorted by length together
NAMES = {"train": "training", "val": "validation", "test": "test"}


class TokenizedTexts(Dataset[Batch]):
    """Token sequences of any length with their class numbers.

    Args:
        ids: token numbers of each text, each (T,).
        targets: class number of each text.
    """

    def __init__(self, ids: list[Ids], targets: list[int]) -> None:
        self.ids = ids
        self.targets = torch.tensor(targets)
        self.lengths = torch.tensor([len(one) for one in ids])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        tokens, mask, targets = self.__getitems__([index])
        return tokens[0], mask[0], targets[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Tokens (B, T) int64, mask (B, T) bool, true where there is a token, and targets (B,) int64."""
        tokens, mask = padded([self.ids[index] for index in indices])
        return tokens, mask, self.targets[indices]


def padded(ids: list[Ids]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) int64 of sequences, padded to the longest, and mask (B, T) bool, true where there is a token."""
    rows = [torch.from_numpy(one.astype(np.int64)) for one in ids]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, mask


def by_length(lengths: Tensor, batch_size: int) -> Order:
    """Every text once, shuffled so that the texts of a batch are of similar length, and little of it is padding."""

    def draw(generator: torch.Generator) -> Iterator[int]:
        order = torch.randperm(len(lengths), generator=generator)
        batches: list[Tensor] = []
        for start in range(0, len(order), POOL * batch_size):
            part = order[start : start + POOL * batch_size]
            part = part[lengths[part].argsort(stable=True)]
            batches += [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
        # The one short batch comes last, else all behind it would be cut anew.
        full = [batch for batch in batches if len(batch) == batch_size]
        short = [batch for batch in batches if len(batch) < batch_size]
        shuffled = [full[index] for index in torch.randperm(len(full), generator=generator)]
        for batch in shuffled + short:
            yield from batch.tolist()

    return draw


class LabelledTextDataModule(LightningDataModule):
    """Any texts with labels: language, sentiment, topic.

    Args:
        path: own table: .csv, .tsv, .jsonl or .parquet.
        val_path: a table that validates; where nothing is given, `val_share` of `path` does.
        test_path: a table that tests; where nothing is given, `test_share` of `path` does.
        text_column: name of the column that holds the texts.
        label_column: name of the column that holds the labels, words or numbers.
        source: where no path is given: `rt_polarity`, sentences from film reviews and whether they praise, is
            downloaded where it is missing; `language_names`, names of countries, languages and currencies and the
            language they are in, is in the package Babel; `auto` is the first, and the second only where there are
            no files and no network.
        data_dir: folder for downloads; `data/` in the project where nothing is given.
        tokenizer: `bytes`; `bpe`, byte-pair encoding trained on the training part; `words`, its lower-case words; or
            the hub name or folder of a pretrained model, for its own.
        max_vocab_size: tokens of `bpe` or `words` at most, at least 257.
        max_length: tokens of a text at most; the rest is cut off.
        batch_size: texts a batch, all processes together, at least 1.
        val_share: share of `path` that validates, in (0, 1), stratified, the same in every run.
        test_share: share of `path` that tests.

    Batches are tokens (B, T) int64, padded to the longest, mask (B, T) bool, true where there is a token, and targets
    (B,) int64, the labels' places in `labels`.

    Raises:
        InputError: an argument is out of its range, or a table or one of its rows cannot be used.
    """

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
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("max_vocab_size", max_vocab_size, 257),
            ("max_length", max_length, 2),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise InputError(f"{name} {value} is too small: give at least {least}")
        check_shares(val_share, test_share)
        if path is None and (val_path or test_path):
            raise InputError("--data.val_path and --data.test_path need --data.path, the table to train on")
        self.save_hyperparameters()
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.text_column = text_column
        self.label_column = label_column
        self.source = source
        self.data_dir = Path(data_dir).expanduser() if data_dir is not None else ROOT / "data"
        self.tokenizer_name = tokenizer
        self.max_vocab_size = max_vocab_size
        self.max_length = max_length
        self.batch_size = batch_size
        self.shares = {"val": val_share, "test": test_share}
        self.data_source = path or source
        """Where the texts in use come from; known after `setup`."""
        self.labels: list[str] = []
        """The labels, in the order of their class numbers; known after `setup`."""
        self._restored: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Read, split and tokenize the texts; every process does so for itself.

        Raises:
            InputError: a table or one of its rows cannot be used.
        """
        if hasattr(self, "train_set"):
            return
        parts = self._named_parts() if self.paths["train"] is None else self._own_parts()
        self.labels = self._restored.get("labels") or sorted({label for _, label in parts["train"]}, key=_order)
        self.num_classes = len(self.labels)
        if self.num_classes < 2:
            raise InputError(
                f"{self.data_source} has one label only, {self.labels[0]!r}: a classifier needs two, in column"
                f" {self.label_column}"
            )
        self._check_labels(parts)
        _report_duplicates(parts)
        self.tokenizer = self._find_tokenizer(parts["train"])
        self.vocab_size = self.tokenizer.vocab_size
        sizes = ", ".join(f"{len(rows):,} {NAMES[part]}" for part, rows in parts.items())
        rank_zero_info(f"{self.num_classes} classes, {sizes} texts of {self.data_source}")
        self.save_hyperparameters({"data_source": self.data_source})
        self.train_set, self.val_set, self.test_set = (self._tokenize(rows) for rows in parts.values())

    def network_arguments(self) -> dict[str, Any]:
        """The arguments of a network that follow from the texts."""
        self.setup("fit")
        return {"vocab_size": self.vocab_size, "num_classes": self.num_classes}

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.state, "labels": self.labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint's tokenizer and labels in place of those of the texts; before `setup`."""
        self._restored = dict(state_dict)
        self.labels, self.tokenizer = list(state_dict["labels"]), restore_tokenizer(state_dict["tokenizer"])

    def prepare_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64, padded to the longest, and mask (B, T) bool of texts; with a tokenizer, so after `setup`
        or `load_state_dict`."""
        return padded(self.tokenizer.encode_batch(texts, self.max_length))

    def train_dataloader(self) -> DataLoader[Batch]:
        order = by_length(self.train_set.lengths, self.batch_size)
        return batch_loader(self.train_set, Batches(len(self.train_set), self.batch_size, self.trainer, order))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order(self.val_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order(self.test_set)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._in_order(self.test_set)

    def _in_order(self, texts: TokenizedTexts) -> DataLoader[Batch]:
        return batch_loader(texts, Batches(len(texts), self.batch_size, self.trainer))

    def _tokenize(self, rows: list[Row]) -> TokenizedTexts:
        numbers = {label: number for number, label in enumerate(self.labels)}
        ids = self.tokenizer.encode_batch([text for text, _ in rows], self.max_length)
        return TokenizedTexts(ids, [numbers[label] for _, label in rows])

    def _find_tokenizer(self, rows: list[Row]) -> Tokenizer:
        if "tokenizer" in self._restored:
            return self.tokenizer
        if self.tokenizer_name == "bytes":
            return ByteTokenizer()
        if self.tokenizer_name in TRAINED:
            return TRAINED[self.tokenizer_name]((text for text, _ in rows), self.max_vocab_size)
        return restore_tokenizer(pretrained_tokenizer(self.tokenizer_name))

    def _named_parts(self) -> dict[str, list[Row]]:
        if self.source != "language_names":
            try:
                parts = rt_polarity(self.data_dir)
            except DownloadError as error:
                if self.source == "rt_polarity":
                    raise InputError(
                        f"rt-polarity could not be downloaded ({error}): put its two files to"
                        f" {self.data_dir / 'rt_polarity'}, or give --data.path a table of your own"
                    ) from error
                rank_zero_info(f"No rt-polarity in {self.data_dir}, and no download: {error}")
            else:
                self.data_source = "rt_polarity"
                return parts
            announce("*** NOT REVIEWS: names in many languages stand in (CLDR); results do not compare. ***")
        self.data_source = "language_names"
        rows, shared = language_names()
        rank_zero_info(f"Left out {shared:,} names that several languages share")
        return self._split(rows, ("val", "test"))

    def _own_parts(self) -> dict[str, list[Row]]:
        given = {part: path for part, path in self.paths.items() if path is not None}
        rows = {part: read_table(path, self.text_column, self.label_column) for part, path in given.items()}
        return self._split(rows.pop("train"), [part for part in ("val", "test") if part not in rows]) | rows

    def _split(self, rows: list[Row], wanted: Sequence[str]) -> dict[str, list[Row]]:
        labels = sorted({label for _, label in rows})
        targets = [labels.index(label) for _, label in rows]
        parts = stratified_split(targets, [self.shares[part] for part in wanted])
        found = {
            part: [rows[index] for index in indices] for part, indices in zip(("train", *wanted), parts, strict=True)
        }
        return {part: found.get(part, []) for part in NAMES}

    def _check_labels(self, parts: dict[str, list[Row]]) -> None:
        known = set(self.labels)
        for part, rows in parts.items():
            if not rows:
                raise InputError(f"no {NAMES[part]} texts are left of {self.data_source}: give more, or another share")
            for number, (_, label) in enumerate(rows, start=1):
                if label not in known:
                    raise InputError(
                        f"label {label!r} of {NAMES[part]} text {number} is none that was trained on: those are"
                        f" {', '.join(self.labels[:10])}{' ...' if len(self.labels) > 10 else ''}"
                    )


def _report_duplicates(parts: dict[str, list[Row]]) -> None:
    """Say how many texts of the validation and test parts stand in an earlier part too."""
    seen: dict[str, str] = {}
    for part, rows in parts.items():
        counts: dict[str, int] = {}
        for text, _ in rows:
            if (earlier := seen.setdefault(text, part)) != part:
                counts[earlier] = counts.get(earlier, 0) + 1
        for earlier, count in counts.items():
            rank_zero_info(f"{count:,} {NAMES[part]} texts are among the {NAMES[earlier]} texts too")


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers in their own order, before words."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label
