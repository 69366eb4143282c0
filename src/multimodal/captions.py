"""Images with captions: your own, or MNIST digits with captions in many phrasings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader

from src.engine.data.batched import BatchDataset, BatchedDataModule, check_loaded
from src.engine.data.image_reader import check_files, restored_ranges
from src.engine.data.images import Ranges
from src.engine.data.labelled_files import Columns, LabelledFile, content_keys, files_of_table, split_files
from src.engine.data.loading import Batches, Indices, announce, batch_loader, shuffled
from src.engine.data.split import check_parts
from src.engine.data.workers import NumWorkers
from src.engine.system.errors import InputError, check_least
from src.engine.system.randomness import derive_seed
from src.text.labelled_text import padded, report_cut
from src.text.tokenizer import UNKNOWN, Tokenizer, check_tokens, restore_tokenizer, train_words
from src.vision.image_folder import ImageFolderDataModule
from src.vision.mnist import MNISTDataModule

Batch = tuple[Tensor, ...]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMERALS = tuple("0123456789")
NAMES = list(zip(WORDS, NUMERALS, strict=True))
PHRASINGS = {
    "train": (
        "{}", "a {}", "the {}", "number {}", "the number {}", "the digit {}", "this is a {}", "a handwritten {}",
        "a picture of the number {}", "somebody has written a {}", "what you see here is a {}", "{} in white on black",
        "an image of the digit {} , written by hand", "the digit in this picture is a {}", "it shows the number {}",
    ),
    "val": ("here is the digit {}", "a {} written by somebody", "you see a handwritten {}"),
    "test": ("a photo of the number {}", "the figure {} , drawn with a pen", "looks like a {}", "a scan with a {}"),
}  # fmt: skip
MAX_WORDS = 16384
SHARES = (0.1, 0.1)  # of your own images, for validation and test


class CaptionedImages(BatchDataset):
    """Images, each with one of its matching captions, and with one of its matching sounds if `sounds` is set.

    Args:
        images: dataset whose `__getitems__` returns images and targets (B,).
        captions: token ids of the captions, each (T,).
        matching: for each image, the indices of the matching captions.
    """

    sounds: tuple[Tensor, list[list[int]]] | None = None
    """Waveforms (N, T) int16, and for each image the indices of the matching ones."""

    def __init__(self, images: Any, captions: list[Any], matching: list[list[int]]) -> None:
        self.images = images
        self.captions = captions
        self.matching = matching

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images, waveforms (B, T) float32 from -1 to 1 if there are sounds, tokens, mask, and targets (B,)."""
        images, targets = self.images.__getitems__(indices)
        captions = padded([self.captions[number] for number in choose(self.matching, indices)])
        if self.sounds is None:
            return images, *captions, targets
        waveforms, matching = self.sounds
        return images, waveforms[choose(matching, indices, 1)] / 2**15, *captions, targets


def choose(matching: list[list[int]], indices: list[int], *kind: int) -> list[int]:
    """One of the matches of each sample: in training by run seed, epoch and sample; else by the sample only."""
    seed = indices.epoch_seed if isinstance(indices, Indices) else 0
    return [matching[index][derive_seed(seed, index, *kind) % len(matching[index])] for index in indices]


