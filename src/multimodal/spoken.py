"""Digits seen, spoken and written; or your own images, recordings and captions."""

from collections.abc import Sequence
from typing import Any

import torch

from src.audio.spoken_words import SpokenWordsDataModule
from src.engine.system.errors import InputError
from src.multimodal.captions import CaptionDataModule
from src.multimodal.clip import INPUTS, Modality


class SpokenCaptionDataModule(CaptionDataModule):
    """Two or three of images, sounds and captions, for a contrastive model.

    Args:
        modalities: two or three of `image`, `sound` and `text`.
        path: a table (.csv, .tsv, .jsonl, .parquet) of paths (relative to the table) of images and of WAV or FLAC
            files, and captions; default: MNIST with captions, spoken by a synthesiser.
        sound_column: the table's column with the paths of the sounds.
        seconds: length of a sound; of longer ones the loudest part is taken.
        options: the other arguments of `CaptionDataModule`.

    Batches are those of `CaptionDataModule` with spectrograms (B, 1, 40, 40) float32 after the images. A sound matches
    every sample with the same target. The voices of validation and test are not heard in training.

    Raises:
        InputError: see `CaptionDataModule` and `SpokenWordsDataModule`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality] = ("image", "sound", "text"),
        path: str | None = None,
        sound_column: str = "sound",
        seconds: float = 1.0,
        **options: Any,
    ) -> None:
        if not 2 <= len(set(modalities)) == len(modalities):
            raise InputError(f"modalities {', '.join(modalities)}: give two or three of {', '.join(INPUTS)}")
        # Saved by `setup`, and given back by `load_from_checkpoint`.
        options = {name: value for name, value in options.items() if name != "data_source"}
        self.modalities = [name for name in INPUTS if name in modalities]
        self.sound_column = sound_column
        self.words = SpokenWordsDataModule(source="synthetic", seconds=seconds)
        super().__init__(path, **options)

    def _use_images(self, is_own: bool) -> None:
        """Without images, predict on sounds."""
        super()._use_images(is_own)
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
            for part, own in zip(self.sets.values(), clips, strict=True):
                fits = [(own.targets == digit).nonzero()[:, 0].tolist() for digit in range(len(self.labels))]
                part.sounds = own.waveforms, [fits[digit] for digit in part.images.targets.tolist()]
        else:
            rows = self.rows(self.sound_column, "sound_column")
            waves = torch.stack(self.words.read([row.name for row in rows], [row.file for row in rows]))
            for name, indices in self.rows_of.items():
                self.sets[name].sounds = waves[indices], self.sets[name].matching

    def network_arguments(self) -> dict[str, Any]:
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
