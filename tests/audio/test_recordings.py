"""Sound files of any rate, number of channels and length, and what cannot be used of them."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from src.audio import recordings
from src.audio.recordings import Recording, clip, read_recording
from src.engine.system.errors import SampleError
from tests.audio.helpers import RATE, tone


def wav(sound: object, rate: int = RATE, form: str = "WAV", **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form, **options)
    return file.getvalue()


def hertz_of(wave: torch.Tensor) -> float:
    """The strongest frequency of a second of sound."""
    assert len(wave) == RATE
    return float(torch.fft.rfft(wave.float()).abs().argmax())


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_stays_the_same_tone(form: str, rate: int, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "tone"
    path.write_bytes(wav(tone(440, 1, rate, channels), rate, form))
    for source in (path, io.BytesIO(path.read_bytes())):
        found = read_recording(source)
        assert (found.rate, found.channels, len(found.samples)) == (rate, channels, rate)
        wave = clip(found, RATE, RATE)
        assert wave.dtype == torch.int16
        assert hertz_of(wave) == 440
        assert 0.4 < wave.float().abs().max() / 2**15 < 0.6


def test_frequencies_that_the_rate_cannot_hold_are_removed_not_mirrored() -> None:
    wave = clip(Recording(tone(15000, 1, 44100)[:, 0].astype("float32"), 44100, 1), RATE, RATE)
    assert wave.float().std() / 2**15 < 0.02  # the noise


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.25)], axis=1)
    assert np.allclose(read_recording(io.BytesIO(wav(stereo))).samples, 0.125, atol=1e-4)


def test_a_short_sound_is_put_in_the_middle_of_silence_and_the_loudest_part_of_a_long_one_is_kept() -> None:
    short = clip(Recording(np.full(100, 0.5, "float32"), RATE, 1), 1000, RATE)
    assert short[450:550].eq(2**14).all()
    assert short.count_nonzero() == 100
    sound = np.full(5 * RATE, 0.001, "float32")
    sound[3 * RATE : 3 * RATE + 8000] = 0.5
    long = clip(Recording(sound, RATE, 1), RATE, RATE)
    loud = (long > 10000).nonzero()[:, 0]
    assert len(loud) == 8000
    assert 3000 < loud[0] < 5000  # in the middle


@pytest.mark.parametrize("rate", [RATE, 22050])
def test_a_sound_that_16_bits_cannot_hold_is_scaled_and_others_keep_their_bits(rate: int) -> None:
    sound = tone(440, 1, rate)[:, 0].astype("float32")
    sound /= np.abs(sound).max()

    def clipped(volume: float) -> torch.Tensor:
        return clip(Recording(sound * np.float32(volume), rate, 1), RATE, RATE).float()

    for volume in (32768, 1.01, 2**-7, 1e-6):  # whole numbers in a file of floats, and nearly silent
        assert (clipped(volume) - clipped(1)).abs().max() <= 1
    assert (clipped(0.25) - clipped(1) / 4).abs().max() <= 1
    if rate == RATE:
        for volume in (1, 0.25, 2**-6):
            assert clipped(volume).tolist() == (sound * volume * 2**15).round().clip(max=2**15 - 1).tolist()
    assert clip(Recording(np.zeros(rate, "float32"), rate, 1), RATE, RATE).count_nonzero() == 0


def test_a_loud_sound_that_is_resampled_is_scaled_not_clipped() -> None:
    limited = np.sign(tone(440, 1, 44100)[:, 0]).astype("float32")  # its corners need frequencies above the rate's
    wave = clip(Recording(limited, 44100, 1), RATE, RATE).float()
    assert (wave.abs() >= 2**15 - 2).sum() < 20


def streamed() -> bytes:
    """A WAV file by a program that did not know its length, such as ffmpeg into a pipe."""
    found = bytearray(wav(tone(440)))
    found[4:8] = found[40:44] = b"\xff" * 4
    return bytes(found)


def test_a_length_that_a_program_did_not_know_is_no_error() -> None:
    assert len(read_recording(io.BytesIO(streamed())).samples) == RATE // 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF", "not a sound that can be read to its end: Format not recognised"),
        (b"hello, I am text", "not a sound that can be read to its end: Format not recognised"),
        (wav(tone(440))[:9000], "the file is truncated: it ends before its sound does"),
        (wav(tone(440))[:44], "the file is truncated"),
        (wav(tone(440))[:30], "not a sound that can be read to its end: .*No 'data' chunk"),
        (wav(tone(440), form="FLAC")[:5000], "not a sound that can be read to its end: .*lost sync"),
        (wav(tone(440)[:0]), "the file has no sound"),
        (wav(tone(440), 2_000_000_000), "it has 2,000,000,000 samples per second: give 1,000 to 1,000,000"),
        (wav(np.full(100, np.nan), subtype="FLOAT"), "it has samples that are not finite numbers"),
    ],
)
def test_what_is_no_whole_sound_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        read_recording(io.BytesIO(content))


def test_a_small_file_with_hours_of_silence_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_SAMPLES", RATE)
    with pytest.raises(
        SampleError,
        match=r"it is longer than 0\.5 s, the most for \d channels? at [\d,]+ Hz: cut it into shorter files",
    ):
        read_recording(io.BytesIO(wav(np.zeros((RATE, 2)), form="FLAC")))
