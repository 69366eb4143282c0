"""Your own images: one folder per class, or a table of paths and labels."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from tqdm import tqdm

from src.engine.data.images import UNREADABLE, flatten, image_files, is_hidden, read_image
from src.engine.data.loading import Batches, Indices, batch_loader, shuffled
from src.engine.data.prepare import normalise, pixel_statistics
from src.engine.data.split import check_shares, stratified_split
from src.engine.data.tables import read_table
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed

Batch = tuple[Tensor, Tensor]

# Mean and standard deviation of ImageNet's channels; torchvision's weights expect them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_LISTED = 5  # unreadable files listed in one message
PARTS = ("train", "val", "test")
PART_NAMES = {*PARTS, "training", "valid", "validation", "testing"}


class ImageFiles(Dataset[Batch]):
    """Image files, decoded on access.

    Args:
        files: paths of the images.
        targets: class number of each image.
        transform: maps a PIL image in RGB to pixels (3, H, W) uint8.
    """

    def __init__(self, files: list[Path], targets: list[int], transform: Any) -> None:
        self.files = files
        self.targets = targets
        self.transform = transform
        self.statistics = pixel_statistics(ImageFolderDataModule)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        """Image (3, H, W) float, normalised, and target () int64."""
        pixels, target = self._read(index)
        return normalise(pixels, *self.statistics), target

    def _read(self, index: int) -> Batch:
        try:
            rgb = flatten(read_image(self.files[index])).convert("RGB")
        except UNREADABLE as error:
            raise InputError(f"{self.files[index]} cannot be read ({error}): remove or fix it") from error
        return self.transform(rgb), torch.tensor(self.targets[index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images (B, 3, H, W) float and targets (B,) int64.

        In training, the transform's randomness depends only on run seed, epoch and image.
        """
        epoch_seed = indices.epoch_seed if isinstance(indices, Indices) else 0
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                torch.default_generator.manual_seed(derive_seed(epoch_seed, index))
                samples.append(self._read(index))
        pixels, targets = default_collate(samples)
        return normalise(pixels, *self.statistics), targets


