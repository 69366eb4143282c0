"""Spoken words with labels: your own recordings, Speech Commands, or digits of a speech synthesiser."""

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from src.audio.recordings import MAX_SAMPLES, SUFFIXES, Recording, clip, read_recording
from src.audio.spectrogram import LogMel, changed_sounds, mask_bands
from src.audio.speech import VOICES, spoken_digits
from src.engine.data.batched import BatchDataset
from src.engine.data.download import DownloadError, data_folder, published
from src.engine.data.labelled_files import (
    Columns,
    LabelledDataModule,
    check_class_sizes,
    labelled_files,
    read_all,
    split_files,
)
from src.engine.data.loading import announce
from src.engine.data.split import check_fraction
from src.engine.system.errors import InputError, check_least
from src.engine.system.randomness import step_generator

Batch = tuple[Tensor, Tensor]

# The small set of Speech Commands.
COMMANDS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/mini_speech_commands.zip"
COMMANDS_SHA256 = "49650f2341b26d886b46b3f4fb8fed59e30300b17550f1ee4a768b3106cf93a0"
COMMAND_FILE = re.compile(r"mini_speech_commands/(\w+)/(\w+)_nohash_\w+\.wav")  # word and speaker
MOST_HASHED = 2**27 - 1  # of the rule that assigns speakers to parts


