"""Reading, writing, checking, resampling and measuring sounds.

Levels are measured here. The other functions are imported from `soundfiles` (files), `samples` (arrays in memory) and
`resampling` (sample rates).
"""

from __future__ import annotations

import math

import numpy as np

from .resampling import resample
from .samples import as_waveform, check_rate, load_sound, mix_channels, pick_channel
from .soundfiles import FORMATS, encode_audio, encode_for, encode_mp3, read_audio

__all__ = [
    "FORMATS",
    "as_waveform",
    "check_rate",
    "encode_audio",
    "encode_for",
    "encode_mp3",
    "level_gain",
    "load_sound",
    "mix_channels",
    "peak_dbfs",
    "pick_channel",
    "read_audio",
    "resample",
    "rms_dbfs",
]

RMS_DBFS = -18.0  # of sounds whose level is not known
PEAK_DBFS = -1.0  # their highest peak
LOUDEST_DBFS = -4.5  # RMS; louder sounds are turned down to this


def peak_dbfs(waveform: np.ndarray) -> float:
    """Peak level in dBFS: 0 is full scale, minus infinity is silence."""
    return _decibels(float(np.abs(waveform).max(initial=0.0)))


def rms_dbfs(waveform: np.ndarray) -> float:
    """RMS level in dBFS: a full-scale sine has -3.0, silence minus infinity."""
    return _decibels(math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64)))))


def level_gain(waveform: np.ndarray, *, is_known: bool) -> tuple[float, float]:
    """Gain that brings a reconstructed sound to its level, and the largest amplitude allowed afterwards.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    is_known : bool
        Whether the sound is at its own level, which is then kept up to -4.5 dBFS RMS: music that is louder cannot stay
        below full scale without audible damage, so it is turned down. If the level is not known, the sound is brought
        to -18 dBFS RMS. Silence stays silence.

    Returns
    -------
    gain : float
    ceiling : float
        1 if the level is known, else -1 dBFS.
    """
    ceiling = 1.0 if is_known else 10 ** (PEAK_DBFS / 20)
    if not waveform.any():
        return 1.0, ceiling
    level = rms_dbfs(waveform)
    target = min(level, LOUDEST_DBFS) if is_known else RMS_DBFS
    gain: float = 10 ** ((target - level) / 20)
    return gain, ceiling


def _decibels(amplitude: float) -> float:
    if amplitude > 0:
        return 20 * math.log10(amplitude)
    return -math.inf
