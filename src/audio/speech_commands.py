"""The small set of Speech Commands: 8,000 recordings of eight words (Warden 2018), from its public address."""

import hashlib
import io
import re
import zipfile
from pathlib import Path

from src.audio.recordings import Recording, read_recording
from src.engine.data.download import published

URL = "https://storage.googleapis.com/download.tensorflow.org/data/mini_speech_commands.zip"
SHA256 = "49650f2341b26d886b46b3f4fb8fed59e30300b17550f1ee4a768b3106cf93a0"
FILE = re.compile(r"mini_speech_commands/(\w+)/(\w+)_nohash_\w+\.wav")  # word and speaker
MOST = 2**27 - 1  # of the rule that assigns speakers to parts


def speech_commands(data_dir: Path) -> dict[str, list[tuple[Recording, str]]]:
    """Recordings and words of each part, downloaded if missing; no speaker is in two parts.

    Raises:
        DownloadError: the file is missing and cannot be downloaded.
        InputError: the folder cannot be written, or the file is not the published one.
    """
    path = published(URL, SHA256, data_dir / "mini_speech_commands.zip")
    parts: dict[str, list[tuple[Recording, str]]] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if found := FILE.fullmatch(name):
                parts[part_of(found[2])].append((read_recording(io.BytesIO(archive.read(name))), found[1]))
    return parts


def part_of(speaker: str) -> str:
    """The part of a speaker: by the data set's own rule, a tenth is for validation and a tenth for test."""
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (MOST + 1) * (100 / MOST)
    return "val" if percent < 10 else "test" if percent < 20 else "train"
