"""Changing the sample rate of a sound."""

from __future__ import annotations

import math

import torch

from .torch_defaults import torch_defaults


def reflected(index: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Reflect indices beyond the ends of a sound at its first and its last sample.

    Parameters
    ----------
    index : torch.Tensor [shape=(n,), int64]
    n_samples : int

    Returns
    -------
    torch.Tensor [shape=(n,), int64, range [0, n_samples)]
        Like ``numpy.pad(..., mode="reflect")``, however far outside the index lies.
    """
    period = max(1, 2 * (n_samples - 1))
    index = index.abs() % period
    return torch.minimum(index, period - index)


@torch_defaults()
def resample(waveform: torch.Tensor, from_rate: int, to_rate: int, *, loop: bool = False) -> torch.Tensor:
    """Resample by cropping or zero-padding the spectrum: exact below both Nyquist frequencies.

    Unlike a resampling filter this keeps loops closed, has no transition band, and works with any pair of rates.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    from_rate, to_rate : int
        Only their ratio matters.
    loop : bool
        Treat the end and the beginning as neighbours. Otherwise the sound is mirrored beyond both ends and fades out
        there, so that an abrupt end does not ring.

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
    # At least a second of padding keeps the two ends apart; whole seconds keep the ratio exact.
    n_seconds = math.ceil(n_samples / from_rate) + 2
    position = torch.arange(-from_rate, (n_seconds - 1) * from_rate, device=waveform.device)
    before = torch.clamp(-position, min=0)
    after = torch.clamp(position - n_samples + 1, min=0)
    fade = (1 - (before + after) / from_rate).clamp(min=0)
    padded = waveform[..., reflected(position, n_samples)] * fade
    resampled = _resize_spectrum(padded, n_seconds * to_rate)
    return resampled[..., to_rate : to_rate + n_resampled]


def _resize_spectrum(waveform: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Crop or zero-pad the spectrum to that of `n_samples` samples, keeping the amplitude."""
    spectrum = torch.fft.rfft(waveform)
    resized = torch.fft.irfft(spectrum, n=n_samples)
    return resized * (n_samples / waveform.shape[-1])
