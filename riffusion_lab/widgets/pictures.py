"""Pictures for widgets: a clip's spectrogram in colours, a pixel for each column and mel band, without axes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from PIL import Image

from ..clip import Clip
from ..plot import FLOOR_DB, STYLE, decibels

WIDEST = 8_192  # pixels: browsers draw no picture that is much wider
PALETTE = matplotlib.colormaps[matplotlib.rc_params_from_file(STYLE, use_default_template=False)["image.cmap"]]


def picture_image(clip: Clip) -> Image.Image:
    """Draw a clip's levels from -80 to 0 dB in the colours of all figures.

    Returns
    -------
    PIL.Image.Image
        With a palette; `num_frequencies` pixels high, with the highest frequency on top; one pixel wide per column of
        the clip. Above 8,192 columns, neighbours share a pixel, which has the colour of the loudest.

    Taught in: 01
    """
    level = decibels(clip)[::-1]
    if level.shape[1] > WIDEST:
        level = np.maximum.reduceat(level, np.arange(WIDEST) * level.shape[1] // WIDEST, axis=1)
    image = Image.fromarray(np.rint(255 * (1 - level / FLOOR_DB)).astype(np.uint8))
    image.putpalette(PALETTE(np.arange(256), bytes=True)[:, :3].tobytes())
    return image


def picture_png(clip: Clip) -> bytes:
    """Draw `picture_image` as a PNG, the same bytes at every call.

    Taught in: 01
    """
    return png_bytes(picture_image(clip))


def png_bytes(image: Image.Image) -> bytes:
    """Bytes of a PNG, the same at every call."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
