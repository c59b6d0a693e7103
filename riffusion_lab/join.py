"""Clips played one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .clip import Clip, check_compatible
from .limiter import limit
from .mixing import crossfade
from .values import check_number

__all__ = ["CROSSFADE_S", "crossfade", "loop_from", "stitch"]

CROSSFADE_S = 0.03


def stitch(clips: Sequence[Clip], crossfade_s: float = CROSSFADE_S) -> Clip:
    """Join clips with crossfades, so that neither level nor phase jumps where they meet.

    A loop continues with its own beginning while the next clip fades in: every clip keeps its length and starts on its
    beat. A clip that is not a loop has no continuation: the next clip overlaps its end, and the result is shorter by
    `crossfade_s`. The crossfade keeps the power constant, except that it dips if the sounds are negatively correlated.

    Parameters
    ----------
    clips : sequence of Clip
        All with the same sample rate and number of channels.
    crossfade_s : float
        In seconds; at most half of the shortest clip.

    Returns
    -------
    Clip
        A loop if all clips are loops: then the last one fades into the first.

    Raises
    ------
    TypeError, ValueError
        If there is no clip, or the clips do not fit together.

    Notes
    -----
    Taught in: 04
    """
    clips = list(clips)
    check_compatible(clips)
    sample_rate = clips[0].sample_rate
    shortest_s = min(clip.duration_s for clip in clips)
    crossfade_s = check_number("crossfade_s", crossfade_s, 0, shortest_s / 2)
    n_fade = round(crossfade_s * sample_rate)
    is_loop = all(clip.loop for clip in clips)

    parts: list[np.ndarray] = []
    for index, clip in enumerate(clips):
        waveform = clip.waveform
        if index > 0 or is_loop:
            previous = clips[index - 1]  # before the first clip of a loop comes the last one
            waveform = crossfade(_continuation(previous, n_fade), waveform, n_fade)
        is_last = index == len(clips) - 1
        if not clip.loop and not is_last:
            waveform = waveform[:, : waveform.shape[1] - n_fade]  # the next clip overlaps this end
        parts.append(waveform)
    joined = np.concatenate(parts, axis=1)
    # In a crossfade peaks of both clips may coincide.
    limited = limit(joined, sample_rate, loop=is_loop)
    return clips[0].with_waveform(limited, loop=is_loop)


def loop_from(clip: Clip, start: int, n_samples: int) -> np.ndarray:
    """Samples of a loop from `start` on; after its end it continues at its beginning.

    Parameters
    ----------
    clip : Clip
    start, n_samples : int
        Both are at most the clip's length in samples.

    Returns
    -------
    np.ndarray [shape=(channels, n_samples), float32]
    """
    waveform = clip.waveform
    return np.concatenate([waveform[:, start : start + n_samples], waveform], axis=1)[:, :n_samples]


def _continuation(clip: Clip, n_samples: int) -> np.ndarray:
    """What is heard while the next clip fades in: the beginning of a loop, else the end of the clip itself."""
    if clip.loop:
        return clip.waveform[:, :n_samples]
    return clip.waveform[:, clip.waveform.shape[1] - n_samples :]
