"""Sounds: reading, writing, checking, resampling and measuring them.

Files are in `soundfiles`, samples in memory in `samples`, sample rates in `resampling`; levels are here.
"""

from __future__ import annotations

import math

import numpy as np

from .resampling import resample
from .samples import as_waveform, check_rate, load_sound, mix_channels, pick_channel
from .soundfiles import BLOCK, FORMATS, encode_audio, encode_for, encode_mp3, read_audio

__all__ = [
    "BLOCK",
    "FORMATS",
    "as_waveform",
    "check_rate",
    "encode_audio",
    "encode_for",
    "encode_mp3",
    "load_sound",
    "mix_channels",
    "peak_dbfs",
    "pick_channel",
    "read_audio",
    "resample",
    "rms_dbfs",
    "set_level",
]

RMS_DBFS, PEAK_DBFS = -18.0, -1.0  # the level of sounds that bring none


def peak_dbfs(waveform: np.ndarray) -> float:
    """Largest sample in dB below full scale; minus infinity for silence."""
    return _decibels(float(np.abs(waveform).max(initial=0.0)))


def rms_dbfs(waveform: np.ndarray) -> float:
    """Root mean square in dB below full scale: a full-scale sine has -3.0; minus infinity for silence."""
    return _decibels(math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64)))))


def set_level(waveform: np.ndarray) -> np.ndarray:
    """Give a sound an RMS of -18 dBFS, or less where its peak would rise above -1 dBFS. Silence stays silence.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]

    Returns
    -------
    np.ndarray [shape=(channels, samples), float32, range [-1, 1]]
    """
    if not waveform.any():
        return waveform
    gain_db = min(RMS_DBFS - rms_dbfs(waveform), PEAK_DBFS - peak_dbfs(waveform))
    return (waveform * 10 ** (gain_db / 20)).astype(np.float32)


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf
