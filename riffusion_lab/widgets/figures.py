"""Figures for readers without a kernel: the fields of a panel, and the picture of endless music."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..clip import Clip
from ..display import TEXT_BYTES, clip_html
from ..join import stitch
from .base import FIGURE_BYTES, WithFigure
from .pictures import picture_image, png_bytes

STRIP_SIZE = (600, 200)  # pixels
N_COLOURS = 64


def picture_html(image: Image.Image, alt: str, caption: str = "", *, after: str = "") -> str:
    """Put a picture and its caption into a `<figure>`; `after` is HTML that comes between them."""
    colours = image if image.mode == "P" else image.quantize(N_COLOURS, dither=Image.Dither.NONE)
    source = f"data:image/png;base64,{base64.b64encode(png_bytes(colours)).decode()}"
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure style="margin:0"><img alt="{html.escape(alt)}" src="{source}">{after}{words}</figure>'


def strip_html(parts: Sequence[tuple[str, Clip]], caption: str) -> str:
    """Draw clips in playing order, with one player for all of them, as `Live` shows and plays them.

    Parameters
    ----------
    parts : sequence of (str, Clip)
        Prompt and clip, at least one. A prompt is written where it begins.
    caption : str
        What the figure shows, and how to make it interactive.

    Returns
    -------
    str
        A `<figure>` of at most 300 kB, the same at every call; of a long strip, only the beginning is played.

    Taught in: 08
    """
    strip = Image.new("RGB", STRIP_SIZE)
    seconds = np.cumsum([0.0, *(clip.duration_s for _, clip in parts)])
    places = [round(STRIP_SIZE[0] * share) for share in seconds / seconds[-1]]
    pen = ImageDraw.Draw(strip)
    label_before = None
    for (label, clip), left, right in zip(parts, places[:-1], places[1:], strict=True):
        picture = picture_image(clip).convert("RGB").resize((max(1, right - left), STRIP_SIZE[1]))
        strip.paste(picture, (left, 0))
        if label != label_before:
            pen.line([(left, 0), (left, STRIP_SIZE[1])], fill="white", width=2)
            _write(pen, label, left + 6, right - 6)
        label_before = label
    labels = list(dict.fromkeys(label for label, _ in parts))
    alt = f"Spectrogram of {seconds[-1]:.2f} s of music, time from left to right: {', then '.join(labels)}"
    sound = stitch([clip for _, clip in parts]) if len(parts) > 1 else parts[0][1]
    return picture_html(strip, alt, caption, after=_player_html(sound, picture_html(strip, alt, caption)))


def _write(pen: ImageDraw.ImageDraw, label: str, left: int, right: int) -> None:
    """Write a prompt on the picture, cut where the next one begins."""
    font = ImageFont.load_default(13)
    text = label
    while text and pen.textlength(text, font=font) > right - left:
        text = f"{text.removesuffix('…')[:-1]}…" if len(text) > 2 else ""
    pen.text((left, 6), text, font=font, fill="white", stroke_width=2, stroke_fill="black")


def _player_html(clip: Clip, beside: str) -> str:
    """Return a plain player of a clip, with as much sound as fits into a figure that also holds `beside`."""
    figure = clip_html(clip, max_bytes=FIGURE_BYTES - len(beside) - TEXT_BYTES)
    return f"<br>{figure[figure.index('<audio') : figure.index('<figcaption')]}"


def panel_html(parts: Sequence[widgets.Widget], caption: str) -> str:
    """Show the fields and buttons of a panel as a table of text; widgets with a figure of their own show that.

    Parameters
    ----------
    parts : sequence of ipywidgets
        Boxes are unpacked. Widgets without text, such as a progress bar, are left out.
    caption : str
        What the panel is for, and how to make it interactive.
    """
    leaves = list(_leaves(parts))
    figures = [leaf._figure_html() for leaf in leaves if isinstance(leaf, WithFigure) and not _button_name(leaf)]
    rows = [row for row in map(_row, leaves) if row]
    buttons = [name for name in map(_button_name, leaves) if name]
    if buttons:
        rows.append(("Buttons", " · ".join(buttons)))
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    table = f"<table>{cells}</table>" if cells else ""
    words = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'{"".join(figures)}<figure style="margin:0">{table}{words}</figure>'


def _leaves(parts: Sequence[widgets.Widget]) -> Any:
    """Yield the widgets inside boxes, in the order on the screen."""
    for part in parts:
        if isinstance(part, widgets.Box):
            yield from _leaves(part.children)
        else:
            yield part


def _button_name(widget: widgets.Widget) -> str:
    """Label of a button; an empty str if the widget is not a button."""
    if isinstance(widget, WithFigure):
        return "" if getattr(widget, "clip", None) else widget.button_name
    return str(widget.description) if isinstance(widget, widgets.Button | widgets.FileUpload) else ""


def _row(widget: widgets.Widget) -> tuple[str, str] | None:
    """Name of a field, and its value or its choices; None if it has no text."""
    name = getattr(widget, "description", "")
    options = getattr(widget, "_options_labels", None)
    if options:
        marks = ("● " if index == widget.index else "○ " for index in range(len(options)))
        return name or "Choice", "   ".join(mark + label for mark, label in zip(marks, options, strict=True))
    if isinstance(widget, widgets.Button | widgets.FileUpload | widgets.HTML | widgets.FloatProgress):
        return None
    value = getattr(widget, "value", None)
    if not name or value is None or value == "":
        return None
    return name, f"{value:g}" if isinstance(value, float) else str(value)
