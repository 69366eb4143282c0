"""Digits seen, spoken and written; or your own images, recordings and captions."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.audio.spoken_words import SpokenWordsDataModule
from src.engine.data.tables import read_table
from src.engine.system.addresses import local_paths
from src.engine.system.errors import InputError
from src.multimodal.captions import CaptionDataModule, choose
from src.multimodal.clip import INPUTS, Modality

Batch = tuple[Tensor, ...]


class SpokenImages(Dataset[Batch]):
    """Images with captions, each with one of its matching sounds.

    Args:
        captioned: the images with captions.
        waveforms: (N, T) int16.
        matching: for each image, the indices of the matching sounds.
    """

    def __init__(self, captioned: Any, waveforms: Tensor, matching: list[list[int]]) -> None:
        self.captioned = captioned
        self.images = captioned.images
        self.waveforms = waveforms
        self.matching = matching

    def __len__(self) -> int:
        return len(self.captioned)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images, waveforms (B, T) float32 from -1 to 1, tokens, mask, and targets (B,)."""
        images, *captions = self.captioned.__getitems__(indices)
        return images, self.waveforms[choose(self.matching, indices, 1)] / 2**15, *captions


class SpokenCaptionDataModule(CaptionDataModule):
    """Two or three of images, sounds and captions, for a contrastive model.

    Args:
        modalities: two or three of `image`, `sound` and `text`.
        path: a table (.csv, .tsv, .jsonl, .parquet) of paths (relative to the table) of images and of WAV or FLAC
            files, and captions; default: MNIST with captions, spoken by a synthesiser.
        image_column: see `CaptionDataModule`.
        caption_column: see `CaptionDataModule`.
        sound_column: the table's column with the paths of the sounds.
        data_dir: see `MNISTDataModule`.
        source: see `MNISTDataModule`.
        max_shift: see `MNISTDataModule`; MNIST only.
        max_rotation: see `MNISTDataModule`; MNIST only.
        image_size: see `CaptionDataModule`.
        max_length: see `CaptionDataModule`.
        batch_size: samples per batch over all processes, at least 1.

    Batches are those of `CaptionDataModule` with spectrograms (B, 1, 40, 40) float32 after the images. A sound matches
    every sample with the same target. The voices of validation and test are not heard in training.

    Raises:
        InputError: see `CaptionDataModule` and `SpokenWordsDataModule`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality] = ("image", "sound", "text"),
        path: str | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        sound_column: str = "sound",
        data_dir: str | None = None,
        source: Literal["auto", "official", "sample"] = "auto",
        max_shift: float = 0.0,
        max_rotation: float = 0.0,
        image_size: int = 64,
        max_length: int = 32,
        batch_size: int = 128,
    ) -> None:
        options = (data_dir, source, max_shift, max_rotation, image_size, max_length, batch_size)
        super().__init__(path, image_column, caption_column, *options)
        if not 2 <= len(set(modalities)) == len(modalities):
            raise InputError(f"modalities {', '.join(modalities)}: give two or three of {', '.join(INPUTS)}")
        self.modalities = [name for name in INPUTS if name in modalities]
        self.sound_column = sound_column
        self.words = SpokenWordsDataModule(source="synthetic")
        self._predict_on_sounds()

    def _predict_on_sounds(self) -> None:
        """Without images, predict on sounds."""
        if "image" not in self.modalities:
            self.input_kind, self.prepare, self.notes = "file", self.words.prepare, self.words.notes
            self.features, self.read_file = self.words.features, self.words.read_file
            self.file_suffixes, self.page_script = self.words.file_suffixes, self.words.page_script

    def setup(self, stage: str) -> None:
        """Find and split images, captions and sounds, in every process."""
        if hasattr(self, "sets"):
            return
        super().setup(stage)
        if "sound" not in self.modalities:
            return
        if self.path is None:
            self.words.setup(stage)
            clips = (self.words.train_set, self.words.val_set, self.words.test_set)
            for part, own in zip(self.sets, clips, strict=True):
                fits = [(own.targets == digit).nonzero()[:, 0].tolist() for digit in range(len(self.labels))]
                matching = [fits[digit] for digit in self.sets[part].images.targets.tolist()]
                self.sets[part] = SpokenImages(self.sets[part], own.waveforms, matching)
        else:
            rows = read_table(self.path, self.sound_column, self.columns[1], ("sound_column", "caption_column"))
            names = [f"{self.path}, row {number}: {name}" for number, (name, _) in enumerate(rows, start=1)]
            waves = torch.stack(self.words.read(names, local_paths([name for name, _ in rows], self.path)))
            for part, indices in self.rows_of.items():
                matching = [[number] for number in range(len(indices))]
                self.sets[part] = SpokenImages(self.sets[part], waves[indices], matching)
        self.train_set, self.val_set, self.test_set = self.sets.values()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `CaptionDataModule`."""
        super().load_state_dict(state_dict)
        self._predict_on_sounds()

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the data."""
        return {**super().network_arguments(), "modalities": self.modalities, "sound_size": self.words.image_size}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch of MNIST images, and make the spectrograms of a batch."""
        if "sound" not in self.modalities:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        images, waveforms, *captions, targets = batch
        if "image" in self.modalities:
            images, *_ = super().on_after_batch_transfer((images, *captions, targets), dataloader_idx)
        self.words.trainer = self.trainer
        parts = {"image": [images], "sound": [self.words.spectrograms(waveforms)], "text": captions}
        return (*(tensor for name in self.modalities for tensor in parts[name]), targets)
