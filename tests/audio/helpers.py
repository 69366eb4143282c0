"""Sounds for the tests."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000
HERTZ = {"high": 3000, "low": 300}
SMALL = ("--model.net.width=4", "--model.net.hidden=16", "--data.image_size=16", "--data.batch_size=8")
TONES = ("--config=configs/audio/spoken_words.yaml", *SMALL, "--model.net.dropout=0", "--optimizer.lr=0.01")


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> Any:
    """A tone (T, channels) in noise."""
    times = np.arange(round(seconds * rate)) / rate
    draw = np.random.default_rng(round(hertz + 1000 * seconds))
    sound = 0.5 * np.sin(2 * np.pi * hertz * times) + draw.normal(0, 0.01, len(times))
    return np.repeat(sound[:, None], channels, axis=1)


def own_sounds(folder: Path, count: int = 20) -> Path:
    """Low and high tones of many lengths in WAV and FLAC, one folder per class."""
    for name, hertz in HERTZ.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{number}{('.wav', '.flac', '.WAV')[number % 3]}"
            soundfile.write(path, tone(hertz * (1 + number / 100), 0.2 + 0.05 * number), RATE)
    (folder / "low" / "notes.txt").write_text("no sound")
    (folder / ".hidden").mkdir()
    return folder
