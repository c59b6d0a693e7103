"""Masks: which part of a clip's picture is inpainted (regenerated)."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from .clip import Clip
from .deprecation import moved
from .image import DEEP_MODES, grey_levels, has_alpha, upright
from .values import check_number

SOFT_EDGE = 8  # pixels (80 ms) inside the mask over which the old picture fades into the new one


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
        The mask has the size of its picture.
    start_s, stop_s : float
        In seconds; default: from the beginning to the end.
    low_hz, high_hz : float, optional
        In hertz; default: the whole frequency range of the picture.

    Returns
    -------
    np.ndarray [shape=(512, columns), bool]
        Like the picture, row 0 is the highest frequency. True is inpainted.

    Raises
    ------
    ValueError
        If the box is empty, or exceeds the clip.

    Taught in: 05
    """
    params = clip.params
    if stop_s is None:
        stop_s = clip.duration_s
    if low_hz is None:
        low_hz = params.min_frequency
    if high_hz is None:
        high_hz = params.max_frequency
    latest_s = clip.duration_s + 1e-9
    start_s = check_number("a time in seconds", start_s, 0, latest_s)
    stop_s = check_number("a time in seconds", stop_s, 0, latest_s)
    low_hz = check_number("a frequency in hertz", low_hz, params.min_frequency, params.max_frequency)
    high_hz = check_number("a frequency in hertz", high_hz, params.min_frequency, params.max_frequency)

    columns_per_s = params.sample_rate / params.hop_length
    half_column_s = 0.5 / columns_per_s
    column_s = np.arange(clip.image.width) / columns_per_s
    in_time = (column_s > start_s - half_column_s) & (column_s < stop_s - half_column_s)
    band_hz = np.array([params.frequency_hz(band) for band in range(params.num_frequencies)])
    row_hz = band_hz[::-1]
    in_band = (row_hz >= low_hz) & (row_hz <= high_hz)
    mask = in_band[:, None] & in_time[None, :]
    if not mask.any():
        box = f"from {start_s:g} to {stop_s:g} s and {low_hz:g} to {high_hz:g} Hz"
        raise ValueError(f"a box {box} holds no pixel: a column is {1000 / columns_per_s:g} ms; make it larger")
    return mask


def as_mask(mask: object, clip: Clip) -> np.ndarray:
    """Check a mask for a clip.

    Parameters
    ----------
    mask : array, PIL.Image.Image or tuple
        An array or image of the size of the clip's picture. True, 1, 255 or white is inpainted; the threshold is half
        white. If parts of an image are transparent, its opaque parts are inpainted, whatever their colour. Or a box:
        (start_s, stop_s) or (start_s, stop_s, low_hz, high_hz).
    clip : Clip

    Returns
    -------
    np.ndarray [shape=(512, columns), bool]

    Raises
    ------
    TypeError, ValueError
        If it is not a mask, has another size, or is empty.
    """
    if isinstance(mask, tuple):
        if len(mask) not in (2, 4):
            raise ValueError(f"the box {mask!r}: use (start_s, stop_s) or (start_s, stop_s, low_hz, high_hz)")
        low_hz, high_hz = mask[2:] or (None, None)
        return box_mask(clip, mask[0], mask[1], low_hz=low_hz, high_hz=high_hz)
    array = _levels(mask) if isinstance(mask, Image.Image) else np.asarray(mask)
    if array.dtype.kind not in "bufi":
        raise TypeError(f"mask must be an array, a picture or a box, not {type(mask).__name__}")
    size = (clip.params.num_frequencies, clip.image.width)
    if array.shape != size:
        raise ValueError(f"the mask has the shape {array.shape}, the clip's picture {size}: make them alike")
    white = 255 if array.max(initial=0) > 1 else 1
    marked = np.ascontiguousarray(array > white / 2)
    if not marked.any():
        raise ValueError("the mask is empty, so there is nothing to inpaint: mark something True (white)")
    return marked


def _levels(picture: Image.Image) -> np.ndarray:
    """Opacity of a picture if some of it is transparent, else its brightness; uint8."""
    picture = upright(picture)
    if picture.mode in DEEP_MODES:
        return grey_levels(picture)
    if has_alpha(picture):
        opacity = np.asarray(picture.convert("RGBA").getchannel("A"))
        if opacity.min(initial=255) < 255:
            return opacity
    return np.asarray(picture.convert("L"))


def paste(old: Image.Image, new: Image.Image, mask: np.ndarray) -> Image.Image:
    """Paste a new picture into the masked part of an old one; outside, the old one stays bit-identical.

    The mask is softened at its inner edges, but not at the edges of the picture.
    """
    before = np.asarray(old.convert("RGB"), np.float32)
    after = np.asarray(new.convert("RGB"), np.float32)
    mixed = before + _opacity(mask) * (after - before)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _opacity(mask: np.ndarray) -> np.ndarray | float:
    """Opacity of the new picture, rising from 0 to 1 over the first pixels inside the mask; shape (..., ..., 1)."""
    if mask.all():
        return 1.0
    extended = np.pad(mask, SOFT_EDGE, mode="edge")
    depth = distance_transform_edt(extended)  # distance in pixels from the area outside the mask
    depth = depth[SOFT_EDGE:-SOFT_EDGE, SOFT_EDGE:-SOFT_EDGE]
    opacity = np.clip(depth / min(SOFT_EDGE, depth.max()), 0, 1)
    return opacity[..., None]


__getattr__ = moved(__name__, {"latent_mask": "latents.latent_mask"})
