"""Molecules, genomes and proteins as sequences, with numbers, classes or residues to predict."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from src.biology.sequence_files import FASTA, FASTQ, SOURCES, Record, load_source, read_records
from src.biology.smiles import TOKEN, read_smiles, without_directions, write_smiles
from src.engine.data.batched import BatchDataset
from src.engine.data.labelled_files import LabelledDataModule
from src.engine.data.labels import as_number, check_labels, report_classes
from src.engine.data.loading import IGNORED
from src.engine.data.split import PARTS, fold_samples, report_duplicates, stratified_split
from src.engine.system.errors import InputError, SampleError, check_least
from src.engine.system.randomness import derive_seed

Batch = tuple[Tensor, Tensor, Tensor]

BASES, RESIDUES, HIDDEN = "ACGT", "ACDEFGHIKLMNPQRSTVWY", "X"  # X is an unknown residue
# The tokens of each kind, numbered from 1; 0 is padding. Molecules may have any ASCII character in brackets.
TOKENS = {"smiles": ["Cl", "Br", *map(chr, range(33, 127))], "dna": [*BASES], "protein": [*RESIDUES, "-", HIDDEN]}
READ_AS: dict[str, dict[str, Any]] = {"smiles": {}, "dna": {"U": "T"}, "protein": {".": "-", "U": HIDDEN, "O": HIDDEN}}
EXPECTED = {"dna": "base: give A, C, G, T or U; ambiguous ones are not read", "protein": "residue: give X if unknown"}
CAPITALS = str.maketrans(ascii_lowercase, ascii_uppercase)
HIDDEN_SHARE = 0.15  # as in BERT (Devlin et al. 2019)


class SequenceDataModule(LabelledDataModule):
    """Sequences with targets: numbers, classes or residues.

    Args:
        path: your own data: a table (.csv, .tsv, .jsonl, .parquet), FASTA or FASTQ, also with .gz; or a folder of them,
            whose names are the classes of the sequences in them.
        val_path: the same for validation. Default: `val_share` of `path`.
        test_path: the same for test. Default: `test_share` of `path`.
        source: the data if no path is given, see `load_source`.
        kind: `smiles`, `dna` (or RNA) or `protein`.
        predicts: `number`; `class`; `residues`, a class per residue; or `hidden`, the residues that are hidden, for the
            aligned sequences of a family.
        sequence_column: a table's column with the sequences.
        label_column: a table's column with the numbers or classes; for `residues` one letter per residue, with or
            without blanks. In FASTA the letters follow each sequence, in as many lines as it has.
        variants: SMILES strings per molecule in validation, test and prediction, at least 1, whose predictions are
            averaged; training draws a new one each time. 1: always the given one.
        reverse_complement: train on a random strand, predict the mean of both; leave it off where the strand matters.
        max_length: maximum tokens of a sequence, at least 1.
        batch_size: sequences per batch, all processes together, at least 1.
        val_share: share for validation, in (0, 1), the same in every run.
        test_share: share for test, in (0, 1).
        fold: validate on this fold of training and validation part, 1 to folds, and train on the others; default: none.
        folds: number of folds, at least 2.

    Batches are tokens (B, T) int64, mask (B, T) bool, true for tokens, and targets: (B,) float or int64, or (B, T)
    int64, -100 where there is none.

    Raises:
        InputError: an argument is out of range, or a file or one of its rows cannot be used.
    """

    input_kind = "text"
    own_tokens = True  # not those of a pretrained network
    mask_example = "tokens > 0"

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        source: Literal["solubility", "splice_sites", "ww_domains"] = "solubility",
        kind: Literal["smiles", "dna", "protein"] = "smiles",
        predicts: Literal["number", "class", "residues", "hidden"] = "number",
        sequence_column: str = "sequence",
        label_column: str = "label",
        variants: int = 1,
        reverse_complement: bool = False,
        max_length: int = 512,
        batch_size: int = 64,
        val_share: float = 0.1,
        test_share: float = 0.1,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__()
        check_least(1, variants=variants, max_length=max_length, batch_size=batch_size)
        self.per_residue = predicts in ("residues", "hidden")
        fits = {"residues": ("dna", "protein"), "hidden": ("protein",)}.get(predicts, TOKENS)
        if kind not in fits:
            raise InputError(f"predicts {predicts} does not go with kind {kind}: give {' or '.join(fits)}")
        if variants > 1 and kind != "smiles":
            raise InputError(f"variants {variants} does not go with kind {kind}: leave it out")
        if reverse_complement and (kind != "dna" or self.per_residue):
            raise InputError("reverse_complement is for kind dna that predicts number or class: leave it out")
        self.use_paths((path, val_path, test_path), "data", (val_share, test_share), (fold, folds))
        self.save_hyperparameters()
        self.options: Any = self.hparams
        self.batch_size = batch_size
        self.text_column = sequence_column
        self.input_title = f"Enter a sequence ({kind})"
        self.readers = dict.fromkeys((*FASTA, *FASTQ), self._read_unlabelled)
        self.numbers = {token: number for number, token in enumerate(TOKENS[kind], start=1)}
        self.vocab_size = len(self.numbers) + 1

    def setup(self, stage: str) -> None:
        """Read and split the sequences, in every process."""
        if hasattr(self, "train_set"):
            return
        options, self.data_source = self.options, self.options.path or self.options.source
        if options.path is None:
            parts = load_source(options.source, options.kind, options.predicts)
        else:
            column = self.text_column if options.predicts == "hidden" else options.label_column
            how = (self.text_column, column, options.predicts == "residues")
            paths = zip(PARTS, self.paths, strict=True)
            parts = {part: list(read_records(path, *how)) for part, path in paths if path}
        parts = self._split({part: [self._checked(one) for one in records] for part, records in parts.items()})
        parts = fold_samples(parts, *self.fold, self._class_of, self._key)
        self.train_set, self.val_set, self.test_set = sets = [Sequences(self, parts[part]) for part in PARTS]
        sizes = ", ".join(f"{len(parts[part]):,} {name}" for part, name in PARTS.items())
        rank_zero_info(f"{sizes} sequences of {self.data_source}")
        self.save_hyperparameters({"data_source": self.data_source})
        classes = {part: [self._class_of(one) for one in parts[part]] for part in PARTS}
        self.report_changes(classes, self.data_source, "sequences")
        if options.predicts == "class":
            report_classes(self.labels, {part: torch.cat(one.targets) for part, one in zip(PARTS, sets, strict=True)})
        keys = {part: [self._key(one) for one in parts[part]] for part in PARTS}
        report_duplicates(keys, "sequences", lambda part, index: f"{parts[part][index].sequence[:60]!r}")

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the sequences."""
        self.setup("fit")
        return {"vocab_size": self.vocab_size, "num_classes": len(self.labels), "pooled": not self.per_residue}

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        """Sequences -> tokens (B, T) int64 and mask (B, T) bool, true for tokens; an X stands for a hidden residue.

        Raises SampleError if a sequence has other letters, is empty or too long.
        """
        return self.encode([self._clean(text) for text in inputs])

    def _read_unlabelled(self, path: Path) -> Iterator[str]:
        """The sequences of a file to predict on, which may be labelled as those of training."""
        labels = self.labels if self.options.predicts == "residues" else ()
        return (record.sequence for record in read_records(str(path), "", "", labels))

    def encode(self, sequences: Sequence[str], rngs: Sequence[random.Random] = ()) -> tuple[Tensor, Tensor]:
        """As `prepare`, for clean sequences; `rngs` draw how each is written in training."""
        # Two tokens of padding separate the ways in which a sequence is written: they do not see each other.
        texts = ["  ".join(self._written(one, rng)) for one, rng in zip_longest(sequences, rngs)]
        rows = [torch.tensor([self.numbers.get(token, 0) for token in self._tokens(text)]) for text in texts]
        tokens = pad_sequence(rows, batch_first=True)
        return tokens, tokens > 0

    def _written(self, sequence: str, rng: random.Random | None) -> list[str]:
        """The ways in which a sequence is written: one at random in training, else all."""
        if self.options.variants > 1:
            molecule = read_smiles(sequence)
            if rng:
                return [write_smiles(molecule, rng)]
            given = without_directions(sequence)  # training never sees them
            return [given, *(write_smiles(molecule, random.Random(seed)) for seed in range(1, self.options.variants))]
        ways = [sequence, reverse_complement(sequence)] if self.options.reverse_complement else [sequence]
        return [rng.choice(ways)] if rng else ways

    def _key(self, record: Record) -> str:
        """A key that is equal for sequences that are the same input."""
        sequence = record.sequence
        return min(sequence, reverse_complement(sequence)) if self.options.reverse_complement else sequence

    def _class_of(self, record: Record) -> str:
        """The class by which the split is stratified; "" if there are no classes."""
        return record.label if self.options.predicts == "class" else ""

    def _tokens(self, sequence: str) -> list[str]:
        found = TOKEN.findall(sequence) if self.options.kind == "smiles" else sequence
        return [one for token in found for one in ([token] if token in self.numbers else token)]

    def _clean(self, text: str) -> str:
        """A checked molecule; or a sequence in capital letters, without spaces or a FASTA name line."""
        kind, limit = self.options.kind, self.options.max_length
        sequence = text.strip()
        if kind != "smiles":
            letters = "".join(re.sub(r"^\s*>.*", "", text).split())
            sequence = letters.translate(CAPITALS).translate(str.maketrans(READ_AS[kind]))
        if not sequence:
            raise SampleError("the sequence is empty: remove it")
        length = len(self._tokens(sequence)) if kind == "smiles" else len(sequence)  # of others a letter is a token
        if length > limit:
            raise SampleError(
                f"it has {length:,} tokens, more than max_length {limit:,}: shorten it, or train with a larger"
                " max_length"
            )
        if kind == "smiles":
            try:
                read_smiles(sequence)
            except ValueError as error:
                raise SampleError(f"{sequence[:60]!a} is not SMILES: {error}") from error
        elif wrong := {*sequence} - self.numbers.keys():
            place, one = next((place, one) for place, one in enumerate(sequence, start=1) if one in wrong)
            raise SampleError(f"{one!a} at position {place} is not a {EXPECTED[kind]}")
        return sequence

    def _checked(self, record: Record) -> Record:
        """The record with a clean sequence, and a label that fits it."""
        predicts, label = self.options.predicts, record.label
        label = "".join(label.split()) if predicts == "residues" else label
        try:
            sequence = self._clean(record.sequence)
            if predicts != "hidden" and not label:
                raise InputError("it has no label: give a table, or for classes a folder of FASTA files, one per class")
            if predicts == "residues" and len(label) != len(sequence):
                raise InputError(f"it has {len(sequence)} residues and {len(label)} labels: give one for each")
            if predicts == "number" and not torch.tensor(as_number(label)).isfinite():  # as float32
                raise ValueError(label)
        except InputError as error:
            raise InputError(f"{record.place}: {error}") from error
        except ValueError as error:
            raise InputError(f"{record.place}: label {label!r} is not a finite number") from error
        return Record(record.place, sequence, label)

    def _split(self, parts: dict[str, list[Record]]) -> dict[str, list[Record]]:
        """Find the labels, and split the missing parts off the training part."""
        predicts, records = self.options.predicts, parts["train"]
        missing = [part for part in PARTS if part not in parts]
        if predicts == "number":
            found = [self.options.label_column if self.options.path else SOURCES[self.options.source][2]]
        elif predicts == "hidden":
            found = [*RESIDUES, "-"]
        else:
            labels = [label for one in records for label in (one.label if self.per_residue else [one.label])]
            check_labels(labels, self.data_source, self.labels)
            if len(found := sorted({*labels})) < 2:
                raise InputError(f"{self.data_source} has one class only, {found[0]!r}: give at least two")
        self.labels = self.labels or found
        classes = [self._class_of(one) for one in records]
        sizes = Counter(classes)
        if few := [one for one, label in zip(records, classes, strict=True) if sizes[label] <= len(missing)]:
            what = f" of class {few[0].label!r}" if predicts == "class" else ""
            raise InputError(f"{few[0].place}: too few sequences{what}: give at least one for each part, or remove it")
        numbers = {label: number for number, label in enumerate(sorted(sizes))}
        shares = [self.options[f"{part}_share"] for part in missing]
        split = stratified_split([numbers[label] for label in classes], shares)
        return parts | {part: [records[n] for n in one] for part, one in zip(("train", *missing), split, strict=True)}


