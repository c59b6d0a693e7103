"""How a clip is shown in a notebook."""

from __future__ import annotations

import base64
import html
import math

from . import audio
from .plot import ClipLike, description, spectrogram_png

PLAYED_S = 60  # the player has this much of a long clip: half a megabyte
LIMITED_DB = 1  # the caption mentions the limiter if it lowered the peaks by more than this


def clip_html(clip: ClipLike) -> str:
    """Spectrogram, player and caption in one self-contained `<figure>`; the same text at every call.

    Taught in: 00
    """
    samples = clip.waveform[:, : PLAYED_S * clip.sample_rate]
    png = base64.b64encode(spectrogram_png(clip)).decode()
    mp3 = base64.b64encode(audio.encode_mp3(samples, clip.sample_rate)).decode()
    # <audio src>, not <source>: JupyterLab's sanitizer drops the latter's src in saved outputs.
    return (
        '<figure style="margin:0">'
        f'<img alt="{html.escape(description(clip))}" src="data:image/png;base64,{png}"><br>'
        f'<audio controls preload="none" src="data:audio/mpeg;base64,{mp3}"></audio>'
        f"<figcaption>{html.escape(caption(clip))}</figcaption></figure>"
    )


def caption(clip: ClipLike) -> str:
    """Prompt, duration, sample rate, channels and levels in one line, for readers who see no player.

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
    if clip.duration_s > PLAYED_S:
        facts.append(f"the first {PLAYED_S} s are played")
    return " · ".join(facts)


def _decibels(level: float) -> str:
    if not math.isfinite(level):
        return "−∞ dBFS"
    return f"{level:.1f} dBFS".replace("-", "−")
