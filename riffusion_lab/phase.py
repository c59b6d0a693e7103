"""Mel amplitudes → waveform: a picture says how loud each frequency is, the phase must be found."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
import torchaudio

from .audio import resample
from .params import SpectrogramParams
from .spectrogram import mel_filterbank, mel_from_waveform, mel_options

N_ITER = {"fast": 48, "riffusion": 32}
MOMENTUM = 0.99  # of fast Griffin-Lim; Perraudin, Balazs, Søndergaard (2013)
HEADROOM = 2.1  # sample rate / highest frequency in the picture
SEED = 0


def waveform_from_mel(
    mel: torch.Tensor, params: SpectrogramParams, *, loop: bool = False, method: str = "fast", n_iter: int | None = None
) -> torch.Tensor:
    """Find a waveform with these mel amplitudes. The same picture always gives the same waveform.

    Parameters
    ----------
    mel : torch.Tensor [shape=(channels, num_frequencies, n_columns), non-negative, float32]
    params : SpectrogramParams
    loop : bool
        Let the frames wrap around, so that the end runs into the beginning without a seam.
    method : {"fast", "riffusion"}
        "riffusion" is the original: torchaudio's InverseMelScale, then GriffinLim; it knows no loops.
    n_iter : int, optional
        Iterations; default 48, or the original's 32. More are closer to the picture, and slower.

    Returns
    -------
    torch.Tensor [shape=(channels, hop_length * n_columns), float32]
        At `params.sample_rate`, as loud as the amplitudes say.

    Raises
    ------
    ValueError
        If the method is unknown or cannot do loops, or `n_iter` is below 1.

    Taught in: 02
    """
    if method not in N_ITER:
        raise ValueError(f"method {method!r} is unknown: give one of {', '.join(map(repr, N_ITER))}")
    n_iter = N_ITER[method] if n_iter is None else n_iter
    if n_iter < 1:
        raise ValueError(f"n_iter is {n_iter}: give 1 or more")
    if method == "fast":
        return torch.stack([_fast(channel, params, loop=loop, n_iter=n_iter) for channel in mel.float()])
    if loop:
        raise ValueError("method 'riffusion' knows no loops: take method='fast', or loop=False")
    return _riffusion(mel.float(), params, n_iter)


def spectral_convergence(
    waveform: torch.Tensor, mel: torch.Tensor, params: SpectrogramParams, *, loop: bool = False
) -> float:
    """How far a waveform's mel amplitudes are from those wanted: ‖g·mel(y) - M‖ / ‖M‖ with the best gain g.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(channels, n_samples), float32]
    mel : torch.Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
    params : SpectrogramParams
    loop : bool

    Returns
    -------
    float
        0 for a perfect waveform, at most 1; NaN where nothing is wanted but silence.

    Taught in: 02
    """
    heard = mel_from_waveform(waveform, params, loop=loop)
    gain = (heard * mel).sum() / heard.square().sum().clamp(min=1e-20)
    return float((gain * heard - mel).norm() / mel.norm())


class _Frames:
    """Windowed FFTs of a waveform and back; frames may wrap around its ends."""

    def __init__(self, params: SpectrogramParams, hop: int, n_columns: int, *, loop: bool) -> None:
        self.hop, self.loop, self.n_samples = hop, loop, hop * n_columns
        self.window = torch.hann_window(params.win_length * hop // params.hop_length)
        self.n_hops = math.ceil(len(self.window) / hop)  # that one frame reaches across
        padding = self.n_hops * hop - len(self.window)
        self.window = torch.nn.functional.pad(self.window, (padding // 2, padding - padding // 2))
        # Frame k is centred on sample k * hop, so frames stand out at both ends.
        self.margin = len(self.window) // 2
        self.index = torch.arange(self.n_samples + len(self.window)) - self.margin
        self.inside = (self.index >= 0) & (self.index < self.n_samples)
        self.index %= self.n_samples
        self.n_fft = 2 * params.win_length * hop // params.hop_length
        self.overlap = self._overlap_add(self.window.square().expand(n_columns, -1))

    def spectra(self, waveform: torch.Tensor, n_bins: int) -> torch.Tensor:
        """Spectra, shape (n_columns, n_bins)."""
        samples = waveform[self.index] if self.loop else waveform[self.index] * self.inside
        frames = samples.unfold(0, len(self.window), self.hop)[: self.n_samples // self.hop]
        return torch.fft.rfft(frames * self.window, n=self.n_fft)[:, :n_bins]

    def waveform(self, spectra: torch.Tensor) -> torch.Tensor:
        """Waveform whose spectra are nearest, shape (n_samples,); Griffin and Lim (1984), eq. 6."""
        frames = torch.fft.irfft(spectra, n=self.n_fft)[:, : len(self.window)] * self.window
        return self._overlap_add(frames) / self.overlap

    def _overlap_add(self, frames: torch.Tensor) -> torch.Tensor:
        n_columns = len(frames)
        sums = torch.zeros(n_columns + self.n_hops, self.hop)
        for part, hops in enumerate(frames.reshape(n_columns, self.n_hops, self.hop).unbind(1)):
            sums[part : part + n_columns] += hops
        sums = sums.reshape(-1)
        if self.loop:
            return torch.zeros(self.n_samples).index_add_(0, self.index, sums)
        return sums[self.inside]


@lru_cache(maxsize=4)
def _filters(params: SpectrogramParams, hop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mel filters for the FFT of `_Frames`, and what is needed to go back.

    Returns
    -------
    filters : torch.Tensor [shape=(num_frequencies, n_bins), sparse]
    transposed : torch.Tensor [shape=(n_bins, num_frequencies), sparse]
    inverse : torch.Tensor [shape=(num_frequencies, num_frequencies)]
        Of `filters @ transposed`; filters that caught no bin are left out.
    """
    short = replace(params, padded_duration_ms=2 * params.window_duration_ms)
    filters = mel_filterbank(short)
    filters = filters[: int(filters.any(dim=1).nonzero().max()) + 1].T
    # Fewer bins fall under a filter than at the full FFT length, and fewer samples under the window.
    filters = filters * (params.n_fft / short.n_fft) * (params.hop_length / hop)
    inverse = torch.linalg.pinv(filters @ filters.T, hermitian=True, rtol=1e-5)
    return filters.to_sparse_coo(), filters.T.to_sparse_coo(), inverse


