"""Waveform → mel spectrogram: amplitudes only. The phases are discarded; `phase` estimates them again."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torchaudio

from .params import SpectrogramParams
from .resampling import reflected
from .torch_defaults import torch_defaults

BLOCK = 2_048  # columns analysed at once: the complex spectrum of a long sound would not fit into memory


def mel_options(params: SpectrogramParams) -> dict[str, Any]:
    """Options of torchaudio's mel functions for these params: HTK's scale, filters not normalized."""
    return {
        "f_min": params.min_frequency,
        "f_max": params.max_frequency,
        "n_mels": params.num_frequencies,
        "sample_rate": params.sample_rate,
        "norm": None,
        "mel_scale": "htk",
    }


@lru_cache(maxsize=8)
@torch_defaults()
def mel_filterbank(params: SpectrogramParams) -> torch.Tensor:
    """Triangular HTK mel filters, not normalized.

    Returns
    -------
    torch.Tensor [shape=(n_fft // 2 + 1, num_frequencies), float32]
    """
    filters: torch.Tensor = torchaudio.functional.melscale_fbanks(params.n_fft // 2 + 1, **mel_options(params))
    return filters


def n_columns(n_samples: int, params: SpectrogramParams) -> int:
    """Number of columns for `n_samples` samples: the nearest whole number of hops, at least one."""
    return max(1, round(n_samples / params.hop_length))


@torch_defaults()
def mel_from_waveform(waveform: torch.Tensor, params: SpectrogramParams, *, loop: bool = False) -> torch.Tensor:
    """Mel amplitudes of a waveform; column k is centred on sample `k * hop_length`.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    params : SpectrogramParams
    loop : bool
        Analyse the sound as a loop: a window that reaches beyond one end sees the other end.
        Otherwise the sound is mirrored beyond both ends, as in Riffusion's own analysis (torchaudio's
        ``Spectrogram(center=True, pad_mode="reflect")``, except that its last column, centred on the end, is omitted).

    Returns
    -------
    torch.Tensor [shape=(..., num_frequencies, n_columns), non-negative, float32]

    Taught in: 01
    """
    hop = params.hop_length
    n_fft = params.n_fft
    columns = n_columns(waveform.shape[-1], params)
    n_samples = columns * hop
    waveform = waveform[..., :n_samples]
    waveform = torch.nn.functional.pad(waveform, (0, n_samples - waveform.shape[-1]))
    batch_shape = waveform.shape[:-1]
    # A window reaches win_length / 2 to either side; torch.stft centres it inside n_fft.
    half = n_fft // 2
    position = torch.arange(-half, n_samples + half, device=waveform.device)
    index = position % n_samples if loop else reflected(position, n_samples)
    padded = waveform[..., index].reshape(-1, len(index))
    window = torch.hann_window(params.win_length, device=waveform.device)
    # The filters end at max_frequency: the FFT bins above it are not needed.
    filters = mel_filterbank(params).to(waveform.device)
    n_bins = int(filters.any(dim=1).nonzero().max()) + 1
    filters = filters[:n_bins]
    mels = []
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns) - 1
        block = padded[:, first * hop : last * hop + n_fft]
        spectrum = torch.stft(block, n_fft, hop, params.win_length, window, center=False, return_complex=True)
        mels.append(filters.T @ spectrum[:, :n_bins].abs())
    return torch.cat(mels, dim=-1).reshape(*batch_shape, params.num_frequencies, columns)
