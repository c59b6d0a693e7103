"""Waveform → mel spectrogram (amplitudes; the phase is let go, see `phase`)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torchaudio

from .params import SpectrogramParams
from .resampling import reflected
from .torch_defaults import torch_defaults

BLOCK = 2_048  # columns analysed at once


def mel_options(params: SpectrogramParams) -> dict[str, Any]:
    """Give torchaudio's names for the mel scale of these params: HTK's, filters not normalized."""
    band = {"f_min": params.min_frequency, "f_max": params.max_frequency, "n_mels": params.num_frequencies}
    return {**band, "sample_rate": params.sample_rate, "norm": None, "mel_scale": "htk"}


@lru_cache(maxsize=8)
@torch_defaults()
def mel_filterbank(params: SpectrogramParams) -> torch.Tensor:
    """Triangular HTK mel filters, not normalized.

    Returns
    -------
    torch.Tensor [shape=(n_fft // 2 + 1, num_frequencies), float32]
    """
    return torchaudio.functional.melscale_fbanks(params.n_fft // 2 + 1, **mel_options(params))


def n_columns(n_samples: int, params: SpectrogramParams) -> int:
    """Columns of the picture of `n_samples` samples: the nearest whole number of hops, at least one."""
    return max(1, round(n_samples / params.hop_length))


@torch_defaults()
def mel_from_waveform(waveform: torch.Tensor, params: SpectrogramParams, *, loop: bool = False) -> torch.Tensor:
    """Mel amplitudes of a waveform; column k is centred on sample `k * hop_length`.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    params : SpectrogramParams
    loop : bool
        Analyse the sound as a loop: the window that reaches past one end sees the other end.
        Otherwise the sound goes on mirrored beyond both ends, as in Riffusion's own analysis (torchaudio's
        ``Spectrogram(center=True, pad_mode="reflect")``, whose last column, centred on the end, is left out here).

    Returns
    -------
    torch.Tensor [shape=(..., num_frequencies, n_columns), non-negative, float32]

    Taught in: 01
    """
    hop, n_fft = params.hop_length, params.n_fft
    columns = n_columns(waveform.shape[-1], params)
    n_samples = columns * hop
    waveform = waveform[..., :n_samples]
    waveform = torch.nn.functional.pad(waveform, (0, n_samples - waveform.shape[-1]))
    # A window reaches win_length / 2 to either side; torch.stft centres it inside n_fft.
    half = n_fft // 2
    reach = torch.arange(-half, n_samples + half, device=waveform.device)
    waveform = waveform[..., reach % n_samples if loop else reflected(reach, n_samples)]
    window = torch.hann_window(params.win_length, device=waveform.device)
    shape = waveform.shape[:-1]
    waveform = waveform.reshape(-1, waveform.shape[-1])
    # Filters end at max_frequency: leave out the FFT bins above it.
    filters = mel_filterbank(params).to(waveform.device)
    used = int(filters.any(dim=1).nonzero().max()) + 1
    mels = []
    for first in range(0, columns, BLOCK):  # a long sound's spectrum would not fit into memory at once
        last = min(first + BLOCK, columns) - 1
        block = waveform[:, first * hop : last * hop + n_fft]
        spectrum = torch.stft(block, n_fft, hop, params.win_length, window, center=False, return_complex=True)
        mels.append(filters[:used].T @ spectrum[:, :used].abs())
    return torch.cat(mels, dim=-1).reshape(*shape, params.num_frequencies, columns)
