"""How a clip is shown in a notebook."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping
from functools import reduce
from operator import add

from . import audio
from .plot import ClipLike, description, spectrogram_png

PLAYED_S = 60  # the player holds at most this much of a clip: half a megabyte
TEXT_BYTES = 2_000  # room for a figure's caption, description and tags, unless the prompt is very long
LIMITED_DB = 1  # the caption mentions the limiter if it lowered the peaks by more than this


def clip_html(clip: ClipLike, *, max_bytes: int | None = None, starts_s: Mapping[str, float] | None = None) -> str:
    """Spectrogram, player and caption in one self-contained `<figure>`; the same text at every call.

    Parameters
    ----------
    clip : Clip
    max_bytes : int, optional
        Size limit of the HTML. A sound that does not fit is shortened, to no less than 1 s; the caption says how much
        is played.
    starts_s : Mapping of str to float, optional
        Names of parts, to be written above the spectrogram, and where each part begins, in seconds.

    Taught in: 00
    """
    png = base64.b64encode(spectrogram_png(clip, starts_s)).decode()
    played_s = min(clip.duration_s, PLAYED_S)
    mp3 = _mp3_text(clip, played_s)
    room = None if max_bytes is None else max_bytes - len(png) - TEXT_BYTES
    while room is not None and len(mp3) > room and played_s > 1:
        played_s = max(1, math.floor(played_s * 0.98 * room / len(mp3)))
        mp3 = _mp3_text(clip, played_s)
    # <audio src>, not <source>: JupyterLab's sanitizer drops the latter's src in saved outputs.
    return (
        '<figure style="margin:0">'
        f'<img alt="{html.escape(description(clip))}" src="data:image/png;base64,{png}"><br>'
        f'<audio controls preload="none" src="data:audio/mpeg;base64,{mp3}"></audio>'
        f"<figcaption>{html.escape(caption(clip, played_s=played_s))}</figcaption></figure>"
    )


def parts_html(clips: Mapping[str, ClipLike]) -> str:
    """Show clips one after the other in one player, with each name above its part of the spectrogram.

    Parameters
    ----------
    clips : Mapping of str to Clip
        All with the same sample rate and number of channels.

    Raises
    ------
    ValueError
        If there is no clip, or they differ in sample rate or channels.

    Taught in: 02
    """
    if not clips:
        raise ValueError("there is no clip: pass at least one")
    starts_s = {}
    end_s = 0.0
    for name, clip in clips.items():
        starts_s[name] = end_s
        end_s += clip.duration_s
    return clip_html(reduce(add, clips.values()), starts_s=starts_s)


def _mp3_text(clip: ClipLike, played_s: float) -> str:
    samples = clip.waveform[:, : round(played_s * clip.sample_rate)]
    return base64.b64encode(audio.encode_mp3(samples, clip.sample_rate)).decode()


def caption(clip: ClipLike, *, played_s: float = PLAYED_S) -> str:
    """Prompt, duration, sample rate, channels and levels in one line, for readers who see no player.

    Parameters
    ----------
    clip : Clip
    played_s : float
        How many seconds of it are played; mentioned if that is not the whole clip.

    Taught in: 00
    """
    facts = [
        f"{clip.duration_s:.2f} s",
        f"{clip.sample_rate:,} Hz",
        "stereo" if clip.params.stereo else "mono",
        f"peak {_decibels(audio.peak_dbfs(clip.waveform))}",
        f"RMS {_decibels(audio.rms_dbfs(clip.waveform))}",
    ]
    if clip.limited_db > LIMITED_DB:
        facts.append(f"peaks limited by {clip.limited_db:.0f} dB")
    if clip.title:
        facts.insert(0, f"“{clip.title}”")
    if clip.loop:
        facts.append("loop")
    if clip.duration_s > played_s:
        facts.append(f"the first {played_s:g} s are played")
    return " · ".join(facts)


def _decibels(level: float) -> str:
    if not math.isfinite(level):
        return "−∞ dBFS"
    return f"{level:.1f} dBFS".replace("-", "−")
