"""Masks: which part of a clip's picture is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from .deprecation import moved
from .image import DEEP_MODES, grey_levels, has_alpha, upright
from .values import check_number

if TYPE_CHECKING:
    from .clip import Clip

SOFT_EDGE = 8  # pixels inside the mask over which the new picture takes over from the old one: 80 ms


def box_mask(
    clip: Clip,
    start_s: float = 0.0,
    stop_s: float | None = None,
    *,
    low_hz: float | None = None,
    high_hz: float | None = None,
) -> np.ndarray:
    """Mark a box in time and frequency.

    Parameters
    ----------
    clip : Clip
        Gives the size.
    start_s, stop_s : float
        In seconds; default: from the beginning to the end.
    low_hz, high_hz : float, optional
        In hertz; default: all that the picture shows.

    Returns
    -------
    np.ndarray [shape=(512, columns), bool]
        As the picture: row 0 is the highest frequency. True is made anew.

    Raises
    ------
    ValueError
        If the box is empty, or reaches out of the clip.

    Taught in: 05
    """
    params, n_columns = clip.params, clip.image.width
    stop_s = clip.duration_s if stop_s is None else stop_s
    start_s, stop_s = (check_number("a time in seconds", t, 0, clip.duration_s + 1e-9) for t in (start_s, stop_s))
    limits = params.min_frequency, params.max_frequency
    wanted = [limit if f is None else f for f, limit in zip((low_hz, high_hz), limits, strict=True)]
    low_hz, high_hz = (check_number("a frequency in hertz", f, *limits) for f in wanted)
    per_s = params.sample_rate / params.hop_length
    columns = np.arange(n_columns) / per_s  # where each begins
    bands = np.array([params.frequency_hz(band) for band in range(params.num_frequencies)])[::-1]
    inside = (columns > start_s - 0.5 / per_s) & (columns < stop_s - 0.5 / per_s)
    mask = ((bands >= low_hz) & (bands <= high_hz))[:, None] & inside[None]
    if not mask.any():
        box = f"from {start_s:g} to {stop_s:g} s and {low_hz:g} to {high_hz:g} Hz"
        raise ValueError(f"a box {box} holds no pixel: a column is {1000 / per_s:g} ms; make it larger")
    return mask


def as_mask(mask: object, clip: Clip) -> np.ndarray:
    """Check a mask for a clip.

    Parameters
    ----------
    mask : array, PIL.Image.Image or tuple
        An array or a picture of the clip's size, in which True, 1, 255 or white is made anew (what is more than half
        white counts as white); in a picture with transparent parts it is what is painted, in any colour; or a box:
        (start_s, stop_s) or (start_s, stop_s, low_hz, high_hz).
    clip : Clip

    Returns
    -------
    np.ndarray [shape=(512, columns), bool]

    Raises
    ------
    TypeError, ValueError
        If it is no mask, of another size, or empty.
    """
    if isinstance(mask, tuple):
        if len(mask) not in (2, 4):
            raise ValueError(f"the box {mask!r}: give (start_s, stop_s) or (start_s, stop_s, low_hz, high_hz)")
        low_hz, high_hz = mask[2:] or (None, None)
        return box_mask(clip, mask[0], mask[1], low_hz=low_hz, high_hz=high_hz)
    array = _levels(mask) if isinstance(mask, Image.Image) else np.asarray(mask)
    if array.dtype.kind not in "bufi":
        raise TypeError(f"mask must be an array, a picture or a box, not {type(mask).__name__}")
    size = (clip.params.num_frequencies, clip.image.width)
    if array.shape != size:
        raise ValueError(f"the mask has the shape {array.shape}, the clip's picture {size}: make them alike")
    array = array > (127.5 if array.max(initial=0) > 1 else 0.5)
    if not array.any():
        raise ValueError("the mask is empty, so there is nothing to make anew: mark something True (white)")
    return array


def _levels(picture: Image.Image) -> np.ndarray:
    """Brightness of a picture, or its opacity where some of it is transparent; uint8."""
    picture = upright(picture)
    if picture.mode in DEEP_MODES:
        return grey_levels(picture)
    if has_alpha(picture):
        opacity = np.asarray(picture.convert("RGBA").getchannel("A"))
        if opacity.min(initial=255) < 255:
            return opacity
    return np.asarray(picture.convert("L"))


def paste(old: Image.Image, new: Image.Image, mask: np.ndarray) -> Image.Image:
    """Put a new picture into the masked part of an old one; outside, the old one stays bit for bit.

    At its inner edges the mask is softened; not at the picture's own.
    """
    around = np.pad(mask, SOFT_EDGE, mode="edge")
    depth = distance_transform_edt(around)[SOFT_EDGE:-SOFT_EDGE, SOFT_EDGE:-SOFT_EDGE]  # pixels from the outside
    share = np.clip(depth / min(SOFT_EDGE, depth.max()), 0, 1)[..., None] if not mask.all() else 1.0
    before, after = np.asarray(old.convert("RGB"), np.float32), np.asarray(new.convert("RGB"), np.float32)
    return Image.fromarray(np.rint(before + share * (after - before)).astype(np.uint8))


__getattr__ = moved(__name__, {"latent_mask": "latents.latent_mask"})
