"""Labelled files of your own: one folder per class, or a table of paths and labels; and data sets of three parts."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.data.batched import BatchedDataModule, check_loaded
from src.engine.data.files import IMG_EXTENSIONS, file_error, find_files, in_threads, is_hidden, skipped_line
from src.engine.data.folds import check_fold
from src.engine.data.labelled_tables import local_paths, read_table
from src.engine.data.labels import check_known, check_labels, check_not_parts, report_classes
from src.engine.data.loading import announce
from src.engine.data.split import PARTS, check_parts, report_duplicates, stratified_split, with_fold
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

T = TypeVar("T")

MAX_LISTED = 5  # unreadable files listed in one message
OPTIONS = {"train": "path", "val": "val_path", "test": "test_path"}


class LabelledFile(NamedTuple):
    """A file, its label, its name for messages (with the row of its table), its group if it has one, and its part.

    Files of a group are in the same part. Those of the part `train` are split, if other parts have no files yet.
    """

    name: str
    file: Path
    label: str
    group: str | None = None
    part: str = "train"


class Columns(NamedTuple):
    """The columns of a table of files: paths relative to the table, labels, and groups if it has some."""

    path: str = "path"
    label: str = "label"
    group: str | None = None


def labelled_files(
    paths: Mapping[str, str | None],
    columns: Columns,
    suffixes: tuple[str, ...] = IMG_EXTENSIONS,
    kind: str = "images",
    known: Sequence[str] = (),
) -> list[LabelledFile]:
    """Find the files in class folders, or in tables.

    Args:
        paths: for each part a folder with one folder per class, or a .csv, .tsv, .jsonl or .parquet table; or its
            address. None, of validation or test: it is split off the training part.
        columns: the tables' columns.
        suffixes: of the files in folders.
        kind: what the files are, for messages.
        known: classes of a checkpoint, if there is one.

    Raises:
        InputError: there is no such folder or table, there are no files, or a class was not trained on.
    """
    found = {part: _files_of(part, path, columns, suffixes, kind) for part, path in paths.items() if path}
    labels = {part: [one.label for one in own] for part, own in found.items()}
    check_known(labels, known, lambda part, index: found[part][index].name)
    return [one for own in found.values() for one in own]


def _files_of(part: str, path: str, columns: Columns, suffixes: tuple[str, ...], kind: str) -> list[LabelledFile]:
    place, given = local_path(path), f"--data.{OPTIONS[part]} {path}"
    if place.is_file():
        return files_of_table(part, path, columns)
    if not place.is_dir():
        raise InputError(f"{given}: no such folder or table; give a folder with one folder per class")
    if columns.group is not None:
        raise InputError(f"--data.group_column {columns.group}: {path} is a folder: give a table, with this column")
    folders = sorted(one.name for one in place.iterdir() if one.is_dir() and not is_hidden(one.name))
    check_not_parts(folders, given)
    skipped: Counter[str] = Counter()
    files = list(find_files(place, suffixes, skipped))
    inside = [file for file in files if file.parent != place]
    found = [LabelledFile(str(file), file, file.relative_to(place).parts[0], part=part) for file in inside]
    if not found:
        raise InputError(f"{given}: no {kind} in its folders; give one folder of {kind} per class")
    if without := {*folders} - {one.label for one in found}:
        rank_zero_info(f"Ignored folders without {kind}: {', '.join(sorted(without))}")
    if outside := len(files) - len(found):
        announce(f"{outside:,} {kind} are not in a folder of a class and are left out")
    if skipped:
        rank_zero_info(skipped_line(skipped, kind))
    return found


def files_of_table(
    part: str, path: str, columns: Columns, options: tuple[str, str] = ("path_column", "label_column")
) -> list[LabelledFile]:
    """The files of a table, for a part; `options` set the first two columns. Raises InputError, see `read_table`."""
    rows = read_table(path, columns.path, columns.label, options)
    groups: list[Any] = [None] * len(rows)
    if columns.group is not None:
        groups = [group for _, group in read_table(path, columns.path, columns.group, (options[0], "group_column"))]
    files = local_paths([name for name, _ in rows], path)
    return [
        LabelledFile(f"{path}, row {row}: {name}", file, label, group, part)
        for row, (file, (name, label), group) in enumerate(zip(files, rows, groups, strict=True), start=1)
    ]


def read_all(
    names: Sequence[Any],
    files: Sequence[Path],
    read: Callable[[Path], T],
    reason: Callable[[Path, Exception], str] = file_error,
) -> list[T]:
    """Call `read` for each file, in threads.

    Raises:
        InputError: it has failed for some; the message has their `names`, and the `reason` of each.
    """

    def tried(file: Path) -> tuple[Any, str]:
        try:
            return read(file), ""
        except Exception as error:  # damaged files raise errors of any kind
            return None, reason(file, error)

    found = in_threads(tried, files)
    if bad := [f"{name} ({error})" for name, (_, error) in zip(names, found, strict=True) if error]:
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise InputError(f"{len(bad)} of {len(files)} files cannot be used: {', '.join(bad[:MAX_LISTED])}{more}")
    return [value for value, _ in found]


def check_class_sizes(files: Sequence[LabelledFile]) -> None:
    """Raise InputError if a class has too few files for each part to have one."""
    least = 1 + len(PARTS) - len({one.part for one in files})
    counts = Counter(one.label for one in files if one.part == "train")
    if few := next((one for one in files if counts[one.label] < least), None):
        raise InputError(
            f"class {few.label} has too few files, {counts[few.label]} of {least}, such as {few.name}: give one for"
            " each part, or remove the class"
        )


def split_files(
    files: Sequence[LabelledFile],
    values: Sequence[T],
    keys: Sequence[Any],
    shares: Sequence[float],
    kind: str,
    fold: tuple[int | None, int] = (None, 5),
) -> dict[str, list[tuple[T, str]]]:
    """Values and labels of each part; those with equal keys in several parts are reported.

    Parts without files of their own are split off the training part, in equal class proportions.

    Args:
        files: the files.
        values: what was read of each.
        keys: equal for files with the same content.
        shares: of validation and test.
        kind: what they are, such as sounds.
        fold: `fold` and `folds` of `with_fold`.
    """
    classes = {label: number for number, label in enumerate(sorted({one.label for one in files}))}
    targets = [classes[one.label] for one in files]
    places = {part: [number for number, one in enumerate(files) if one.part == part] for part in PARTS}
    missing = {part: share for part, share in zip(("val", "test"), shares, strict=True) if not places[part]}
    train = places["train"]
    groups = [one.group for one in files] if files[0].group is not None else None
    own_groups = None if groups is None else [groups[number] for number in train]
    # A group with several classes, such as a speaker, belongs to none of them.
    is_pure = groups is None or len({*zip(groups, targets, strict=True)}) == len({*groups})
    classes_of = [targets[number] if is_pure else 0 for number in train]
    own = stratified_split(classes_of, list(missing.values()), own_groups)
    places |= {part: [train[index] for index in one] for part, one in zip(("train", *missing), own, strict=True)}
    split = with_fold(list(places.values()), targets, *fold, groups or keys)
    parts = dict(zip(PARTS, split, strict=True))
    if groups:
        _check_groups(groups, parts)
    found = {part: [keys[number] for number in own] for part, own in parts.items()}
    report_duplicates(found, kind, lambda part, index: files[parts[part][index]].name)
    return {part: [(values[number], files[number].label) for number in own] for part, own in parts.items()}


def _check_groups(groups: Sequence[str | None], parts: Mapping[str, Sequence[int]]) -> None:
    """Raise InputError if a part has no group, or a group is in several parts."""
    first: dict[Any, str] = {}
    for part, own in parts.items():
        if not own:
            raise InputError(f"{len({*groups})} groups are too few for a {PARTS[part]} part: give more")
        for group in {groups[number] for number in own}:
            if first.setdefault(group, part) != part:
                raise InputError(
                    f"group {group} of the {PARTS[part]} data is also in the {PARTS[first[group]]} data: keep it in one"
                )


def content_keys(files: Sequence[Path]) -> list[Any]:
    """A key for each file, equal for files with the same content; files are read only as far as they look equal."""
    keys: list[Any] = in_threads(lambda file: file.stat().st_size, files, "Comparing files")
    for read in (_middle, _whole):
        counts = Counter(keys)
        alike = [number for number, key in enumerate(keys) if counts[key] > 1]
        contents = in_threads(read, [files[number] for number in alike], "Comparing files")
        for number, content in zip(alike, contents, strict=True):
            keys[number] = (keys[number], content)
    return keys


def _middle(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size // 2 - 2048))
        return hashlib.sha256(opened.read(4096)).digest()


def _whole(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


class LabelledDataModule(BatchedDataModule):
    """A DataModule with `labels`."""

    num_classes: int
    columns: Columns
    label_order: Callable[[str], Any] | None = None
    """Key that sorts the labels; None: by name."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []
        """The labels, in the order of their class numbers; set by `setup`."""
        self.restored: list[str] = []
        self.sizes: dict[str, Any] = {}
        """Samples of each label in the training and validation part, and where they are from; set by `setup`."""
        self.restored_sizes: dict[str, Any] = {}

    def use_paths(
        self, paths: Any, what: str, shares: tuple[float, float], fold: tuple[int | None, int] | None = None
    ) -> None:
        """Set `paths`, `shares` and `fold`, after checking them.

        Args:
            paths: of the training, validation and test part; a dict or a tuple.
            what: what they hold, for messages.
            shares: of validation and test.
            fold: the fold to validate on, and the number of folds.
        """
        check_parts([*(paths.values() if isinstance(paths, dict) else paths)], what, *shares)
        self.paths: Any = paths
        self.shares: Any = shares
        if fold is not None:
            check_fold(*fold)
            self.fold = fold

    def find_labels(self, labels: Sequence[str], source: str) -> dict[str, int]:
        """Set `labels` and `num_classes`, and return the class number of each label; arguments of `check_labels`."""
        check_labels(labels, source, self.restored)
        self.labels = self.restored or sorted(set(labels), key=self.label_order)
        self.num_classes = len(self.labels)
        if self.restored:
            check_known({"train": labels}, self.restored, lambda *_: source)
        return {label: number for number, label in enumerate(self.labels)}

    def number_labels(self, parts: Mapping[str, Sequence[str]], source: str, kind: str) -> dict[str, list[int]]:
        """Set `labels` and `num_classes`, report them, and return the class numbers of each part.

        `parts` are the labels of the samples of each part; `kind` is what these are, such as sounds, of `source`.

        Raises:
            InputError: there is one class only, a part is empty, or labels cannot be used.
        """
        numbers = self.find_labels([label for own in parts.values() for label in own], source)
        if self.num_classes < 2:
            raise InputError(f"{source} has one class only, {self.labels[0]}: give at least two")
        if empty := [part for part, own in parts.items() if not own]:
            count = sum(map(len, parts.values()))
            given = f"{source} has {count:,} {kind}, too few for a {PARTS[empty[0]]} part"
            raise InputError(f"{given}: give 3 per class, or another share")
        self.report_changes(parts, source, kind)
        sizes = ", ".join(f"{len(own):,} {PARTS[part]}" for part, own in parts.items())
        rank_zero_info(f"{self.num_classes} classes, {sizes} {kind} of {source}")
        targets = {part: [numbers[label] for label in own] for part, own in parts.items()}
        report_classes(self.labels, targets)
        return targets

    def with_targets(
        self, parts: Mapping[str, Sequence[tuple[T, str]]], source: str, kind: str
    ) -> dict[str, tuple[list[T], list[int]]]:
        """The values and class numbers of each part, of values and labels: see `number_labels`."""
        targets = self.number_labels({part: [label for _, label in own] for part, own in parts.items()}, source, kind)
        return {part: ([value for value, _ in own], targets[part]) for part, own in parts.items()}

    def report_changes(self, parts: Mapping[str, Sequence[str]], source: str, kind: str) -> None:
        """Set `sizes`, and say whether samples were added or removed since training; arguments of `number_labels`."""
        counts = {part: dict(Counter(own)) for part, own in parts.items() if part != "test"}
        paths, shares, fold, columns = (getattr(self, name, None) for name in ("paths", "shares", "fold", "columns"))
        origin = repr([source, paths])
        self.sizes = {"origin": origin, "split": repr([shares, fold, columns]), **counts}
        given = paths.values() if isinstance(paths, dict) else paths or (None,)
        is_split = not all(given) or (fold and fold[0] is not None)
        if is_split and self.restored_sizes.get("origin") == origin and self.restored_sizes != self.sizes:
            announce(
                f"The {kind} of {source}, or their shares, have changed since training, so they are split differently:"
                " validation and test may contain some that were trained on"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels, "sizes": self.sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's labels; call before `setup`."""
        check_loaded(self, state_dict, "labels")
        self.labels = self.restored = list(state_dict["labels"])
        self.restored_sizes = dict(state_dict.get("sizes", {}))
