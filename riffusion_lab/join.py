"""Clips put together and cut apart, as sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .image import image_from_mel
from .limiter import limit
from .spectrogram import mel_from_waveform, n_columns
from .torch_defaults import torch_defaults
from .values import check_number

if TYPE_CHECKING:
    from .clip import Clip

CROSSFADE_S = 0.03


def stitch(clips: Sequence[Clip], crossfade_s: float = CROSSFADE_S) -> Clip:
    """Play clips one after the other, so that neither level nor phase jumps where they meet.

    Where a clip is a loop, its own beginning goes on behind its end while the next one fades in: every clip keeps its
    length and begins on its beat. A clip that is no loop has nothing behind its end: it is overlapped by the next, and
    the whole is shorter by `crossfade_s`. Both fades together keep the power, whether the sounds are alike or not.

    Parameters
    ----------
    clips : sequence of Clip
        Of one sample rate, mono or stereo.
    crossfade_s : float
        In seconds; at most half of the shortest clip.

    Returns
    -------
    Clip
        A loop if all clips are: the last one then fades into the first.

    Raises
    ------
    TypeError, ValueError
        If there is no clip, or they do not fit together.

    Notes
    -----
    Taught in: 04
    """
    clips = list(clips)
    check_alike(clips)
    shortest = min(clip.duration_s for clip in clips)
    n_fade = round(check_number("crossfade_s", crossfade_s, 0, shortest / 2) * clips[0].sample_rate)
    is_loop = all(clip.loop for clip in clips)
    parts, tail = [], _tail(clips[-1], n_fade) if is_loop else None
    for clip in clips:
        sound = clip.waveform
        if tail is not None:
            sound = crossfade(tail, sound, n_fade)
        tail = _tail(clip, n_fade)
        parts.append(sound if clip.loop or len(parts) == len(clips) - 1 else sound[:, : sound.shape[1] - n_fade])
    whole = limit(np.concatenate(parts, axis=1), clips[0].sample_rate, loop=is_loop)  # peaks of both may meet
    return _like(clips[0], whole, loop=is_loop)


def crossfade(tail: np.ndarray, sound: np.ndarray, n_fade: int) -> np.ndarray:
    """Fade a sound in under what sounds on from before, over `n_fade` samples; both [shape=(channels, samples)]."""
    share = np.linspace(0, np.pi / 2, n_fade, endpoint=False, dtype=np.float32)
    rising, falling, tail, head = np.sin(share), np.cos(share), tail[:, :n_fade], sound[:, :n_fade]
    power = 1 + 2 * _likeness(tail, head) * rising * falling  # what is alike adds up to more than its power
    return np.concatenate([(falling * tail + rising * head) / np.sqrt(power), sound[:, n_fade:]], axis=1)


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two sounds, from 0 (or less) to 1."""
    power = float(np.square(a).sum()) * float(np.square(b).sum())
    return max(0.0, float((a * b).sum()) / power**0.5) if power else 0.0


def _tail(clip: Clip, n_samples: int) -> np.ndarray:
    """What sounds on while the next clip fades in: a loop's beginning, else the clip's own end."""
    return clip.waveform[:, :n_samples] if clip.loop else clip.waveform[:, clip.waveform.shape[1] - n_samples :]


def concatenate(clips: Sequence[Clip]) -> Clip:
    """Put clips one behind the other, sample by sample."""
    check_alike(clips)
    return _like(clips[0], np.concatenate([clip.waveform for clip in clips], axis=1))


def overlay(clip: Clip, other: Clip, *, start_s: float = 0.0, gain_db: float = 0.0) -> Clip:
    """Mix another clip into a clip, from `start_s` on; what reaches beyond the end is cut off.

    `gain_db` makes the other clip louder or softer. Where the sum would clip, all of it is turned down.
    """
    check_alike([clip, other])
    start = round(check_number("start_s", start_s, 0, clip.duration_s) * clip.sample_rate)
    added = other.waveform[:, : clip.waveform.shape[1] - start] * 10 ** (check_number("gain_db", gain_db) / 20)
    mixed = clip.waveform.copy()
    mixed[:, start : start + added.shape[1]] += added
    is_loop = clip.loop and other.loop and start == 0 and clip.waveform.shape == other.waveform.shape
    return _like(clip, mixed / max(1.0, float(np.abs(mixed).max())), loop=is_loop)


