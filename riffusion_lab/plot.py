"""Figures: spectrograms with axes in seconds and hertz."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .image import mel_from_image
from .params import hz_to_mel, mel_to_hz

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .clip import Clip

STYLE = Path(__file__).with_name("style.mplstyle")
FLOOR_DB = -80.0  # below the loudest point of the picture
COLOURS = 32  # of the figure in a notebook: half the bytes, no difference to see
HZ_TICKS = (0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)


def spectrogram(clip: Clip, ax: Axes | None = None, *, colorbar: bool = False, title: str | None = None) -> Axes:
    """Draw a clip's picture with axes in seconds and hertz; what is left out below -80 dB is black.

    Parameters
    ----------
    clip : Clip
    ax : matplotlib.axes.Axes, optional
        Default: those of a new figure.
    colorbar : bool
        Show which colour is how many decibels below the loudest point.
    title : str, optional

    Returns
    -------
    matplotlib.axes.Axes
        Its data coordinates are seconds and hertz (on the mel scale), so `ax.axhline(440)` marks concert pitch.

    Taught in: 01
    """
    with matplotlib.style.context(STYLE):
        if ax is None:
            ax = FigureCanvasAgg(Figure()).figure.add_subplot()
        params = clip.params
        level = decibels(clip)
        # otypes: some versions of matplotlib also ask for the places of no ticks at all, an empty array.
        to_mel = np.vectorize(hz_to_mel, otypes=[float])
        to_hz = np.vectorize(mel_to_hz, otypes=[float])
        ax.set_yscale("function", functions=(to_mel, to_hz))
        # Rows are equally far apart in mel, which is where the axes are after their scale: no need to draw 512 × 512
        # little rectangles, and thin lines are smoothed instead of lost.
        edges_mel = [hz_to_mel(params.frequency_hz(band)) for band in (-0.5, params.num_frequencies - 0.5)]
        picture = ax.imshow(
            level,
            extent=(0, clip.duration_s, *edges_mel),
            transform=ax.transLimits + ax.transAxes,
            origin="lower",
            aspect="auto",
            vmin=FLOOR_DB,
            vmax=0,
        )
        ticks = [hz for hz in HZ_TICKS if params.min_frequency <= hz <= params.max_frequency]
        ax.set_yticks(ticks, [f"{hz:,}" for hz in ticks])
        ax.set(xlabel="time (s)", ylabel="frequency (Hz)")
        ax.set(xlim=(0, clip.duration_s), ylim=(params.min_frequency, params.max_frequency))
        ax.set_title(title or "")
        if colorbar:
            ax.figure.colorbar(picture, ax=ax, label="level (dB)")
    return ax


def decibels(clip: Clip) -> np.ndarray:
    """Mel amplitudes of a clip's picture in dB below its loudest point, channels averaged.

    Returns
    -------
    np.ndarray [shape=(num_frequencies, n_columns), float32, range [-80, 0]]
        Row 0 is the lowest frequency. Silence is -80 throughout.
    """
    mel = mel_from_image(clip.image, clip.params).mean(dim=0).numpy()
    return 20 * np.log10(np.maximum(mel / (mel.max() or 1.0), 10 ** (FLOOR_DB / 20)))


def description(clip: Clip) -> str:
    """Say in words what a clip's spectrogram shows, for those who cannot see it."""
    level = decibels(clip)
    seen = (
        f"Spectrogram of {clip.duration_s:.2f} s of sound, time from left to right, "
        f"{clip.params.min_frequency:,} to {clip.params.max_frequency:,} Hz from bottom to top"
    )
    if level.max() == FLOOR_DB:
        return f"{seen}: silence"
    audible = max(0, math.ceil(clip.params.band(20)))
    loudest_hz = clip.params.frequency_hz(audible + int(level[audible:].mean(axis=1).argmax()))
    near_hz = float(f"{loudest_hz:.2g}")
    filled = float((level > -40).mean())
    return f"{seen}: strongest near {near_hz:,.0f} Hz; {filled:.0%} of it within 40 dB of the loudest point"


def spectrogram_png(clip: Clip) -> bytes:
    """Draw the figure a clip shows in a notebook, as a small PNG, the same bytes at every call."""
    figure = spectrogram(clip).figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()
