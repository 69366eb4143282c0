"""Images of the user's own: one folder a class, or a table of paths and labels."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from tqdm import tqdm

from src.engine.data.images import UNREADABLE, flatten, read_image
from src.engine.data.loading import Batches, Indices, batch_loader, shuffled
from src.engine.data.split import check_shares, stratified_split
from src.engine.data.tables import read_table
from src.engine.system.errors import InputError
from src.engine.system.randomness import seed_of

Batch = tuple[Tensor, Tensor]

# Mean and standard deviation of ImageNet's channels, which torchvision's weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMED = 5  # unreadable files named in one message
PARTS = ("train", "val", "test")
PART_NAMES = {*PARTS, "training", "valid", "validation", "testing"}


class ImageFiles(Dataset[Batch]):
    """Image files, decoded when they are asked for.

    Args:
        files: their paths.
        targets: class number of each.
        transform: of a PIL image in RGB to a (3, H, W) float tensor.
    """

    def __init__(self, files: list[Path], targets: list[int], transform: Any) -> None:
        self.files = files
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        """Image (3, H, W) float and target () int64."""
        try:
            rgb = flatten(read_image(self.files[index])).convert("RGB")
        except UNREADABLE as error:
            raise InputError(f"{self.files[index]} cannot be read ({error}): take it away or mend it") from error
        return self.transform(rgb), torch.tensor(self.targets[index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images (B, 3, H, W) float and targets (B,) int64.

        In training, what the transform does at random depends on run, epoch and image alone.
        """
        epoch_seed = indices.epoch_seed if isinstance(indices, Indices) else 0
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                torch.default_generator.manual_seed(seed_of(epoch_seed, index))
                samples.append(self[index])
        batch: Batch = tuple(default_collate(samples))
        return batch