def _working_hop(params: SpectrogramParams) -> int:
    """Fewest samples per column that still hold the picture's highest frequency and whole frames."""
    hop = params.hop_length
    fewest = math.ceil(HEADROOM * params.max_frequency * hop / params.sample_rate)
    whole = hop // math.gcd(hop, params.win_length)
    return min(hop, math.ceil(fewest / whole) * whole)


def _fast(mel: torch.Tensor, params: SpectrogramParams, *, loop: bool, n_iter: int) -> torch.Tensor:
    """Griffin-Lim with momentum, at a sample rate just high enough, on one channel.

    Amplitudes are not fixed: at every step they move to the nearest ones that have the wanted mel amplitudes, which
    leaves the phase more room than any fixed guess of the spectrum under the filters.
    """
    hop = _working_hop(params)
    frames = _Frames(params, hop, mel.shape[1], loop=loop)
    filters, transposed, inverse = _filters(params, hop)

    def nearest(amplitude: torch.Tensor) -> torch.Tensor:  # (n_columns, n_bins)
        missing = mel - torch.sparse.mm(filters, amplitude.T)
        return (amplitude + torch.sparse.mm(transposed, inverse @ missing).T).clamp(min=0)

    n_bins = filters.shape[1]
    angle = torch.rand(mel.shape[1], n_bins, generator=torch.Generator().manual_seed(SEED)) * (2 * math.pi)
    amplitude = nearest(torch.zeros(mel.shape[1], n_bins))
    spectra, previous = torch.polar(amplitude, angle), None
    for _ in range(n_iter):
        consistent = frames.spectra(frames.waveform(spectra), n_bins)
        ahead = consistent if previous is None else consistent.sub(previous, alpha=MOMENTUM / (1 + MOMENTUM))
        spectra = ahead * (nearest(_magnitude(consistent)) / _magnitude(ahead).clamp(min=1e-16))
        previous = consistent
    return resample(frames.waveform(spectra), hop, params.hop_length, loop=loop)


def _magnitude(spectra: torch.Tensor) -> torch.Tensor:
    """`spectra.abs()` in a third of its time."""
    return spectra.real.square().addcmul_(spectra.imag, spectra.imag).sqrt_()


def _riffusion(mel: torch.Tensor, params: SpectrogramParams, n_iter: int) -> torch.Tensor:
    """Riffusion's own way, on all channels."""
    amplitude = torchaudio.transforms.InverseMelScale(params.n_fft // 2 + 1, **mel_options(params))(mel)
    # GriffinLim makes one hop less than there are columns: the last column twice gives a whole waveform.
    amplitude = torch.cat([amplitude, amplitude[..., -1:]], dim=-1)
    with torch.random.fork_rng(devices=[]):  # GriffinLim draws its first phase from torch's global generator
        torch.manual_seed(SEED)
        lengths = {"n_fft": params.n_fft, "win_length": params.win_length, "hop_length": params.hop_length}
        return torchaudio.transforms.GriffinLim(**lengths, n_iter=n_iter, power=1.0, momentum=MOMENTUM)(amplitude)
