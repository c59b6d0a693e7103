"""Mel spectrogram ↔ picture, as Riffusion v1 draws it: loud is dark, low frequencies are at the bottom."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import existing_file, write_whole
from .params import SpectrogramParams

EXIF_TAGS = {
    "sample_rate": 11000,
    "stereo": 11005,
    "step_size_ms": 11010,
    "window_duration_ms": 11020,
    "padded_duration_ms": 11030,
    "num_frequencies": 11040,
    "min_frequency": 11050,
    "max_frequency": 11060,
    "power_for_image": 11070,
}
MAXIMUM_TAG = 11080
INT16_UNITS = 32_768  # Riffusion analyses 16-bit samples, we analyse samples in [-1, 1]
STAND_IN_MAXIMUM = 3e7  # what Riffusion takes where it knows no level
TEXT_KEY = "riffusion_lab"  # PNG text chunk with what EXIF has no place for
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True)
class Picture:
    """A spectrogram picture and what its file says about it."""

    image: Image.Image  # RGB
    params: SpectrogramParams
    maximum: float | None = None  # the loudest mel amplitude, for samples in [-1, 1]; None: the level is not known
    loop: bool = False
    recipe: dict[str, Any] | None = None


def pixels_from_mel(mel: torch.Tensor, params: SpectrogramParams) -> tuple[np.ndarray, float]:
    """Bend amplitudes into brightness.

    Parameters
    ----------
    mel : torch.Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
        One channel, or two for stereo.
    params : SpectrogramParams

    Returns
    -------
    pixels : np.ndarray [shape=(num_frequencies, n_columns), or (num_frequencies, n_columns, 3) for stereo, uint8]
        Row 0 is the highest frequency; 255 is silence. Stereo: left in green, right in blue.
    maximum : float
        The loudest amplitude, which the pixels alone no longer tell; 0 for silence.

    Taught in: 01
    """
    maximum = float(mel.max())
    amplitude = mel / maximum if maximum > 0 else mel
    brightness = 255 - (amplitude**params.power_for_image * 255).round()
    pixels = brightness.to(torch.uint8).flip(-2).cpu().numpy()
    if len(pixels) == 1:
        return pixels[0], maximum
    left, right = pixels
    return np.stack([np.zeros_like(left), left, right], axis=-1), maximum


def image_from_mel(mel: torch.Tensor, params: SpectrogramParams) -> tuple[Image.Image, float]:
    """Draw mel amplitudes; see `pixels_from_mel`.

    Parameters
    ----------
    mel : torch.Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
    params : SpectrogramParams

    Returns
    -------
    image : PIL.Image.Image
        RGB; its channels are equal for mono.
    maximum : float

    Taught in: 01
    """
    pixels, maximum = pixels_from_mel(mel, params)
    return Image.fromarray(pixels).convert("RGB"), maximum


def mel_from_image(image: Image.Image, params: SpectrogramParams, maximum: float | None = None) -> torch.Tensor:
    """Read amplitudes back from a picture.

    Parameters
    ----------
    image : PIL.Image.Image
        `num_frequencies` pixels high.
    params : SpectrogramParams
    maximum : float, optional
        The amplitude of black; 1 where it is not known.

    Returns
    -------
    torch.Tensor [shape=(channels, num_frequencies, n_columns), float32, non-negative]
        Mono takes the average of the three colours, which quiets what a decoder adds to each by itself.

    Taught in: 02
    """
    pixels = torch.from_numpy(np.array(_as_rgb(image, params), dtype=np.float32)).flip(0).permute(2, 0, 1)
    channels = pixels[1:] if params.stereo else pixels.mean(dim=0, keepdim=True)
    amplitude = (1 - channels / 255).clamp(min=0) ** (1 / params.power_for_image)
    return amplitude * (1.0 if maximum is None else maximum)


def save_image(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a PNG that holds everything needed to play it again.

    Raises
    ------
    OSError
        If the file cannot be written; nothing half-written is left behind.
    """
    exif = Image.Exif()
    for name, tag in EXIF_TAGS.items():
        value = getattr(picture.params, name)
        exif[tag] = int(value) if isinstance(value, bool) else value
    if picture.maximum is not None:
        exif[MAXIMUM_TAG] = float(picture.maximum * INT16_UNITS)
    text = PngInfo()
    text.add_text(TEXT_KEY, json.dumps({"loop": picture.loop, "recipe": picture.recipe}))
    file = io.BytesIO()
    picture.image.save(file, format="PNG", exif=exif, pnginfo=text)
    write_whole(path, file.getvalue())


def open_image(source: str | os.PathLike[str] | Image.Image, params: SpectrogramParams | None = None) -> Picture:
    """Open a spectrogram picture, ours, Riffusion's or anybody's.

    Parameters
    ----------
    source : path or PIL.Image.Image
    params : SpectrogramParams, optional
        Instead of what the picture's EXIF tags say. A missing tag stands for its default.

    Returns
    -------
    Picture

    Raises
    ------
    OSError
        If the file is missing, torn, or no picture.
    ValueError
        If the picture cannot be a spectrogram of these params, or its metadata makes no sense.
    """
    image = source if isinstance(source, Image.Image) else _load(source)
    name = "the picture" if image is source else str(source)
    try:
        exif = image.getexif()
        params = params or _params_from_exif(exif)
        extra = json.loads(image.info.get(TEXT_KEY, "{}"))
        loop, recipe = bool(extra.get("loop", False)), extra.get("recipe")
        return Picture(_as_rgb(image, params), params, _maximum_from_exif(exif), loop, recipe)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _load(path: str | os.PathLike[str]) -> Image.Image:
    path = existing_file(path, "a picture")
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's three ways to say that a file is torn
        raise OSError(f"{path} is torn or no picture ({error}): give a whole PNG") from error
    return image


def _as_rgb(image: Image.Image, params: SpectrogramParams) -> Image.Image:
    if image.height != params.num_frequencies or image.width < 1:
        wanted = f"{params.num_frequencies} pixels high, one for each mel band"
        raise ValueError(f"{image.width} × {image.height} pixels: a spectrogram here is {wanted}; resize it, or params")
    if image.mode not in MODES:
        raise ValueError(f"a picture of mode {image.mode}: convert it to RGB first")
    if image.mode in ("LA", "P", "RGBA"):  # what is transparent is white: silence
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _params_from_exif(exif: Image.Exif) -> SpectrogramParams:
    default = SpectrogramParams()
    given = {}
    for name, tag in EXIF_TAGS.items():
        if tag in exif:
            kind = type(getattr(default, name))
            try:
                given[name] = kind(exif[tag])
            except (ValueError, TypeError) as error:
                raise ValueError(f"EXIF tag {tag} ({name}) is {exif[tag]!r}, no number") from error
    return replace(default, **given)


def _maximum_from_exif(exif: Image.Exif) -> float | None:
    value = exif.get(MAXIMUM_TAG, STAND_IN_MAXIMUM)
    try:
        maximum = float(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {value!r}, no number") from error
    if not 0 <= maximum < float("inf"):
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {maximum}: it must be finite and not negative")
    return None if maximum == STAND_IN_MAXIMUM else maximum / INT16_UNITS
