"""Beats of a loop: where another clip may replace it before its end."""

from __future__ import annotations

import numpy as np

from .clip import Clip
from .hints import named_tempi
from .models import Pipeline
from .requests import Point

LEAST_BPM, MOST_BPM = 60, 200  # range of tempi to search in a sound; half or twice a tempo shares beats with it
ROUNDED_BPM = 0.5  # how far a named tempo, which is rounded, may be off from one that fits the loop
EIGHTH_S = 0.64  # if no beat is clear: an eighth of a model's own clip, a beat at 94 bpm
LEAST_ONSETS = 0.2  # standard deviation in grey levels: the picture of a steady tone has less, by rounding alone
# Autocorrelation of the onsets at a beat: at least this much, and this much more than at the lag of any other tempo.
# `tools/measure_beats.py` measures how often this finds the right number of beats.
LEAST_PERIODICITY = 0.2
LEAST_MARGIN = 0.05


def find_beats(pipe: Pipeline, point: Point, clip: Clip) -> tuple[int, ...]:
    """Find places inside a loop, which begins on a beat, where another clip may start.

    They are the loop's beats, from the tempo that its prompts name, or else from its onsets. If neither is clear, as in
    a steady chord, the places are 0.64 s apart (an eighth of 5.12 s): such music can change anywhere, and the wait is
    short.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    point : Point
        The point that the clip was generated from.
    clip : Clip

    Returns
    -------
    tuple of int
        In samples from the beginning, in ascending order, without the beginning and the end; each is a whole number of
        columns of the picture (10 ms).
    """
    n_beats = named_beats(pipe, point, clip.duration_s) or heard_beats(clip) or _n_eighths(clip.duration_s)
    n_columns = clip.image.width
    columns = {round(n_columns * beat / n_beats) for beat in range(1, n_beats)} - {0, n_columns}
    return tuple(clip.params.hop_length * column for column in sorted(columns))


def named_beats(pipe: Pipeline, point: Point, duration_s: float) -> int | None:
    """Number of beats in a loop, from the tempo that all prompts of a point name.

    Returns
    -------
    int or None
        None if a prompt names no tempo, or one that does not fit into the loop, or if they name several.
    """
    tempi_bpm: set[float] = set()
    for prompt, weight in zip(point.prompts, point.weights, strict=True):
        named = named_tempi(pipe, prompt.text) if weight > 0 else []
        if weight > 0 and not named:
            return None
        tempi_bpm.update(named)
    if len(tempi_bpm) != 1:
        return None
    tempo_bpm = tempi_bpm.pop()
    n_beats = round(tempo_bpm * duration_s / 60)
    is_fitting = abs(60 * n_beats / duration_s - tempo_bpm) <= ROUNDED_BPM
    return n_beats if n_beats > 0 and is_fitting else None


def heard_beats(clip: Clip) -> int | None:
    """Number of beats in a loop, from its onsets, which repeat after each beat.

    Returns
    -------
    int or None
        It may be half or twice the number that a listener would count. None if no number is clear.
    """
    least = int(np.ceil(LEAST_BPM * clip.duration_s / 60))
    most = int(MOST_BPM * clip.duration_s / 60)
    onsets = onset_strength(clip)
    if onsets.std() < LEAST_ONSETS or least > most:
        return None
    periodicity = {n_beats: _periodicity(onsets, n_beats) for n_beats in range(least, most + 1)}
    best = max(periodicity, key=lambda n_beats: periodicity[n_beats])
    rivals = [value for n_beats, value in periodicity.items() if not _share_beats(n_beats, best)]
    is_clear = all(periodicity[best] - rival >= LEAST_MARGIN for rival in rivals)
    return best if is_clear and periodicity[best] >= LEAST_PERIODICITY else None


def onset_strength(clip: Clip) -> np.ndarray:
    """Mean rise of the bands of a loop's picture from one column to the next.

    Returns
    -------
    np.ndarray [shape=(n_columns,), non-negative, float64]
        In grey levels; the first is the rise from the last column.
    """
    loudness = 255 - np.asarray(clip.image.convert("L"), np.float64)
    return np.maximum(0, loudness - np.roll(loudness, 1, axis=1)).mean(axis=0)


def _periodicity(onsets: np.ndarray, n_beats: int) -> float:
    """How well the onsets of a loop [shape=(n,)] repeat after one of `n_beats`: their circular autocorrelation.

    By the Wiener-Khinchin theorem it is the transform of the power spectrum, here at a lag that need not be whole.
    """
    power = np.square(np.abs(np.fft.rfft(onsets)))[1:]  # without the mean
    cycles = np.arange(1, len(power) + 1)  # per loop
    return float(power @ np.cos(2 * np.pi * cycles / n_beats) / power.sum())


def _share_beats(n_beats: int, other: int) -> bool:
    """Whether the beats of one number are all among those of the other."""
    return n_beats % other == 0 or other % n_beats == 0


def _n_eighths(duration_s: float) -> int:
    return max(8, round(duration_s / EIGHTH_S))