@torch_defaults()
def difference(clip: Clip, other: Clip) -> Clip:
    """Give what a clip has and the other has not: the positive part of the difference of mel amplitudes."""
    check_alike([clip, other])
    if clip.image.size != other.image.size:
        raise ValueError(f"clips of {clip.duration_s:g} and {other.duration_s:g} s: cut them to one length first")
    mel, other_mel = (mel_from_waveform(torch.tensor(c.waveform), c.params, loop=c.loop) for c in (clip, other))
    picture, maximum = image_from_mel((mel - other_mel).clamp(min=0), clip.params)
    return clip.from_image(picture, params=clip.params, loop=clip.loop, maximum=maximum)


def fade(clip: Clip, in_s: float = 0.0, out_s: float = 0.0) -> Clip:
    """Fade a clip in over its first `in_s` seconds, and out over its last `out_s`; linear in amplitude."""
    n_samples = clip.waveform.shape[1]
    time_s, gain = np.arange(n_samples, dtype=np.float32) / clip.sample_rate, np.ones(n_samples, np.float32)
    for name, seconds, from_edge_s in (("in_s", in_s, time_s), ("out_s", out_s, time_s[::-1])):
        if check_number(name, seconds, 0, clip.duration_s):
            gain *= np.minimum(1, from_edge_s / seconds)
    return _like(clip, clip.waveform * gain, loop=clip.loop and not (in_s or out_s))


def cut(clip: Clip, start_s: float | None, stop_s: float | None) -> Clip:
    """Cut out a part; see `Clip.__getitem__`."""
    bounds = [0.0 if start_s is None else start_s, clip.duration_s if stop_s is None else stop_s]
    begin, end = (check_number("a time in seconds", t) + (clip.duration_s if t < 0 else 0) for t in bounds)
    if not 0 <= begin < end <= clip.duration_s + 1e-6:
        raise ValueError(f"cannot cut from {begin:g} to {end:g} s: the clip goes from 0 to {clip.duration_s:g} s")
    first, last = (round(t * clip.sample_rate) for t in (begin, end))
    whole = (first, last) == (0, clip.waveform.shape[1])
    return _like(clip, clip.waveform[:, first:last], loop=clip.loop and whole)


def repeat(clip: Clip, n_times: int) -> Clip:
    """Play a clip several times; see `Clip.__mul__`."""
    return _like(clip, np.tile(clip.waveform, n_times), loop=clip.loop)


def check_alike(clips: Sequence[Clip]) -> None:
    """Refuse clips that cannot be put together."""
    from .clip import Clip

    if not clips:
        raise ValueError("there is no clip: give one at least")
    for clip in clips:
        if not isinstance(clip, Clip):
            raise TypeError(f"{clip!r} is no Clip: make one with Clip.from_audio or Clip.from_image")
    kinds = {(clip.sample_rate, clip.params.n_channels) for clip in clips}
    if len(kinds) > 1:
        said = " and ".join(f"{rate} Hz with {n} channel(s)" for rate, n in sorted(kinds))
        raise ValueError(f"clips of {said} do not fit together: convert them with Clip.from_audio(…, params=…)")


def _like(clip: Clip, waveform: np.ndarray, *, loop: bool = False) -> Clip:
    """Make a clip of these samples, cut or filled up to a whole number of columns."""
    n_samples = n_columns(waveform.shape[1], clip.params) * clip.params.hop_length
    waveform = np.pad(waveform[:, :n_samples], ((0, 0), (0, max(0, n_samples - waveform.shape[1]))))
    return clip.from_waveform(waveform, clip.params, loop=loop)
