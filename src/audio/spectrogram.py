"""Log-mel spectrograms, and random changes of sounds and spectrograms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 512  # samples of one short-time spectrum, 32 ms at 16,000 a second
BINS = 1024  # of which the spectrum is computed: twice as fine, so that no band is empty
DECIBELS = 60.0  # from the loudest value of a sound to what counts as silence


class LogMel(nn.Module):
    """Spectrograms as square images, as quiet or loud as their sounds may be (mel scale: Stevens et al. 1937).

    Args:
        size: S, number of bands and of frames, at least 4.
        samples: T, length of a sound.
        sample_rate: samples per second.

    Shapes:
        (B, T) float -> (B, 1, S, S) float from -1, silence, to 1, the loudest value; high bands first, as in a plot.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, size: int, samples: int, sample_rate: int) -> None:
        super().__init__()
        self.size = size
        self.step = samples // size
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(size, sample_rate), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        spectra = torch.stft(waveforms, BINS, self.step, WINDOW, self.window, pad_mode="constant", return_complex=True)
        power = torch.view_as_real(spectra).square().sum(dim=-1)[..., : self.size]  # (B, BINS / 2 + 1, S)
        bands = torch.einsum("bft,fs->bst", power, self.filters)  # (B, S, S)
        loudness = 10 * bands.clamp(min=1e-10).log10()
        loudness = (loudness - loudness.amax(dim=(1, 2), keepdim=True)) / DECIBELS  # at most 0
        return (2 * loudness + 1).clamp(min=-1).flip(1).unsqueeze(1)


def mel_filters(count: int, sample_rate: int) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale: (BINS / 2 + 1, count)."""
    top = torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
    edges = 700 * (10 ** torch.linspace(0, float(top), count + 2) - 1)  # in Hz
    bins = torch.linspace(0, sample_rate / 2, BINS // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def shift_and_noise(waveforms: Tensor, max_shift: int, max_noise: float, generator: torch.Generator) -> Tensor:
    """Move each sound (B, T) by at most `max_shift` samples, and add noise.

    Its share of the volume is `max_noise` to a thousandth of it: any number of decibels below is as likely.
    """
    count, samples = waveforms.shape
    offsets = torch.randint(0, 2 * max_shift + 1, (count, 1), generator=generator, device=waveforms.device)
    places = offsets + torch.arange(samples, device=waveforms.device)
    moved = F.pad(waveforms, (max_shift, max_shift)).gather(1, places)
    noise = torch.empty_like(moved).normal_(generator=generator)
    share = max_noise * 10 ** torch.empty_like(offsets, dtype=moved.dtype).uniform_(-3, 0, generator=generator)
    return moved + share * waveforms.std(dim=1, keepdim=True) * noise


def mask_bands(images: Tensor, max_share: float, generator: torch.Generator) -> Tensor:
    """Silence some neighbouring bands, and some neighbouring frames, of each spectrogram (Park et al. 2019).

    Args:
        images: (B, 1, S, S).
        max_share: largest share of bands, and of frames, in [0, 1).
        generator: source of randomness, on the images' device.
    """
    count, _, size, _ = images.shape
    widths, starts = torch.rand((2, count, 2, 1), generator=generator, device=images.device)
    widths = widths * max_share
    starts = starts * (1 - widths)
    places = (torch.arange(size, device=images.device) + 0.5) / size
    masked = (places >= starts) & (places < starts + widths)  # (B, 2, S)
    return torch.where(masked[:, 0, None, :, None] | masked[:, 1, None, None, :], -1.0, images)
