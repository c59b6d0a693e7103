"""Changing the sample rate of a sound."""

from __future__ import annotations

import math

import torch


def resample(waveform: torch.Tensor, from_rate: int, to_rate: int, *, loop: bool = False) -> torch.Tensor:
    """Change the sample rate by cutting or widening the spectrum: exact below both Nyquist frequencies.

    Unlike a filter bank this keeps a loop closed, loses nothing near the top, and takes any pair of rates.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    from_rate, to_rate : int
        Only their ratio counts.
    loop : bool
        Take the end and the beginning for neighbours; otherwise silence lies between them.

    Returns
    -------
    torch.Tensor [shape=(..., round(n_samples * to_rate / from_rate)), float32]
    """
    if from_rate == to_rate:
        return waveform
    n_samples = waveform.shape[-1]
    n_resampled = round(n_samples * to_rate / from_rate)
    if loop:
        return _resize_spectrum(waveform, n_resampled)
    # A second of silence before, and one or more behind, keep the ends apart; whole seconds keep the ratio exact.
    seconds = math.ceil(n_samples / from_rate) + 2
    padded = torch.nn.functional.pad(waveform, (from_rate, (seconds - 1) * from_rate - n_samples))
    return _resize_spectrum(padded, seconds * to_rate)[..., to_rate : to_rate + n_resampled]


def _resize_spectrum(waveform: torch.Tensor, n_samples: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(waveform), n=n_samples) * (n_samples / waveform.shape[-1])
