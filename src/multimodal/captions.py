"""Images with captions: of the user's own, or MNIST's digits in many phrasings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.engine.data.loading import Batches, Indices, batch_loader, shuffled
from src.engine.data.split import stratified_split
from src.engine.data.tables import read_table
from src.engine.system.errors import InputError
from src.engine.system.randomness import seed_of
from src.text.labelled_text import padded
from src.text.tokenizer import Tokenizer, restore_tokenizer, train_words
from src.vision.image_folder import ImageFiles, ImageFolderDataModule, check_files
from src.vision.mnist import MNISTDataModule

Batch = tuple[Tensor, Tensor, Tensor, Tensor]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = [(word, str(digit)) for digit, word in enumerate(WORDS)]
PHRASINGS = {
    "train": (
        "{}", "a {}", "the {}", "number {}", "the number {}", "the digit {}", "this is a {}", "a handwritten {}",
        "a picture of the number {}", "somebody has written a {}", "what you see here is a {}", "{} in white on black",
        "an image of the digit {} , written by hand", "the digit in this picture is a {}", "it shows the number {}",
    ),
    "val": ("here is the digit {}", "a {} written by somebody", "you see a handwritten {}"),
    "test": ("a photo of the number {}", "the figure {} , drawn with a pen", "looks like a {}", "a scan with a {}"),
}  # fmt: skip
FORMS = [list(form) for form in zip(*NAMES, strict=True)]
MAX_WORDS = 16384


class CaptionedImages(Dataset[Batch]):
    """Images, each with one of the captions that fit it.

    Args:
        images: gives images and targets (B,) for a list of indices.
        captions: token numbers of the captions, each (T,).
        fitting: for each target, or each image, the numbers of the captions that fit.
        by_target: whether `fitting` goes by target; else by image, whose number is then its target.
    """

    def __init__(self, images: Any, captions: list[Any], fitting: list[list[int]], by_target: bool) -> None:
        self.images = images
        self.captions = captions
        self.fitting = fitting
        self.by_target = by_target

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Batch:
        images, targets = self.images.__getitems__(indices)
        targets = targets if self.by_target else torch.tensor(list(indices))
        # In training the caption depends on run, epoch and image alone; else on the image.
        seed = indices.epoch_seed if isinstance(indices, Indices) else 0
        fitting = [self.fitting[target] for target in targets.tolist()]
        chosen = [fits[seed_of(seed, index) % len(fits)] for index, fits in zip(indices, fitting, strict=True)]
        return images, *padded([self.captions[number] for number in chosen]), targets


class CaptionDataModule(LightningDataModule):
    """Images with captions, for a contrastive model.

    Args:
        path: own table (.csv, .tsv, .jsonl, .parquet) of images, relative to it, and captions; MNIST without.
        image_column: name of the column that holds the images' paths.
        caption_column: name of the column that holds the captions.
        data_dir: as of `MNISTDataModule`.
        source: as of `MNISTDataModule`.
        max_shift: as of `MNISTDataModule`.
        max_rotation: as of `MNISTDataModule`.
        image_size: S of own images, which are RGB then.
        max_length: tokens of a caption at most.
        batch_size: pairs a batch, all processes together.

    Batches are images (B, C, S, S) float32, tokens (B, T) int64, mask (B, T) bool, and targets (B,) int64, equal where
    an image and a caption fit. MNIST's validation and test captions are of phrasings that training never sees.

    Raises:
        InputError: as of `MNISTDataModule`, `max_length` is too small, or the table or a file in it cannot be used.
    """

    def __init__(
        self,
        path: str | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        data_dir: str | None = None,
        source: Literal["auto", "official", "sample"] = "auto",
        max_shift: float = 0.0,
        max_rotation: float = 0.0,
        image_size: int = 64,
        max_length: int = 32,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        if max_length < 2:
            raise InputError(f"max_length {max_length} is too small: give at least 2")
        self.save_hyperparameters()
        self.digits = MNISTDataModule(data_dir, source, batch_size, max_shift=max_shift, max_rotation=max_rotation)
        self.path = path
        self.columns = (image_column, caption_column)
        self.max_length = max_length
        self.batch_size = batch_size
        self.labels: list[str] = [] if path else list(WORDS)
        self.files = ImageFolderDataModule(path, image_size=image_size, flip=False) if path else None
        pixels: Any = self.files or self.digits
        self.pixel_mean, self.pixel_std, self.prepare_image = pixels.pixel_mean, pixels.pixel_std, pixels.prepare_image
        self.data_source = path or source
        self._restored = False

    def prepare_data(self) -> None:
        if self.path is None:
            self.digits.prepare_data()

    def setup(self, stage: str) -> None:
        """Find and split images and captions; every process does so for itself."""
        if hasattr(self, "sets"):
            return
        own = self._own(Path(self.path).expanduser(), self.files) if self.path and self.files else None
        parts = list(own or self._digits(stage))
        if not self._restored:
            self.tokenizer: Tokenizer = train_words(parts[0][1], MAX_WORDS)
        by_target = self.path is None
        self.sets = {
            part: CaptionedImages(images, self._ids(captions), fitting, by_target)
            for part, (images, captions, fitting) in zip(PHRASINGS, parts, strict=True)
        }
        self.save_hyperparameters({"data_source": self.data_source})

    def network_arguments(self) -> dict[str, Any]:
        """The arguments of a network that follow from the data."""
        self.prepare_data()
        self.setup("fit")
        size = {"in_channels": 3, "image_size": self.files.image_size} if self.files else {}
        return {"vocab_size": self.tokenizer.vocab_size, **size}

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint's tokenizer in place of one of the captions; before `setup`."""
        self.tokenizer, self._restored = restore_tokenizer(state_dict["tokenizer"]), True

    def prepare_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64, padded to the longest, and mask (B, T) bool of texts."""
        return padded(self._ids(texts))

    def prompts(self, part: str) -> list[tuple[Tensor, Tensor]]:
        """Tokens and mask of all classes, for each phrasing of a part that training does not see."""
        if self.path is not None:
            return []
        return [self.prepare_texts([one.format(name) for name in names]) for one in PHRASINGS[part] for names in FORMS]

    def train_dataloader(self) -> DataLoader[Batch]:
        data, whole = self.sets["train"], len(self.sets["train"]) // self.batch_size * self.batch_size
        order = shuffled(len(data))  # a batch that is not full would have fewer pairs to tell apart
        return batch_loader(data, Batches(whole or len(data), self.batch_size, self.trainer, order))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def _in_order(self, part: str) -> DataLoader[Batch]:
        return batch_loader(self.sets[part], Batches(len(self.sets[part]), self.batch_size, self.trainer))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment the images of a training batch of digits."""
        self.digits.trainer = self.trainer
        images, *rest = batch
        images, _ = self.digits.on_after_batch_transfer((images, rest[-1]), 0) if self.path is None else (images, None)
        return (images, *rest)  # type: ignore[return-value]

    def _digits(self, stage: str) -> Iterator[tuple[Any, list[str], list[list[int]]]]:
        """Images, captions and which of these fit which digit, of each part."""
        self.digits.setup(stage)
        self.data_source = self.digits.data_source
        images = (self.digits.train_set, self.digits.val_set, self.digits.test_set)
        for pixels, phrasings in zip(images, PHRASINGS.values(), strict=True):
            captions = [one.format(name) for names in NAMES for one in phrasings for name in names]
            count = len(captions) // len(NAMES)
            yield pixels, captions, [list(range(count * digit, count * (digit + 1))) for digit in range(len(NAMES))]

    def _own(self, path: Path, data: ImageFolderDataModule) -> Iterator[tuple[Any, list[str], list[list[int]]]]:
        """The same of own images, where each has one caption that fits."""
        rows = read_table(str(path), *self.columns, "image_column")
        files = [path.parent / name for name, _ in rows]
        check_files(files)
        for part, indices in zip(PHRASINGS, stratified_split([0] * len(rows), (0.1, 0.1)), strict=True):
            images = ImageFiles([files[index] for index in indices], [0] * len(indices), data.transform(part))
            yield images, [rows[index][1] for index in indices], [[number] for number in range(len(indices))]

    def _ids(self, texts: list[str]) -> list[Any]:
        return self.tokenizer.encode_batch(texts, self.max_length)