class CaptionDataModule(BatchedDataModule):
    """Images with captions, for a contrastive model.

    Args:
        path: a table (.csv, .tsv, .jsonl, .parquet) of image paths (relative to the table) and captions; default:
            MNIST.
        val_path: the same for validation. Default: a tenth of the images of `path`.
        test_path: the same for test. Default: a tenth of the images of `path`.
        image_column: the table's column with the image paths.
        caption_column: the table's column with the captions.
        data_dir: see `MNISTDataModule`.
        source: see `MNISTDataModule`.
        max_shift: see `MNISTDataModule`; MNIST only.
        max_rotation: see `MNISTDataModule`; MNIST only.
        image_size: S, height and width of your own images in pixels; MNIST is always 28.
        max_length: largest number of tokens per caption, at least 2.
        batch_size: pairs per batch over all processes, at least 1.
        fold: see `MNISTDataModule`.
        folds: see `MNISTDataModule`.
        crop: smallest share of a training image's area that a random crop keeps; 1: none. Your own images only.
        num_workers: see `ImageFolderDataModule`; your own images only.

    Batches are images (B, C, S, S) float32 (C is 3 for your own images, 1 for MNIST), tokens (B, T) int64, mask (B, T)
    bool, and targets (B,) int64; a caption matches every image with the same target. Your own image may have
    several rows with captions: they have the same target and are in the same part. MNIST's validation and test captions
    use phrasings that are not in the training part.

    Raises:
        InputError: an argument is out of range, MNIST cannot be loaded (see `MNISTDataModule`), there are too few
            images, or the table or a file in it cannot be used.
    """

    input_kind = "image"
    own_tokens = True  # not those of a pretrained network
    modalities: Sequence[str] = ("image", "text")

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        data_dir: str | None = None,
        source: Literal["auto", "official", "sample"] = "auto",
        max_shift: float = 0.0,
        max_rotation: float = 0.0,
        image_size: int = 64,
        max_length: int = 32,
        batch_size: int = 128,
        fold: int | None = None,
        folds: int = 5,
        crop: float = 0.5,
        num_workers: NumWorkers = "auto",
    ) -> None:
        super().__init__()
        check_least(2, max_length=max_length)
        check_parts((path, val_path, test_path), "table", *SHARES)
        self.save_hyperparameters()
        shift: dict[str, Any] = {"max_shift": max_shift, "max_rotation": max_rotation}
        self.digits = MNISTDataModule(data_dir, source, batch_size, **shift, fold=fold, folds=folds)
        self.fold, self.num_workers = (fold, folds), num_workers
        self._image_options: dict[str, Any] = {"image_size": image_size, "crop": crop, "num_workers": num_workers}
        self._image_options |= {"flip": False, "fold": fold, "folds": folds}
        self.path = path
        self.paths: Any = {"train": path, "val": val_path, "test": test_path}
        self.columns = (image_column, caption_column)
        self.max_length = max_length
        self.batch_size = batch_size
        self.data_source = path or source
        self._restored = False
        self._use_images(is_own=path is not None)

    def _use_images(self, is_own: bool) -> None:
        """Use your own images, else those of MNIST."""
        self.labels: list[str] = [] if is_own else list(WORDS)
        self.files = ImageFolderDataModule(*self.paths.values(), **self._image_options) if is_own else None
        pixels: Any = self.files or self.digits
        self.pixel_mean, self.pixel_std, self.prepare = pixels.pixel_mean, pixels.pixel_std, pixels.prepare
        if hasattr(pixels, "notes"):
            self.notes = pixels.notes
        self.shrink = getattr(pixels, "shrink", None)
        self.repeats_images = is_own
        """Whether several samples with one target are of the same image, each with a caption of its own."""

    def prepare_data(self) -> None:
        if self.path is None:
            self.digits.prepare_data()

    def setup(self, stage: str) -> None:
        """Find and split images and captions, in every process."""
        if hasattr(self, "sets"):
            return
        own = self._own_parts(self.files) if self.path and self.files else None
        parts = list(own or self._mnist_parts(stage))
        if not self._restored:
            self.tokenizer: Tokenizer = train_words(parts[0][1], MAX_WORDS)
        self.sets = {
            part: CaptionedImages(images, self.tokenizer.encode_batch(captions, self.max_length), matching)
            for part, (images, captions, matching) in zip(PHRASINGS, parts, strict=True)
        }
        self.train_set, self.val_set, self.test_set = self.sets.values()
        report_cut([len(ids) for ids in self.train_set.captions], self.max_length, "captions")
        if not self._restored:
            check_tokens(self.tokenizer, self.train_set.captions, "words")
        self.save_hyperparameters({"data_source": self.data_source})

    def network_arguments(self) -> dict[str, Any]:
        self.prepare_data()
        self.setup("fit")
        size = {"in_channels": 3, "image_size": self.files.image_size} if self.files else {}
        return {"vocab_size": self.tokenizer.vocab_size, **size}

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.state,
            "value_ranges": self.value_ranges,
            "sizes": self.files.sizes if self.files else {},
            "has_own_images": self.files is not None,
        }

    @property
    def value_ranges(self) -> Ranges:
        """The values that are black and white in images of more than 8 bits."""
        return self.files.value_ranges if self.files else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's tokenizer instead of training one on the captions; call before `setup`."""
        check_loaded(self, state_dict, "tokenizer")
        self.tokenizer, self._restored = restore_tokenizer(state_dict["tokenizer"]), True
        if state_dict.get("has_own_images") and self.files is None:  # paths are read from one's own runs only
            self._use_images(is_own=True)
        if self.files:
            self.files.value_ranges = restored_ranges(state_dict.get("value_ranges", {}))
            self.files.restored_sizes = dict(state_dict.get("sizes", {}))

    def prepare_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens of texts (B, T) int64, padded to the longest text, and mask (B, T) bool, true for tokens.

        Raises:
            InputError: a text has no word that the model was trained on.
        """
        found = self.tokenizer.encode_batch(texts, self.max_length)
        words: Any = self.tokenizer
        unknown = words.inner.token_to_id(UNKNOWN)
        for text, ids in zip(texts, found, strict=True):
            if len(ids) and (ids == unknown).all():
                raise InputError(f"label {text!r} has no word that the model was trained on: give another text")
            if (ids == unknown).any():
                read = words.inner.encode(text)
                lost = [text[a:b] for one, (a, b) in zip(read.ids, read.offsets, strict=True) if one == unknown]
                announce(f"label {text!r}: the model was not trained with {', '.join(lost)}, which it reads as unknown")
        return padded(found)

    def prompts(self, part: str) -> list[tuple[Tensor, Tensor]]:
        """Tokens and mask of all class names, for each phrasing of a part; empty for your own images."""
        if self.path is not None:
            return []
        return [
            padded(self.tokenizer.encode_batch([phrasing.format(name) for name in names], self.max_length))
            for phrasing in PHRASINGS[part]
            for names in (WORDS, NUMERALS)
        ]

    def train_dataloader(self) -> DataLoader[Batch]:
        data = self.train_set
        # Drop a smaller last batch: the loss depends on the number of pairs in a batch.
        world = self.trainer.world_size if self.trainer else 1  # each process needs the same number
        size = len(data) // self.batch_size * self.batch_size or len(data) // world * world or len(data)
        batches = Batches(size, self.batch_size, self.trainer, shuffled(len(data)))
        return batch_loader(data, batches, num_workers=self._workers(data, shuffle=True))

    def _workers(self, dataset: Any, shuffle: bool) -> int:
        if not self.files:
            return 0
        self.files.trainer = self.trainer
        return self.files._workers(dataset.images, shuffle)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise images, or augment a training batch of MNIST images."""
        data = self.files or self.digits
        data.trainer = self.trainer
        images, *rest = batch
        images, _ = data.on_after_batch_transfer((images, rest[-1]), dataloader_idx)
        return (images, *rest)

    def _mnist_parts(self, stage: str) -> Iterator[tuple[Any, list[str], list[list[int]]]]:
        """For each part: images, captions, and the indices of the captions that match each image."""
        self.digits.setup(stage)
        self.data_source = self.digits.data_source
        images = (self.digits.train_set, self.digits.val_set, self.digits.test_set)
        for pixels, phrasings in zip(images, PHRASINGS.values(), strict=True):
            captions = [phrasing.format(name) for names in NAMES for phrasing in phrasings for name in names]
            count = len(captions) // len(NAMES)
            fits = [list(range(count * digit, count * (digit + 1))) for digit in range(len(NAMES))]
            yield pixels, captions, [fits[digit] for digit in pixels.targets.tolist()]

    def rows(self, column: str, option: str) -> list[LabelledFile]:
        """The files of all your tables in a column that an option sets; their labels are the captions."""
        columns, options = Columns(column, self.columns[1]), (option, "caption_column")
        found = [files_of_table(part, path, columns, options) for part, path in self.paths.items() if path]
        return [row for own in found for row in own]

    def _own_parts(self, data: ImageFolderDataModule) -> Iterator[tuple[Any, list[str], list[list[int]]]]:
        """As `_mnist_parts`, for your own tables: each row is an image and its caption."""
        rows = self.rows(self.columns[0], "image_column")
        files = [row.file for row in rows]
        data.value_ranges = check_files(files, data.value_ranges)
        keys = [(row.part, key) for row, key in zip(rows, content_keys(files), strict=True)]
        first = {key: row._replace(label="") for row, key in zip(reversed(rows), reversed(keys), strict=True)}
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        targets = [numbers[key] for key in keys]  # the rows of one image have the same
        unique = [first[key] for key in numbers]
        split = split_files(unique, range(len(unique)), [key for _, key in numbers], SHARES, "images", self.fold)
        if not all(split.values()):
            counted = f"{self.path} has {len(numbers)} different images"
            raise InputError(f"{counted}, too few for three parts: give at least 3")
        parts = {part: {number for number, _ in own} for part, own in split.items()}
        self.rows_of = {part: [row for row, one in enumerate(targets) if one in own] for part, own in parts.items()}
        # The captions of one image in different batches, as in training: the loss takes only one of them as right.
        seen, nth = Counter[int](), []
        for one in targets:
            seen[one] += 1
            nth.append(seen[one])
        self.rows_of |= {part: sorted(self.rows_of[part], key=nth.__getitem__) for part in ("val", "test")}
        data.report_changes({part: [""] * len(own) for part, own in self.rows_of.items()}, str(self.path), "images")
        for part, indices in self.rows_of.items():
            own = [files[index] for index in indices]
            images = data.dataset(own, [targets[index] for index in indices], part)
            yield images, [rows[index].label for index in indices], [[number] for number in range(len(indices))]
