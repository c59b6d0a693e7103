"""Cut, fade, mix and crossfade waveforms: arrays of shape (channels, samples)."""

from __future__ import annotations

import numpy as np


def fix_length(waveform: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut a waveform to `n_samples` samples, or pad it with silence; always a copy.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples)]
    n_samples : int

    Returns
    -------
    np.ndarray [shape=(channels, n_samples)]
    """
    waveform = waveform[:, :n_samples]
    n_missing = n_samples - waveform.shape[1]
    return np.pad(waveform, ((0, 0), (0, n_missing)))


def fade_gain(n_samples: int, sample_rate: int, *, in_s: float, out_s: float) -> np.ndarray:
    """Gain of a linear fade in over the first `in_s` seconds and a fade out over the last `out_s`.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32, range [0, 1]]
    """
    from_start_s = np.arange(n_samples, dtype=np.float32) / sample_rate
    from_end_s = from_start_s[::-1]
    gain = np.ones(n_samples, np.float32)
    if in_s > 0:
        gain *= np.minimum(1, from_start_s / in_s)
    if out_s > 0:
        gain *= np.minimum(1, from_end_s / out_s)
    return gain


def overlay(waveform: np.ndarray, added: np.ndarray, *, start: int, gain_db: float) -> np.ndarray:
    """Mix a second waveform into the first from sample `start` on; what reaches beyond the end is cut off.

    If the sum exceeds full scale, the whole mix is turned down.

    Parameters
    ----------
    waveform, added : np.ndarray [shape=(channels, samples), float32, range [-1, 1]]
    start : int
    gain_db : float
        Gain of the second waveform.

    Returns
    -------
    np.ndarray [like waveform]
    """
    added = added[:, : waveform.shape[1] - start] * 10 ** (gain_db / 20)
    mixed = waveform.copy()
    mixed[:, start : start + added.shape[1]] += added
    peak = float(np.abs(mixed).max())
    return mixed / max(1.0, peak)


def crossfade(tail: np.ndarray, sound: np.ndarray, n_fade: int) -> np.ndarray:
    """Fade a sound in over `n_fade` samples while the sound before it fades out.

    The power stays constant, however strongly the two sounds correlate. A negative correlation counts as none.

    Parameters
    ----------
    tail : np.ndarray [shape=(channels, at least n_fade), float32]
        What fades out: the continuation of the sound before.
    sound : np.ndarray [shape=(channels, samples), float32]

    Returns
    -------
    np.ndarray [like sound]
    """
    angle = np.linspace(0, np.pi / 2, n_fade, endpoint=False, dtype=np.float32)
    rising = np.sin(angle)
    falling = np.cos(angle)
    tail = tail[:, :n_fade]
    head = sound[:, :n_fade]
    # The sum of two correlated sounds has more power than the sum of their powers.
    power = 1 + 2 * _correlation(tail, head) * rising * falling
    faded = (falling * tail + rising * head) / np.sqrt(power)
    return np.concatenate([faded, sound[:, n_fade:]], axis=1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation coefficient of two sounds at lag 0; negative ones count as 0."""
    power = float(np.square(a).sum()) * float(np.square(b).sum())
    if power == 0:
        return 0.0
    return max(0.0, float((a * b).sum()) / power**0.5)
