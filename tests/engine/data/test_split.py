"""Folds for cross-validation."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.engine.data.folds import check_fold
from src.engine.data.labelled_files import LabelledFile, split_files
from src.engine.data.split import SPLIT_SEED, stratified_split, with_fold
from src.engine.system.errors import InputError
from tests.contract import check_folds


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_each_fold_has_its_share_of_every_class(folds: int) -> None:
    targets = [0] * 50 + [1] * 23 + [2] * 4
    parts = stratified_split(targets, (0.1, 0.2))
    check_folds(lambda fold: with_fold(parts, targets, fold, folds), folds)
    pool = Counter(targets[index] for index in parts[0] + parts[1])
    sizes = []
    for fold in range(1, folds + 1):
        train, val, test = with_fold(parts, targets, fold, folds)
        assert train == sorted(train)
        assert val == sorted(val)
        assert test == parts[2]
        found = Counter(targets[index] for index in val)
        assert all(found[label] in (count // folds, -(-count // folds)) for label, count in pool.items())
        sizes.append(len(val))
    assert max(sizes) - min(sizes) <= 1
    assert with_fold(parts, targets, 1, folds)[1] == with_fold(parts, targets, 1, folds)[1]
    assert with_fold(parts, targets, 1, folds)[1] != list(range(sizes[0]))  # in random order


def test_copies_stay_in_one_fold() -> None:
    keys = [number % 20 for number in range(60)]
    parts = [list(range(40)), list(range(40, 50)), list(range(50, 60))]

    def samples(fold: int | None) -> list[list[int]]:
        folded = with_fold(parts, [0] * 60, fold, 4, keys)
        return [[keys[index] for index in part] for part in folded]

    for fold in range(1, 5):
        train, val, _ = samples(fold)
        assert not {*train} & {*val}
        assert 11 <= len(val) <= 14


def test_wrong_folds_are_one_line() -> None:
    for fold, folds, message in ((None, 1, "folds 1 is too small"), (0, 3, "fold 0 is out of range: give 1 to 3")):
        with pytest.raises(InputError, match=message):
            check_fold(fold, folds)
    with pytest.raises(InputError, match="fold 6 is out of range"):
        check_fold(6, 5)
    with pytest.raises(InputError, match="2 different samples are too few for 3 folds"):
        with_fold([[0, 1, 2], [3], [4]], [0] * 5, 1, 3, keys=["a", "a", "b", "b", "c"])


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_samples_of_one_patient_are_in_one_part_and_one_fold(kind: Any) -> None:
    patients = [number // 3 for number in range(90)]
    targets, keys = kind([patient % 2 for patient in patients]), kind(patients)
    for fold in (None, 1, 2, 3):
        parts = with_fold(stratified_split(targets, (0.2, 0.2), keys), targets, fold, 3, keys)
        assert sorted(index for part in parts for index in part) == list(range(90))
        found = [{patients[index] for index in part} for part in parts]
        assert sum(map(len, found)) == 30
        assert all(sum(patient % 2 for patient in part) == len(part) / 2 for part in found)


def test_speakers_whose_first_words_differ_are_split_in_the_given_shares() -> None:
    files = [
        LabelledFile(f"{speaker} {turn}", Path("x.wav"), f"word {(speaker + turn) % 8}", f"speaker {speaker}")
        for speaker in range(24)
        for turn in range(8)
    ]
    parts = split_files(files, files, range(len(files)), (0.1, 0.1), "sounds")
    speakers = {part: {file.group for file, _ in own} for part, own in parts.items()}
    assert {part: len(own) for part, own in speakers.items()} == {"train": 20, "val": 2, "test": 2}
    assert len(set.union(*speakers.values())) == 24


def test_each_class_is_split_by_itself_in_the_order_of_the_classes() -> None:
    targets = torch.randint(5, (200,), generator=torch.Generator().manual_seed(3)) * 7 - 7
    generator, expected = torch.Generator().manual_seed(SPLIT_SEED), set[int]()
    for label in targets.unique().tolist():
        found = (targets == label).nonzero()[:, 0]
        expected |= {*found[torch.randperm(len(found), generator=generator)][: round(0.2 * len(found))].tolist()}
    assert set(stratified_split(targets.tolist(), (0.2,))[1]) == expected