class ImageFolderDataModule(LightningDataModule):
    """Any images with classes, of any size, grey or colour.

    Args:
        path: a folder with one folder of images a class, or a .csv, .tsv, .jsonl or .parquet table of paths (relative
            to the table) and labels.
        path_column: name of the table's column that holds the paths.
        label_column: name of its column that holds the labels.
        image_size: S, height and width of what the network sees, in pixels.
        batch_size: images a batch, all processes together, at least 1.
        val_share: share of the images that validates, in (0, 1), stratified, the same in every run.
        test_share: share of the images that tests.
        crop: smallest share of a training image's area that a random crop keeps, in (0, 1]; 1 crops nothing.
        flip: whether half of the training images, at random, are mirrored left to right.
        num_workers: processes that decode; 0 decodes in the training process.

    Batches are images (B, 3, S, S) float32, normalised as ImageNet's, and targets (B,) int64, the labels' places in
    `labels`. Validation and test see the middle of an image, its shorter side scaled to S.

    Raises:
        InputError: an argument is out of its range, there is no such folder or table, there are fewer than two classes
            or too few images, or files cannot be read; these are named.
    """

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
        if path is None:
            raise InputError("no images given: give --data.path a folder with one folder of images for each class")
        for name, value, least in (("image_size", image_size, 4), ("batch_size", batch_size, 1)):
            if value < least:
                raise InputError(f"{name} {value} is too small: give at least {least}")
        if not 0 < crop <= 1:
            raise InputError(f"crop {crop} is out of range: give a share of the area above 0 and up to 1")
        if num_workers < 0:
            raise InputError(f"num_workers {num_workers} is out of range: give at least 0")
        check_shares(val_share, test_share)
        self.save_hyperparameters()
        self.path = Path(path).expanduser()
        self.path_column = path_column
        self.label_column = label_column
        self.image_size = image_size
        self._middle = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size)])
        self.batch_size = batch_size
        self.shares = (val_share, test_share)
        self.crop = crop
        self.flip = flip
        self.num_workers = num_workers
        self.data_source = path
        self.labels: list[str] = []
        """The labels, in the order of their class numbers; known after `setup`."""
        self._restored: list[str] = []

    def setup(self, stage: str) -> None:
        """Find, check and split the files; every process does so for itself.

        Raises:
            InputError: there are none, or some cannot be used.
        """
        if hasattr(self, "train_set"):
            return
        found = self._from_folder() if self.path.is_dir() else self._from_table()
        check_files([file for file, _ in found])
        self.labels = self._restored or sorted({label for _, label in found})
        self.num_classes = len(self.labels)
        if self.num_classes < 2:
            raise InputError(f"{self.path} has one class only, {self.labels[0]}: a classifier needs two")
        numbers = {label: number for number, label in enumerate(self.labels)}
        if unknown := [label for _, label in found if label not in numbers]:
            raise InputError(f"class {unknown[0]} of {self.path} is none that was trained on: {', '.join(self.labels)}")
        files, targets = [file for file, _ in found], [numbers[label] for _, label in found]
        parts = dict(zip(PARTS, stratified_split(targets, self.shares), strict=True))
        if empty := [part for part, indices in parts.items() if not indices]:
            raise InputError(f"{self.path} has {len(files)} images, too few for a {empty[0]} part: give 3 a class")
        sizes = ", ".join(f"{len(indices):,} {part}" for part, indices in parts.items())
        rank_zero_info(f"{self.num_classes} classes, {sizes} images of {self.path}")
        self.train_set, self.val_set, self.test_set = (
            ImageFiles([files[i] for i in indices], [targets[i] for i in indices], self.transform(part))
            for part, indices in parts.items()
        )

    def prepare_image(self, image: Image.Image) -> tuple[Tensor, str]:
        """The pixels of an image, (3, S, S) uint8, as validation sees them before they are normalised, and no note."""
        return v2.functional.pil_to_tensor(self._middle(flatten(image).convert("RGB"))), ""

    def network_arguments(self) -> dict[str, Any]:
        """The arguments of a network that follow from the images."""
        self.setup("fit")
        return {"num_classes": self.num_classes, "in_channels": 3, "image_size": self.image_size}

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint's labels in place of those of the files; before `setup`."""
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
        """What makes tensors of the RGB images of a part: `train`, `val` or `test`."""
        size = self.image_size
        if part == "train" and self.crop < 1:
            first = [v2.RandomResizedCrop(size, scale=(self.crop, 1.0))]
        else:
            first = [self._middle]
        if part == "train" and self.flip:
            first.append(v2.RandomHorizontalFlip())
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
        return v2.Compose([*first, *last])

    def _from_folder(self) -> list[tuple[Path, str]]:
        classes = sorted(
            folder for folder in self.path.iterdir() if folder.is_dir() and not folder.name.startswith(".")
        )
        if len(classes) > 1 and all(folder.name.lower() in PART_NAMES for folder in classes):
            raise InputError(
                f"--data.path {self.path}: its folders {', '.join(folder.name for folder in classes)} are parts, not"
                f" classes: give one of them, which is split by val_share and test_share, or a table"
            )
        found = [
            (file, folder.name)
            for folder in classes
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMG_EXTENSIONS and file.is_file()
        ]
        if not found:
            raise InputError(
                f"--data.path {self.path}: there are no images in its folders; it needs one folder for each class"
            )
        if without := {folder.name for folder in classes} - {label for _, label in found}:
            rank_zero_info(f"Folders without images are no classes: {', '.join(sorted(without))}")
        return found

    def _from_table(self) -> list[tuple[Path, str]]:
        if not self.path.is_file():
            raise InputError(
                f"--data.path {self.path}: no such folder or table; give a folder with one folder for each class"
            )
        rows = read_table(str(self.path), self.path_column, self.label_column, "path_column")
        return [(self.path.parent / name, label) for name, label in rows]


def check_files(files: list[Path]) -> None:
    """Raise InputError where a file is no image; what only decoding shows is found when it is decoded."""

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
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise InputError(f"{len(bad)} of {len(files)} images cannot be used: {', '.join(bad[:NAMED])}{more}")
