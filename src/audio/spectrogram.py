"""Log-mel spectrograms, and random changes of sounds and spectrograms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 0.032  # seconds of one short-time spectrum
SILENCE = 1e-10  # power
DECIBELS = 60.0  # this far below the loudest value of a sound is silence


class LogMel(nn.Module):
    """Spectrograms as square images, independent of the loudness of the sounds (mel scale: Stevens et al. 1937).

    Args:
        size: S, number of bands and of frames, at least 4.
        samples: T, length of a sound in samples.
        sample_rate: in Hz.

    Shapes:
        (B, T) float -> (B, 1, S, S) float from -1, silence, to 1, the loudest value; high bands first, as in a plot.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, size: int, samples: int, sample_rate: int) -> None:
        super().__init__()
        self.size = size
        length = round(WINDOW * sample_rate)
        self.spectra = -(-samples // size // length)  # spectra per frame, so that the windows cover all of a long sound
        self.step = samples // size // self.spectra
        self.bins = 2 * length  # FFT size
        while not (filters := mel_filters(size, sample_rate, self.bins)).any(dim=0).all():
            self.bins *= 2  # narrow bands: some have no bin yet
        self.register_buffer("window", torch.hann_window(length), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        length = len(self.window)
        spectra = torch.stft(
            waveforms, self.bins, self.step, length, self.window, pad_mode="constant", return_complex=True
        )
        power = torch.view_as_real(spectra).square().sum(dim=-1)[..., : self.size * self.spectra]
        power = power.reshape(*power.shape[:2], self.size, self.spectra).mean(dim=-1)  # (B, bins / 2 + 1, S)
        bands = torch.einsum("bft,fs->bst", power, self.filters)  # (B, S, S)
        loudness = 10 * bands.clamp(min=SILENCE).log10()
        loudest = loudness.amax(dim=(1, 2), keepdim=True)
        is_silent = bands.amax(dim=(1, 2), keepdim=True) <= SILENCE
        loudness = (loudness - loudest) / DECIBELS - is_silent.float()  # at most 0
        return (2 * loudness + 1).clamp(min=-1).flip(1).unsqueeze(1)


def mel_filters(count: int, sample_rate: int, bins: int) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale, for an FFT of `bins` samples: (bins / 2 + 1, count)."""
    top = torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
    edges = 700 * (10 ** torch.linspace(0, float(top), count + 2) - 1)  # in Hz
    found = torch.linspace(0, sample_rate / 2, bins // 2 + 1)[:, None]  # in Hz
    rising = (found - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - found) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def changed_sounds(
    waveforms: Tensor, max_shift: float, max_speed: float, max_noise: float, generator: torch.Generator
) -> Tensor:
    """Play each sound at another speed and thus pitch (Ko et al. 2015), move it, and add noise.

    Args:
        waveforms: (B, T) float.
        max_shift: at least 0, in samples.
        max_speed: largest change of the speed as a share of it, in [0, 1).
        max_noise: largest volume of the noise, as a share of the sound's; drawn uniformly in decibels, at least a
            thousandth of this.
        generator: source of randomness, on the device of the sounds.

    Returns:
        (B, T) float.
    """
    count, samples = waveforms.shape
    draws = torch.rand((3, count, 1), generator=generator, device=waveforms.device)
    speed, shift = (2 * draws[0] - 1) * max_speed, (2 * draws[1] - 1) * max_shift  # (B, 1)
    middle = (samples - 1) / 2
    places = middle + (torch.arange(samples, device=draws.device) - middle) * (1 + speed) + shift  # (B, T)
    padded = F.pad(waveforms, (1, 2))  # silence before and after
    places = (places + 1).clamp(0, samples + 1)
    before, share = places.long(), places.frac()
    moved: Tensor = padded.gather(1, before) * (1 - share) + padded.gather(1, before + 1) * share
    noise = torch.empty_like(moved).normal_(generator=generator)
    noise *= max_noise * torch.pow(10, -3 * draws[2]) * waveforms.std(dim=1, keepdim=True)
    return moved + noise


def mask_bands(images: Tensor, max_share: float, generator: torch.Generator) -> Tensor:
    """Silence some neighbouring bands, and some neighbouring frames, of each spectrogram (Park et al. 2019).

    Args:
        images: (B, 1, S, S).
        max_share: largest share of bands, and of frames, in [0, 1).
        generator: source of randomness, on the images' device.

    Returns:
        (B, 1, S, S), -1 (silence) where masked.
    """
    count, _, size, _ = images.shape
    widths, starts = torch.rand((2, count, 2, 1), generator=generator, device=images.device)
    widths = widths * max_share
    starts = starts * (1 - widths)
    places = (torch.arange(size, device=images.device) + 0.5) / size
    masked = (places >= starts) & (places < starts + widths)  # (B, 2, S)
    return torch.where(masked[:, 0, None, :, None] | masked[:, 1, None, None, :], -1.0, images)
