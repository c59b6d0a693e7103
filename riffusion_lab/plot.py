"""Figures: spectrograms with axes in seconds and hertz."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from .image import mel_from_image
from .params import SpectrogramParams, hz_to_mel, mel_to_hz

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = Path(__file__).with_name("style.mplstyle")
FLOOR_DB = -80.0  # below the loudest point of the picture
COLOURS = 32  # of the figure in a notebook: half the bytes, no visible difference
OPACITIES = 8  # of its letters, from none to full
INK = np.rint(255 * np.array(to_rgb(matplotlib.rc_params_from_file(STYLE)["text.color"]))).astype(int)
HZ_TICKS = (0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)


class ClipLike(Protocol):
    """The attributes of a clip that figures and captions need; `Clip` has all of them."""

    params: SpectrogramParams
    loop: bool

    @property
    def image(self) -> Image.Image:
        """Spectrogram picture."""

    @property
    def waveform(self) -> np.ndarray:
        """Samples [shape=(channels, samples), float32, range [-1, 1]]."""

    @property
    def sample_rate(self) -> int:
        """Samples per second."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""

    @property
    def title(self) -> str:
        """Prompt, or an empty text."""

    @property
    def limited_db(self) -> float:
        """Decibels by which the highest peak was lowered."""


def spectrogram(clip: ClipLike, ax: Axes | None = None, *, colorbar: bool = False, title: str | None = None) -> Axes:
    """Draw a clip's spectrogram with axes in seconds and hertz; -80 dB and everything below is black.

    Parameters
    ----------
    clip : Clip
    ax : matplotlib.axes.Axes, optional
        Default: the axes of a new figure.
    colorbar : bool
        Add a bar that shows the level of each colour, in decibels below the loudest point.
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
        # otypes: some versions of matplotlib also transform the array of minor ticks, which is empty.
        to_mel = np.vectorize(hz_to_mel, otypes=[float])
        to_hz = np.vectorize(mel_to_hz, otypes=[float])
        ax.set_yscale("function", functions=(to_mel, to_hz))
        # Rows are equally spaced in mel, and so is the axis once its scale is applied. Drawing one image in these
        # coordinates avoids 512 × 512 small rectangles, and smooths thin lines instead of losing them.
        lowest_mel = hz_to_mel(params.frequency_hz(-0.5))
        highest_mel = hz_to_mel(params.frequency_hz(params.num_frequencies - 0.5))
        picture = ax.imshow(
            level,
            extent=(0, clip.duration_s, lowest_mel, highest_mel),
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


def decibels(clip: ClipLike) -> np.ndarray:
    """Mel amplitudes of a clip's picture in dB below its loudest point, averaged over the channels.

    Returns
    -------
    np.ndarray [shape=(num_frequencies, n_columns), float32, range [-80, 0]]
        Row 0 is the lowest frequency. Silence is -80 throughout.
    """
    mel = mel_from_image(clip.image, clip.params).mean(dim=0).numpy()
    maximum = mel.max() or 1.0
    floor = 10 ** (FLOOR_DB / 20)
    return 20 * np.log10(np.maximum(mel / maximum, floor))


def description(clip: ClipLike) -> str:
    """Describe a clip's spectrogram in words, for readers who cannot see it."""
    level = decibels(clip)
    params = clip.params
    axes = (
        f"Spectrogram of {clip.duration_s:.2f} s of sound, time from left to right, "
        f"{params.min_frequency:,} to {params.max_frequency:,} Hz from bottom to top"
    )
    if level.max() == FLOOR_DB:
        return f"{axes}: silence"
    first_audible = max(0, math.ceil(params.band(20)))
    mean_level = level[first_audible:].mean(axis=1)
    loudest_hz = params.frequency_hz(first_audible + int(mean_level.argmax()))
    rounded_hz = float(f"{loudest_hz:.2g}")
    loud_share = float((level > -40).mean())
    return f"{axes}: strongest near {rounded_hz:,.0f} Hz; {loud_share:.0%} of it within 40 dB of the loudest point"


def mark_parts(ax: Axes, starts_s: Mapping[str, float]) -> None:
    """Write the name of each part of a long clip above its spectrogram, with a white line where the part begins.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        As `spectrogram` returns it; the last part ends at the end of the time axis.
    starts_s : Mapping of str to float
        Where each part begins, in seconds, in ascending order.

    Taught in: 02
    """
    starts = list(starts_s.values())
    ends = [*starts[1:], ax.get_xlim()[1]]
    for name, start_s, end_s in zip(starts_s, starts, ends, strict=True):
        middle_s = (start_s + end_s) / 2
        ax.text(middle_s, 1.03, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom")
        if start_s > 0:
            ax.axvline(start_s, color="white", linestyle="--")


def spectrogram_png(clip: ClipLike, starts_s: Mapping[str, float] | None = None) -> bytes:
    """Draw the figure that a clip shows in a notebook, as a small PNG; the same bytes at every call.

    Parameters
    ----------
    clip : Clip
    starts_s : Mapping of str to float, optional
        Parts to be marked: see `mark_parts`.
    """
    ax = spectrogram(clip)
    if starts_s:
        with matplotlib.style.context(STYLE):
            mark_parts(ax, starts_s)
    figure = ax.get_figure(root=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture, opacities = _indexed(np.asarray(canvas.buffer_rgba()))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True, transparency=opacities)
    return file.getvalue()


def _indexed(pixels: np.ndarray) -> tuple[Image.Image, bytes]:
    """Reduce a figure to a few colours, and its axes and letters, which are partly transparent, to a few opacities.

    Parameters
    ----------
    pixels : np.ndarray [shape=(height, width, 4), uint8]
        Red, green, blue and alpha.

    Returns
    -------
    PIL.Image.Image, bytes
        The figure with a palette, and the opacity of each palette colour, in [0, 255].
    """
    colour, alpha = pixels[..., :3], pixels[..., 3]
    is_ink = (alpha < 255) | (colour == INK).all(axis=-1)
    opaque = np.where(is_ink[..., None], 0, colour).astype(np.uint8)
    picture = Image.fromarray(opaque).quantize(COLOURS, dither=Image.Dither.NONE)
    palette = np.array(picture.getpalette()).reshape(-1, 3)[:COLOURS]
    n_colours = len(palette)
    level = np.rint(alpha / 255 * (OPACITIES - 1)).astype(np.uint8)
    indexed = Image.fromarray(np.where(is_ink, n_colours + level, np.asarray(picture)).astype(np.uint8))
    indexed.putpalette(np.concatenate([palette, [INK] * OPACITIES]).astype(np.uint8).tobytes())
    opacities = np.rint(np.linspace(0, 255, OPACITIES)).astype(int)
    return indexed, bytes([255] * n_colours + list(opacities))
