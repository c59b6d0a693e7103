"""Sounds: reading, writing, checking, resampling and measuring them.

Files are in `soundfiles`, samples in memory in `samples`, sample rates in `resampling`; levels are here.
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

RMS_DBFS, PEAK_DBFS = -18.0, -1.0  # the level of sounds that bring none
LOUDEST_DBFS = -4.5  # RMS of the loudest sounds that are kept at their level


def peak_dbfs(waveform: np.ndarray) -> float:
    """Largest sample in dB below full scale; minus infinity for silence."""
    return _decibels(float(np.abs(waveform).max(initial=0.0)))


def rms_dbfs(waveform: np.ndarray) -> float:
    """Root mean square in dB below full scale: a full-scale sine has -3.0; minus infinity for silence."""
    return _decibels(math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64)))))


def level_gain(waveform: np.ndarray, *, is_known: bool) -> tuple[float, float]:
    """Gain that brings a reconstructed sound to its level, and the largest amplitude that it may have then.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    is_known : bool
        Whether the sound comes at its own level, which is kept; but above -4.5 dBFS RMS no music is left unharmed by
        full scale, so what is louder is turned down to that. Otherwise it gets -18 dBFS RMS. Silence stays silence.

    Returns
    -------
    gain : float
    ceiling : float
        1 where the level is known, else -1 dBFS.
    """
    ceiling = 1.0 if is_known else 10 ** (PEAK_DBFS / 20)
    if not waveform.any():
        return 1.0, ceiling
    level = rms_dbfs(waveform)
    wanted = min(level, LOUDEST_DBFS) if is_known else RMS_DBFS
    return 10 ** ((wanted - level) / 20), ceiling


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf
