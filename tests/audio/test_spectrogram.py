"""Log-mel spectrograms and their augmentation."""

import pytest
import torch

from src.audio.spectrogram import LogMel, changed_sounds, mask_bands, mel_filters
from tests.audio.helpers import RATE, tone


def sound(hertz: float, volume: float = 1.0) -> torch.Tensor:
    return volume * torch.from_numpy(tone(hertz, 1)[:, 0]).float()


def test_a_higher_tone_is_higher_up_and_volume_does_not_matter() -> None:
    features = LogMel(40, RATE, RATE)
    images = features(torch.stack([sound(hertz) for hertz in (200, 1000, 5000)]))
    assert images.shape == (3, 1, 40, 40)
    assert (images.min() >= -1, images.max() <= 1) == (True, True)
    rows = images.mean(dim=3)[:, 0].argmax(dim=1).tolist()
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) == 3
    assert torch.allclose(features(sound(1000, 0.01)[None]), images[1:2], atol=1e-3)


def test_time_goes_from_left_to_right_and_silence_is_black() -> None:
    wave = sound(1000)
    wave[: RATE // 2] = 0
    image = LogMel(40, RATE, RATE)(wave[None])[0, 0]
    assert image[:, :19].max() == -1
    assert image[:, 21:].amax(dim=0).min() > 0
    assert LogMel(16, 400, RATE)(torch.zeros(1, 400)).isfinite().all()


def test_no_part_of_a_long_sound_is_between_two_windows() -> None:
    waves = torch.zeros(50, 10 * RATE)
    places = torch.arange(50) * 3190
    for wave, place in zip(waves, places.tolist(), strict=True):
        wave[place : place + 64] = 0.5
    images = LogMel(40, 10 * RATE, RATE)(waves)
    frames = images[:, 0].mean(dim=1).argmax(dim=1)
    assert (frames - places / 4000).abs().max() <= 1


def test_mel_bands_are_those_of_the_formula() -> None:
    filters = mel_filters(20, RATE, 1024)  # (513, 20)
    peaks = filters.argmax(dim=0) * RATE / 1024
    mels = 2595 * torch.log10(1 + peaks / 700)
    steps = mels.diff()
    assert filters.min() >= 0
    assert (steps - 2840 / 21).abs().max() < 25  # a bin of 16 Hz


@pytest.mark.parametrize(("size", "rate"), [(40, 16000), (224, 16000), (224, 44100), (224, 8000), (40, 2000)])
def test_each_band_has_frequencies_at_any_rate(size: int, rate: int) -> None:
    features = LogMel(size, rate, rate)
    assert features.filters.sum(dim=0).min() > 0
    assert len(features.window) == round(0.032 * rate)
    assert features(torch.randn(1, rate, generator=generator())).amin(dim=3).max() > -1


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_sound_is_moved_and_nothing_else() -> None:
    waves = torch.zeros(64, 400)
    waves[:, 200] = torch.linspace(1, 64, 64)
    assert torch.allclose(changed_sounds(waves, 0, 0, 0, generator()), waves, atol=1e-2)
    moved = changed_sounds(waves, 50, 0, 0, generator())
    places = moved.argmax(dim=1) - 200
    assert 40 < places.abs().max() <= 50
    assert len(places.unique()) > 20
    assert torch.allclose(moved.sum(dim=1), waves.sum(dim=1), rtol=1e-3)


def test_a_sound_that_is_faster_is_higher_and_shorter() -> None:
    waves = sound(1000)[None].repeat(32, 1)
    waves[:, :4000] = waves[:, 12000:] = 0
    faster = changed_sounds(waves, 0, 0.2, 0, generator())
    hertz = torch.fft.rfft(faster).abs().argmax(dim=1)
    lengths = (faster.abs() > 0.1).sum(dim=1)
    assert (hertz.min() < 850, hertz.max() > 1150, hertz.min() >= 795, hertz.max() <= 1205) == (True,) * 4
    assert hertz.argmax() == lengths.argmin()


def test_noise_is_in_proportion_to_the_sound() -> None:
    waves = torch.linspace(0.01, 1, 64)[:, None] * sound(1000)
    noise = changed_sounds(waves, 0, 0, 0.5, generator()) - changed_sounds(waves, 0, 0, 0, generator())
    share = noise.std(dim=1) / waves.std(dim=1)
    assert 0.25 < share.max() < 0.52
    assert share.min() < 0.01
    assert changed_sounds(waves, 9, 0.1, 0.5, generator()).equal(changed_sounds(waves, 9, 0.1, 0.5, generator()))


def test_bands_and_frames_that_are_masked_are_neighbours_and_few() -> None:
    images = mask_bands(torch.ones(200, 1, 20, 20), 0.3, torch.Generator().manual_seed(1))
    for image in images[:, 0]:
        masked = image == -1
        rows, columns = masked.all(dim=1).nonzero()[:, 0], masked.all(dim=0).nonzero()[:, 0]
        for lines in (rows, columns):
            assert len(lines) <= 6 + 1
            assert lines.diff().eq(1).all()
        assert masked.sum() == 20 * (len(rows) + len(columns)) - len(rows) * len(columns)
    assert mask_bands(torch.ones(2, 1, 20, 20), 0.0, torch.Generator()).eq(1).all()


def test_a_silent_recording_is_silence_in_every_cell() -> None:
    assert (LogMel(40, 16_000, 16_000)(torch.zeros(1, 16_000)) == -1).all()
