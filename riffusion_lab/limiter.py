"""A look-ahead limiter: turns down peaks above full scale for a moment and keeps the level of the whole sound."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d, minimum_filter1d

LOOK_AHEAD_S = 0.001  # attack and release: the gain falls this long before a peak, and rises as long after it
TOLERANCE = 1e-3  # relative error of the level
MAX_ROUNDS = 10  # of adjusting the make-up gain


def limit(waveform: np.ndarray, sample_rate: int, *, ceiling: float = 1.0, loop: bool = False) -> np.ndarray:
    """Limit a sound to a ceiling, and keep its root mean square.

    Before each peak the gain falls smoothly as far as needed and then rises again, equally in all channels. A make-up
    gain for the whole sound restores its level, as far as possible: within 1 dB if few peaks stand out. A sound that
    does not exceed the ceiling is returned unchanged.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz
    ceiling : float
        The largest amplitude allowed.
    loop : bool
        Whether the end continues at the beginning; then the gain does, too.

    Returns
    -------
    np.ndarray [shape=(channels, samples), float32, range [-ceiling, ceiling]]

    Notes
    -----
    Udo Zölzer (ed.), *DAFX: Digital Audio Effects*, 2nd ed. (2011), section 4.2.
    """
    if np.abs(waveform).max(initial=0.0) <= ceiling:
        return waveform
    sound = waveform.astype(np.float64)
    target_rms = _rms(sound)
    makeup_gain = 1.0
    for _ in range(MAX_ROUNDS):
        louder = makeup_gain * sound
        amplitude = np.abs(louder).max(axis=0)
        limited = louder * _gain(amplitude, sample_rate, ceiling, loop=loop)
        lost = target_rms / _rms(limited)
        if lost < 1 + TOLERANCE:
            break
        makeup_gain *= lost
    return np.clip(limited, -ceiling, ceiling).astype(np.float32)


def _gain(amplitude: np.ndarray, sample_rate: int, ceiling: float, *, loop: bool) -> np.ndarray:
    """Smooth gain for each sample that keeps its amplitude under the ceiling; shape (samples,)."""
    look_ahead = max(1, round(LOOK_AHEAD_S * sample_rate))
    mode = "wrap" if loop else "nearest"
    needed = ceiling / np.maximum(amplitude, ceiling)
    lowest = minimum_filter1d(needed, 2 * look_ahead + 1, mode=mode)
    window = np.hanning(2 * look_ahead + 3)[1:-1]
    smoothed: np.ndarray = convolve1d(lowest, window / window.sum(), mode=mode)
    return smoothed


def _rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.square(sound).mean()))
