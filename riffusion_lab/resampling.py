"""Changing the sample rate of a sound."""

from __future__ import annotations

import math

import torch

from .torch_defaults import torch_defaults


def reflected(index: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Mirror indices that lie beyond the ends of a sound back into it, at the first and the last sample.

    Parameters
    ----------
    index : torch.Tensor [shape=(n,), int64]
    n_samples : int

    Returns
    -------
    torch.Tensor [shape=(n,), int64, range [0, n_samples)]
        However far the index lies outside: as ``numpy.pad(..., mode="reflect")``.
    """
    period = max(1, 2 * (n_samples - 1))
    index = index.abs() % period
    return torch.minimum(index, period - index)


@torch_defaults()
def resample(waveform: torch.Tensor, from_rate: int, to_rate: int, *, loop: bool = False) -> torch.Tensor:
    """Change the sample rate by cutting or widening the spectrum: exact below both Nyquist frequencies.

    Unlike a filter bank this keeps a loop closed, loses nothing near the top, and takes any pair of rates.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    from_rate, to_rate : int
        Only their ratio counts.
    loop : bool
        Take the end and the beginning for neighbours; otherwise the sound goes on mirrored beyond both ends, and
        fades out there, so that an end that is cut off does not ring.

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
    # A second before, and one or more behind, keep the ends apart; whole seconds keep the ratio exact.
    seconds = math.ceil(n_samples / from_rate) + 2
    time = torch.arange(-from_rate, (seconds - 1) * from_rate, device=waveform.device)
    outside = (torch.clamp(-time, min=0) + torch.clamp(time - n_samples + 1, min=0)) / from_rate  # seconds
    fading = (1 - outside).clamp(min=0)
    padded = waveform[..., reflected(time, n_samples)] * fading
    return _resize_spectrum(padded, seconds * to_rate)[..., to_rate : to_rate + n_resampled]


def _resize_spectrum(waveform: torch.Tensor, n_samples: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(waveform), n=n_samples) * (n_samples / waveform.shape[-1])