class ImageFolderDataModule(LightningDataModule):
    """Your own labelled images, of any size, greyscale or colour.

    Args:
        path: a folder with one folder of images per class, or a .csv, .tsv, .jsonl or .parquet table of paths
            (relative to the table) and labels.
        path_column: the table's column with the paths.
        label_column: the table's column with the labels.
        image_size: S, height and width of the network's input in pixels, at least 4.
        batch_size: images per batch over all processes, at least 1.
        val_share: share of the images for validation, in (0, 1); stratified, the same split in every run.
        test_share: share of the images for testing, in (0, 1); val_share + test_share must be below 1.
        crop: smallest share of a training image's area that a random crop keeps, in (0, 1]; 1: no cropping.
        flip: mirror training images left to right with probability 0.5.
        num_workers: processes that decode images; 0: decode in the training process.

    Batches are images (B, 3, S, S) float32, normalised like ImageNet, and targets (B,) int64, indices into `labels`.
    Validation and test scale an image's shorter side to S and crop the centre.

    Raises:
        InputError: an argument is out of range, `path` does not exist, there are fewer than two classes or too few
            images, or files cannot be read.
    """

    input_kind = "image"
    pixel_mean, pixel_std = MEAN, STD

    def __init__(
        self,
        path: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        image_size: int = 64,
        batch_size: int = 32,
        val_share: float = 0.1,
        test_share: float = 0.1,
        crop: float = 0.5,
        flip: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("image_size", image_size, 4), ("batch_size", batch_size, 1)):
            if value < least:
                raise InputError(f"{name} {value} is too small: give at least {least}")
        if not 0 < crop <= 1:
            raise InputError(f"crop {crop} is out of range: give a share of the area above 0 and up to 1")
        if num_workers < 0:
            raise InputError(f"num_workers {num_workers} is out of range: give at least 0")
        check_shares(val_share, test_share)
        self.save_hyperparameters()
        self.path = Path(path or "").expanduser()
        self.path_column = path_column
        self.label_column = label_column
        self.image_size = image_size
        self._centre = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size)])
        self.batch_size = batch_size
        self.shares = (val_share, test_share)
        self.crop = crop
        self.flip = flip
        self.num_workers = num_workers
        self.data_source = path or ""
        self.labels: list[str] = []
        """The labels, in the order of their class numbers; set by `setup`."""
        self._restored: list[str] = []

    def setup(self, stage: str) -> None:
        """Find, check and split the files, in every process.

        Raises:
            InputError: there are no images, or some cannot be used.
        """
        if hasattr(self, "train_set"):
            return
        if not self.data_source:
            raise InputError("no images given: give --data.path a folder with one folder of images per class")
        found = self._from_folder() if self.path.is_dir() else self._from_table()
        check_files([file for file, _ in found])
        self.labels = self._restored or sorted({label for _, label in found})
        self.num_classes = len(self.labels)
        if self.num_classes < 2:
            raise InputError(f"{self.path} has one class only, {self.labels[0]}: give at least two")
        numbers = {label: number for number, label in enumerate(self.labels)}
        if unknown := [label for _, label in found if label not in numbers]:
            raise InputError(f"class {unknown[0]} of {self.path} was not trained on: give {', '.join(self.labels)}")
        files, targets = [file for file, _ in found], [numbers[label] for _, label in found]
        parts = dict(zip(PARTS, stratified_split(targets, self.shares), strict=True))
        if empty := [part for part, indices in parts.items() if not indices]:
            raise InputError(f"{self.path} has {len(files)} images, too few for a {empty[0]} part: give 3 per class")
        sizes = ", ".join(f"{len(indices):,} {part}" for part, indices in parts.items())
        rank_zero_info(f"{self.num_classes} classes, {sizes} images of {self.path}")
        self.train_set, self.val_set, self.test_set = (
            ImageFiles([files[i] for i in indices], [targets[i] for i in indices], self.transform(part))
            for part, indices in parts.items()
        )

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """The pixels of images as in validation, not normalised, (B, 3, S, S) uint8."""
        transform = self.transform("test")
        return torch.stack([transform(flatten(image).convert("RGB")) for image in inputs])

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the data."""
        self.setup("fit")
        return {"num_classes": self.num_classes, "in_channels": 3, "image_size": self.image_size}

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's labels instead of the files' labels; call before `setup`."""
        self.labels = self._restored = list(state_dict["labels"])

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def _loader(self, files: ImageFiles, shuffle: bool = False) -> DataLoader[Batch]:
        order = shuffled(len(files)) if shuffle else None
        # Batch norm cannot train on a batch of one.
        batches = Batches(len(files), self.batch_size, self.trainer, order, drop_single=shuffle)
        return batch_loader(files, batches, num_workers=self.num_workers)

    def transform(self, part: str) -> Any:
        """The transform of a part (`train`, `val` or `test`) from RGB images to pixels (3, S, S) uint8."""
        size = self.image_size
        if part == "train" and self.crop < 1:
            first = [v2.RandomResizedCrop(size, scale=(self.crop, 1.0))]
        else:
            first = [self._centre]
        if part == "train" and self.flip:
            first.append(v2.RandomHorizontalFlip())
        return v2.Compose([*first, v2.PILToTensor()])

    def _from_folder(self) -> list[tuple[Path, str]]:
        classes = sorted(folder for folder in self.path.iterdir() if folder.is_dir() and not is_hidden(folder.name))
        if len(classes) > 1 and all(folder.name.lower() in PART_NAMES for folder in classes):
            raise InputError(
                f"--data.path {self.path}: the folders {', '.join(folder.name for folder in classes)} are parts, not"
                f" classes: give one of them, to be split by val_share and test_share, or a table"
            )
        skipped: Counter[str] = Counter()
        found = [(file, folder.name) for folder in classes for file in image_files(folder, skipped)]
        if not found:
            raise InputError(f"--data.path {self.path}: no images in its folders; give one folder of images per class")
        if without := {folder.name for folder in classes} - {label for _, label in found}:
            rank_zero_info(f"Ignored folders without images: {', '.join(sorted(without))}")
        if skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
            rank_zero_info(f"Skipped files that are not images: {kinds}")
        return found

    def _from_table(self) -> list[tuple[Path, str]]:
        if not self.path.is_file():
            raise InputError(
                f"--data.path {self.path}: no such folder or table; give a folder with one folder per class"
            )
        rows = read_table(str(self.path), self.path_column, self.label_column, "path_column")
        return [(self.path.parent / name, label) for name, label in rows]


def check_files(files: list[Path]) -> None:
    """Raise InputError if a file is not an image; damage in its pixels shows only on decoding."""

    def problem(file: Path) -> str | None:
        try:
            with Image.open(file) as image:
                image.verify()
        except UNREADABLE as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "not an image that can be read"
            return f"{file} ({reason})"
        return None

    with ThreadPoolExecutor() as pool:
        checked = tqdm(pool.map(problem, files), "Checking images", len(files), delay=2.0, leave=False)
        bad = [found for found in checked if found]
    if bad:
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise InputError(f"{len(bad)} of {len(files)} images cannot be used: {', '.join(bad[:MAX_LISTED])}{more}")
