"""Log-mel spectrograms and their augmentation."""

import pytest
import torch

from src.audio.spectrogram import LogMel, mask_bands, mel_filters, shift_and_noise
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


def test_mel_bands_are_those_of_the_formula() -> None:
    filters = mel_filters(20, RATE)  # (513, 20)
    peaks = filters.argmax(dim=0) * RATE / 1024
    mels = 2595 * torch.log10(1 + peaks / 700)
    steps = mels.diff()
    assert filters.min() >= 0
    assert (steps - 2840 / 21).abs().max() < 25  # a bin of 16 Hz


@pytest.mark.parametrize("shift", [0, 50])
def test_a_sound_is_shifted_and_gets_noise_in_proportion(shift: int) -> None:
    waves = torch.zeros(64, 400)
    waves[:, 200] = torch.linspace(1, 64, 64)
    moved = shift_and_noise(waves, shift, 0.0, torch.Generator().manual_seed(0))
    places = moved.argmax(dim=1)
    assert moved.amax(dim=1).equal(waves.amax(dim=1))
    assert (places - 200).abs().max() == shift or (shift and len(places.unique()) > 10)
    noise = shift_and_noise(waves, 0, 0.5, torch.Generator().manual_seed(0)) - waves
    share = noise.std(dim=1) / waves.std(dim=1)
    assert share.max() < 0.6
    assert share.std() > 0.05
    again = shift_and_noise(waves, shift, 0.5, torch.Generator().manual_seed(0))
    assert again.equal(shift_and_noise(waves, shift, 0.5, torch.Generator().manual_seed(0)))


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