class Sequences(BatchDataset):
    """The sequences of one part, with targets; InputError if a label is not one of the training part.

    Args:
        data: says how they are written, and what is predicted.
        records: the sequences, checked.
    """

    def __init__(self, data: SequenceDataModule, records: list[Record]) -> None:
        self.data, self.predicts, self.records = data, data.options.predicts, records
        self.targets: list[Tensor] = []
        numbers = {label: number for number, label in enumerate(data.labels)}
        for record in records if self.predicts != "hidden" else ():
            labels = record.label if self.predicts == "residues" else [record.label]
            if unknown := [label for label in labels if self.predicts != "number" and label not in numbers]:
                raise InputError(f"{record.place}: label {unknown[0]!r} is not in the training data: remove it")
            values = [float(one) if self.predicts == "number" else numbers[one] for one in labels]
            self.targets.append(torch.tensor(values))

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Tokens (B, T) int64, mask (B, T) bool and targets."""
        seed = getattr(indices, "epoch_seed", 0)  # 0: not in training
        rngs = [random.Random(derive_seed(seed, index)) for index in indices]
        tokens, mask = self.data.encode([self.records[index].sequence for index in indices], rngs if seed else ())
        if self.predicts == "hidden":
            return self._hide(tokens, mask, rngs, bool(seed))
        targets = pad_sequence([self.targets[index] for index in indices], True, IGNORED)
        return tokens, mask, targets if self.predicts == "residues" else targets[:, 0]

    def _hide(self, tokens: Tensor, mask: Tensor, rngs: list[random.Random], trains: bool) -> Batch:
        """Hide residues. In training all are targets, so the network learns to return visible ones as they are."""
        targets = torch.where(mask & (tokens < self.data.numbers[HIDDEN]), tokens - 1, IGNORED)
        is_hidden = torch.zeros_like(mask)
        for row, rng in enumerate(rngs):
            known = (mask[row] & (tokens[row] <= len(RESIDUES))).nonzero().flatten().tolist()  # no gaps
            is_hidden[row, rng.sample(known, math.ceil(HIDDEN_SHARE * len(known)))] = True
        tokens = tokens.masked_fill(is_hidden, self.data.numbers[HIDDEN])
        return tokens, mask, torch.where(is_hidden | trains, targets, IGNORED)


def reverse_complement(sequence: str) -> str:
    """The other strand of a DNA sequence, read in its own direction."""
    return sequence[::-1].translate(str.maketrans(BASES, BASES[::-1]))
