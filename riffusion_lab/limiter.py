"""A look-ahead limiter: peaks above full scale are turned down for a moment, and the level of the whole is kept."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d, minimum_filter1d

LOOK_AHEAD_S = 0.001  # how long before a peak the gain begins to fall, and after it to rise again
TOLERANCE = 1e-3  # relative error of the level that is kept
MOST_ROUNDS = 10  # of making up for the level that the peaks took along


def limit(waveform: np.ndarray, sample_rate: int, *, ceiling: float = 1.0, loop: bool = False) -> np.ndarray:
    """Bring a sound under a ceiling, and keep its root mean square.

    The gain falls smoothly to what each peak needs, and rises again, the same in all channels. What the level loses
    by that, a gain for the whole gives back, so far as that is possible: within 1 dB where few peaks stand out.
    A sound that stays under the ceiling is returned as it is.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz
    ceiling : float
        The largest amplitude allowed.
    loop : bool
        Whether the end leads into the beginning; then the gain does, too.

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
    wanted = _rms(sound)
    gain = 1.0
    for _ in range(MOST_ROUNDS):
        louder = gain * sound
        limited = louder * _envelope(np.abs(louder).max(axis=0), sample_rate, ceiling, loop=loop)
        missing = wanted / _rms(limited)
        if missing < 1 + TOLERANCE:
            break
        gain *= missing
    return np.clip(limited, -ceiling, ceiling).astype(np.float32)


def _envelope(amplitude: np.ndarray, sample_rate: int, ceiling: float, *, loop: bool) -> np.ndarray:
    """Gain for each sample, at most what its amplitude needs to stay under the ceiling; shape (samples,)."""
    reach = max(1, round(LOOK_AHEAD_S * sample_rate))
    mode = "wrap" if loop else "nearest"
    needed = ceiling / np.maximum(amplitude, ceiling)
    lowest = minimum_filter1d(needed, 2 * reach + 1, mode=mode)
    window = np.hanning(2 * reach + 3)[1:-1]
    return convolve1d(lowest, window / window.sum(), mode=mode)


def _rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.square(sound).mean()))
