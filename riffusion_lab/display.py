"""What a clip looks like in a notebook."""

from __future__ import annotations

import base64
import html
import math
from typing import TYPE_CHECKING

from . import audio
from .plot import description, spectrogram_png

if TYPE_CHECKING:
    from .clip import Clip

PLAYED_S = 60  # of a long sound: half a megabyte
LIMITED_DB = 1  # by how much peaks must have been lowered for the caption to say so


def clip_html(clip: Clip) -> str:
    """Spectrogram, player and caption in one `<figure>`, free of anything outside; the same text at every call.

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


def caption(clip: Clip) -> str:
    """Say what there is to hear, also to readers who see no player: duration, rate, channels and levels.

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
    return f"{level:.1f} dBFS".replace("-", "−") if math.isfinite(level) else "−∞ dBFS"
