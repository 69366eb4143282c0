"""Reads sound files of any rate and number of channels, and cuts them to one length."""

import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.engine.system.errors import InputError, SampleError

SUFFIXES = (".wav", ".flac")
MAX_SAMPLES = 2**24  # of all channels of a file: a small file can hold a huge sound
RATES = (1_000, 1_000_000)  # samples per second: a damaged file can have any
QUIETEST = 2**-6  # loudest value of a sound that is kept as it is: quieter ones lose too much as 16 bits
UNKNOWN = 2_000_000_000  # size in bytes that a program writes if it does not know the size yet


class Recording(NamedTuple):
    """A sound: samples (T,) float32, rate in samples per second, and number of channels in its file."""

    samples: Any
    rate: int
    channels: int


def read_recording(source: Path | BinaryIO) -> Recording:
    """A sound file; several channels are averaged.

    Raises:
        SampleError: it is no sound, empty, incomplete, too long or of an impossible rate.
        OSError: it cannot be opened.
        InputError: the package soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise InputError("sound files need the package soundfile: pip install soundfile") from error
    with open(source, "rb") if isinstance(source, Path) else source as file:
        try:
            with soundfile.SoundFile(file) as sound:
                rate, channels, frames = sound.samplerate, sound.channels, sound.frames
                limit = MAX_SAMPLES // channels
                samples = sound.read(limit + 1, dtype="float32", always_2d=True)  # (T, channels)
                sizes = re.findall(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
        except soundfile.LibsndfileError as error:
            raise SampleError(f"not a sound that can be read to its end: {error.error_string.rstrip('.')}") from error
    if not RATES[0] <= rate <= RATES[1]:
        raise SampleError("it has {:,} samples per second: give {:,} to {:,}".format(rate, *RATES))
    if len(samples) > limit:
        most = f"{limit / rate:,.6g} s, the most for {channels} channel{'s' * (channels > 1)} at {rate:,} Hz"
        raise SampleError(f"it is longer than {most}: cut it into shorter files")
    if len(samples) < frames or any(int(real) < int(said) < UNKNOWN for said, real in sizes):
        raise SampleError("the file is truncated: it ends before its sound does")
    if not len(samples):
        raise SampleError("the file has no sound")
    mono = torch.from_numpy(samples).mean(dim=1)
    if not mono.isfinite().all():
        raise SampleError("it has samples that are not finite numbers")
    return Recording(mono.numpy(), rate, channels)


def clip(recording: Recording, samples: int, sample_rate: int) -> Tensor:
    """The loudest part of a recording, or all of it between silence: (samples,) int16 at `sample_rate`.

    What is louder than 16 bits can hold, or very quiet, is scaled to their whole range.
    """
    wave = torch.from_numpy(recording.samples)
    wanted = max(1, round(samples * recording.rate / sample_rate))  # at the recording's own rate
    if len(wave) > wanted:
        energy = F.pad(wave.double().square().cumsum(0), (1, 0))
        parts = energy[wanted:] - energy[:-wanted]
        loudest = (parts >= 0.999 * parts.max()).nonzero()[:, 0]
        start = int(loudest[len(loudest) // 2])
        wave = wave[start : start + wanted]
    before = (wanted - len(wave)) // 2
    wave = F.pad(wave, (before, wanted - len(wave) - before))
    peak = wave.abs().max()
    if peak > 1 or 0 < peak < QUIETEST:
        wave = wave / peak
    if recording.rate != sample_rate:
        # Through its spectrum, without the frequencies that the new rate cannot hold.
        wave = torch.fft.irfft(torch.fft.rfft(wave), n=samples) * (samples / wanted)
        wave = wave / wave.abs().max().clamp(min=1)  # without some frequencies it may be louder
    return (wave * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