class Clips(BatchDataset):
    """Sounds of one length in memory.

    Args:
        waveforms: (N, T) int16.
        targets: (N,) int64 class numbers.
    """

    def __init__(self, waveforms: Tensor, targets: Tensor) -> None:
        self.waveforms = waveforms
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Waveforms (B, T) float32 from -1 to 1, and targets (B,)."""
        rows = torch.tensor(indices)
        return self.waveforms[rows] / 2**15, self.targets[rows]


class SpokenWordsDataModule(LabelledDataModule):
    """Recordings of single words, as log-mel spectrograms.

    Args:
        path: your own WAV or FLAC files: a folder with one folder per class, or a .csv, .tsv, .jsonl or .parquet table
            of paths (relative to the table) and labels.
        val_path: the same for validation. Default: `val_share` of `path`.
        test_path: the same for test. Default: `test_share` of `path`.
        path_column: the table's column with the paths.
        label_column: the table's column with the labels.
        group_column: the table's column with groups, such as speakers, each of which is in one part only.
            Default: none.
        source: the sounds if no path is given: `speech_commands`, eight words by many speakers, downloaded if missing
            (182 MB); `synthetic`, ten digits in five languages by the synthesiser espeak-ng; `auto`,
            `speech_commands`, or `synthetic` if that is missing and cannot be downloaded.
        data_dir: folder for the download. Default: `data/` in the project.
        sample_rate: samples per second of the sounds; others are resampled. At least 2,000.
        seconds: length of the sounds, above 0; the loudest part of a longer recording is used.
        image_size: S, bands and frames of a spectrogram, at least 4.
        batch_size: sounds per batch over all processes, at least 1.
        val_share: share of your own recordings for validation, in (0, 1); stratified, the same in every run.
        test_share: share of your own recordings for test, in (0, 1).
        max_shift: largest random shift of a training sound in seconds, at least 0.
        max_speed: largest random change of a training sound's speed, and so of its pitch, as a share of it, in [0, 1).
        max_noise: largest random noise in a training sound, as a share of its volume, at least 0; each sound's noise
            is between a thousandth of this and this.
        max_mask: largest share of bands, and of frames, that is masked in a training spectrogram, in [0, 1).

    Batches are spectrograms (B, 1, S, S) float32, made on the training device, and targets (B,) int64. In Speech
    Commands no speaker, and in the synthetic digits no voice is in two parts. The sounds are held in memory, 32 KB a
    second.

    Raises:
        InputError: an argument is out of range, or recordings cannot be used.
    """

    input_kind = "file"
    file_suffixes = SUFFIXES
    page_script = Path(__file__).with_name("microphone.js")
    read_file = staticmethod(read_recording)

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        group_column: str | None = None,
        source: Literal["auto", "speech_commands", "synthetic"] = "auto",
        data_dir: str | None = None,
        sample_rate: int = 16000,
        seconds: float = 1.0,
        image_size: int = 40,
        batch_size: int = 64,
        val_share: float = 0.1,
        test_share: float = 0.1,
        max_shift: float = 0.1,
        max_speed: float = 0.15,
        max_noise: float = 0.1,
        max_mask: float = 0.1,
    ) -> None:
        super().__init__()
        check_least(2000, sample_rate=sample_rate)
        check_least(4, image_size=image_size)
        check_least(1, batch_size=batch_size)
        check_least(0, max_shift=max_shift, max_noise=max_noise)
        samples = round(seconds * sample_rate) if math.isfinite(seconds) else 0
        if not image_size <= samples <= MAX_SAMPLES:
            low, high = image_size / sample_rate, MAX_SAMPLES // sample_rate
            raise InputError(f"seconds {seconds} is out of range: give {low:.6g} to {high}")
        check_fraction(max_speed=max_speed, max_mask=max_mask)
        paths = {"train": path, "val": val_path, "test": test_path}
        self.use_paths(paths, "recordings", (val_share, test_share))
        self.save_hyperparameters()
        self.columns = Columns(path_column, label_column, group_column)
        self.source = source
        self.data_dir = data_folder(data_dir)
        self.sample_rate = sample_rate
        self.clip = partial(clip, samples=samples, sample_rate=sample_rate)
        """Makes sounds of the right length and rate, (T,) int16, of recordings."""
        self.image_size = image_size
        self.batch_size = batch_size
        self.max_shift = max_shift * sample_rate
        self.max_speed, self.max_noise, self.max_mask = max_speed, max_noise, max_mask
        self.features = LogMel(image_size, samples, sample_rate)
        self.file_example = (
            "import soundfile; sound, rate = soundfile.read(sys.argv[1], always_2d=True);"
            f' assert rate == {sample_rate}, f"{{rate}} Hz: give {sample_rate}"; sound = sound.mean(1); n = {samples};'
            " short = max(0, n - len(sound)); sound = np.pad(sound, (short // 2, short - short // 2))",
            "energy = np.cumsum(np.append(0, sound**2)); energy = energy[n:] - energy[:-n];"  # the loudest part
            " loud = np.flatnonzero(energy >= 0.999 * energy.max()); start = loud[len(loud) // 2];"
            " values = sound[None, start : start + n].astype(np.float32)",
        )
        self.data_source = path or source
        """Path or source of the sounds in use; set by `setup`."""

    def setup(self, stage: str) -> None:
        """Read and split the sounds, in every process."""
        if hasattr(self, "train_set"):
            return
        if self.paths["train"]:
            kind = f"{' or '.join(SUFFIXES)} files"
            files = labelled_files(self.paths, self.columns, SUFFIXES, kind, self.restored)
            check_class_sizes(files)
            waves = self.read([one.name for one in files], [one.file for one in files])
            keys = [hash(wave.numpy().tobytes()) for wave in waves]
            parts = split_files(files, waves, keys, self.shares, "sounds")
        else:
            found = self._source_parts().items()
            parts = {part: [(self.clip(one), label) for one, label in sounds] for part, sounds in found}
        self.train_set, self.val_set, self.test_set = (
            Clips(torch.stack(waves), torch.tensor(targets))
            for waves, targets in self.with_targets(parts, self.data_source, "sounds").values()
        )
        self.save_hyperparameters({"data_source": self.data_source})

    def prepare(self, inputs: Sequence[Recording]) -> Tensor:
        """Waveforms of recordings, (B, T) float32 from -1 to 1; `features` makes spectrograms of them."""
        return torch.stack([self.clip(one) for one in inputs]) / 2**15

    def notes(self, inputs: Sequence[Recording]) -> list[str]:
        """Whether each recording was resampled, had several channels, or is silent."""
        return ["; ".join(self._changes(one)) for one in inputs]

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the data."""
        self.setup("fit")
        return {"num_classes": self.num_classes, "in_channels": 1, "image_size": self.image_size}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the spectrograms of a batch, on its device; in training of changed sounds."""
        return self.spectrograms(batch[0]), batch[1]

    def spectrograms(self, waveforms: Tensor) -> Tensor:
        """(B, T) float -> (B, 1, S, S) float; in training with shift, noise and masks."""
        sounds = waveforms.float()
        features = self.features.to(sounds.device)
        if self.trainer is None or not self.trainer.training:
            return features(sounds).to(waveforms.dtype)
        generator = step_generator(self.trainer, sounds.device)
        images = features(changed_sounds(sounds, self.max_shift, self.max_speed, self.max_noise, generator))
        return mask_bands(images, self.max_mask, generator).to(waveforms.dtype)

    def _changes(self, recording: Recording) -> list[str]:
        samples, rate, channels = recording
        found = [] if rate == self.sample_rate else [f"resampled from {rate:,} to {self.sample_rate:,} Hz"]
        found += [] if channels == 1 else [f"mean of {channels} channels"]
        return found if samples.any() else [*found, "silent"]

    def _source_parts(self) -> dict[str, list[tuple[Recording, str]]]:
        if self.source != "synthetic":
            try:
                self.data_source = "speech_commands"
                return speech_commands(self.data_dir)
            except DownloadError as error:
                problem = f"Speech Commands is not in {self.data_dir} and could not be downloaded ({error})"
                if self.source == "speech_commands":
                    raise InputError(f"{problem}: put mini_speech_commands.zip there, or give --data.path") from error
                rank_zero_info(problem)
        self.data_source = "synthetic"
        count = sum(map(len, VOICES.values()))
        announce(f"*** SYNTHETIC SPEECH, NOT RECORDINGS: digits by {count} voices; results are not comparable. ***")
        return spoken_digits()

    def read(self, names: Sequence[str], files: Sequence[Path]) -> list[Tensor]:
        """The sounds of files, (T,) int16 each, reported; `names` are for messages."""

        def read(file: Path) -> tuple[Tensor, list[str]]:
            recording = read_recording(file)
            return self.clip(recording), self._changes(recording)

        sounds = read_all(names, files, read)
        changes = [(name, change) for name, (_, own) in zip(names, sounds, strict=True) for change in own]
        for kind in ("resampled", "mean", "silent"):
            if found := [(name, change) for name, change in changes if change.startswith(kind)]:
                what = "silent" if kind == "silent" else "changed"
                rank_zero_info(f"{len(found):,} recordings are {what}, such as {': '.join(found[0])}")
        return [wave for wave, _ in sounds]


def speech_commands(data_dir: Path) -> dict[str, list[tuple[Recording, str]]]:
    """For each part, recordings of eight words (Warden 2018), 8,000 in all; no speaker is in two parts.

    Raises DownloadError, or InputError if the folder cannot be written or the file is not the published one.
    """
    path = published(COMMANDS_URL, COMMANDS_SHA256, data_dir / "mini_speech_commands.zip")
    parts: dict[str, list[tuple[Recording, str]]] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if found := COMMAND_FILE.fullmatch(name):
                parts[part_of(found[2])].append((read_recording(io.BytesIO(archive.read(name))), found[1]))
    return parts


def part_of(speaker: str) -> str:
    """The part of a speaker: by the data set's own rule, a tenth is for validation and a tenth for test."""
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (MOST_HASHED + 1) * (100 / MOST_HASHED)
    return "val" if percent < 10 else "test" if percent < 20 else "train"
