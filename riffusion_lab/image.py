"""Mel spectrogram ↔ picture in Riffusion v1's convention: loud is dark, low frequencies are at the bottom."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo

from .files import as_binary_file, existing_file, name_of, write_whole
from .params import SpectrogramParams
from .values import warn

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
STAND_IN_MAXIMUM = 3e7  # Riffusion's default if the level is not known
TEXT_KEY = "riffusion_lab"  # PNG text chunk for what EXIF cannot hold
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey, with more than 8 bits
MAX_PIXELS = 2 * 360_000 * 512  # two hours of Riffusion's columns: 1.1 GB in RGB
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
COLOURED = 16  # mean difference between a pixel's channels; an image decoder causes differences of a few grey levels
DARK = 32  # a picture whose median is darker than this is loud nearly everywhere


@dataclass(frozen=True)
class Picture:
    """A spectrogram picture and its metadata."""

    image: Image.Image  # RGB
    params: SpectrogramParams
    maximum: float | None = None  # the largest mel amplitude, for samples in [-1, 1]; None: the level is not known
    loop: bool = False
    recipe: dict[str, Any] | None = None


def pixels_from_mel(mel: torch.Tensor, params: SpectrogramParams) -> tuple[np.ndarray, float]:
    """Convert amplitudes to brightness.

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
        The largest amplitude, which the pixels do not contain; 0 for silence.

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
    """Convert a picture back to amplitudes.

    Parameters
    ----------
    image : PIL.Image.Image
        Its height must be `num_frequencies`.
    params : SpectrogramParams
    maximum : float, optional
        The amplitude of black; 1 if it is not known.

    Returns
    -------
    torch.Tensor [shape=(channels, num_frequencies, n_columns), float32, non-negative]
        For mono the three colour channels are averaged, which reduces the noise an image decoder adds to each.

    Taught in: 02
    """
    rgb = np.array(_as_rgb(image, params), dtype=np.float32)
    pixels = torch.from_numpy(rgb).flip(0).permute(2, 0, 1)  # (colours, num_frequencies, n_columns)
    channels = pixels[1:] if params.stereo else pixels.mean(dim=0, keepdim=True)
    amplitude = (1 - channels / 255).clamp(min=0) ** (1 / params.power_for_image)
    return amplitude * (1.0 if maximum is None else maximum)


def encode_image(picture: Picture) -> bytes:
    """Encode a picture as PNG, with everything needed to play it again."""
    exif = Image.Exif()
    for name, tag in EXIF_TAGS.items():
        value = getattr(picture.params, name)
        exif[tag] = int(value) if isinstance(value, bool) else value
    if picture.maximum is not None:
        exif[MAXIMUM_TAG] = float(picture.maximum * INT16_UNITS)
    # Programs that rewrite EXIF round its numbers, so numbers with a fraction are also stored as text.
    exact = {name: value for name, value in asdict(picture.params).items() if isinstance(value, float)}
    text = PngInfo()
    text.add_text(TEXT_KEY, json.dumps({"loop": picture.loop, "recipe": picture.recipe, "params": exact}))
    file = io.BytesIO()
    picture.image.save(file, format="PNG", exif=exif, pnginfo=text)
    return file.getvalue()


def save_image(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a PNG with everything needed to play it again.

    Raises
    ------
    OSError
        If the file cannot be written. A partly written file is never left behind.
    """
    write_whole(path, encode_image(picture))


def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    params: SpectrogramParams | None = None,
    *,
    invert: bool = False,
) -> Picture:
    """Open a spectrogram picture, made by this package, by Riffusion or by any other program.

    Parameters
    ----------
    source : path, bytes, binary file or PIL.Image.Image
        An EXIF orientation is applied.
    params : SpectrogramParams, optional
        Override the picture's EXIF tags. Parameters without a tag have their defaults.
    invert : bool
        Whether bright means loud in this picture.

    Returns
    -------
    Picture

    Raises
    ------
    OSError
        If the file is missing, truncated, or not a picture.
    ValueError
        If the picture cannot be a spectrogram with these params, or its metadata is invalid.
    """
    if isinstance(source, Image.Image):
        image = source
        name = "the picture"
    else:
        image = _load(source)
        name = name_of(source, "the picture")
    try:
        image.load()  # before its EXIF is read: Pillow applies the orientation of a TIFF here, but of no other format
        exif = image.getexif()
        extra = _read_text(image)
        is_ours = any(tag in exif for tag in EXIF_TAGS.values())
        is_chosen = params is not None
        params = params or _params_from_exif(exif, extra.get("params"))
        rgb = _as_rgb(upright(image), params, invert=invert)
        maximum = _maximum_from_exif(exif)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not is_ours and not params.stereo:
        _remark(name, rgb, is_chosen=is_chosen)
    return Picture(rgb, params, maximum, bool(extra.get("loop", False)), extra.get("recipe"))


def _read_text(image: Image.Image) -> dict[str, Any]:
    extra = json.loads(image.info.get(TEXT_KEY, "{}"))
    if not isinstance(extra, dict):
        raise ValueError(f"its text {TEXT_KEY!r} is {extra!r}, not a dict: remove it")
    return extra


def _load(source: str | os.PathLike[str] | bytes | BinaryIO) -> Image.Image:
    """Read a picture completely. Pillow's limit for PNGs is too low for long spectrograms; `MAX_PIXELS` replaces it."""
    name = name_of(source, "the picture")
    with _opened(source) as file:
        is_png = file.read(len(PNG_MAGIC)) == PNG_MAGIC
        file.seek(0)
        try:
            image: Image.Image = PngImageFile(file) if is_png else Image.open(file)
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width:,} × {image.height:,} pixels"
                raise ValueError(f"{name}: {size} are more than the limit of {MAX_PIXELS:,}: cut it first")
            image.load()
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error}: save it as PNG, or cut it first") from error
        except (OSError, SyntaxError) as error:  # Pillow's errors for truncated files
            raise OSError(f"{name} is truncated or not a picture ({error}): use a whole PNG") from error
    return image


def _opened(source: str | os.PathLike[str] | bytes | BinaryIO) -> BinaryIO:
    if isinstance(source, (str, os.PathLike)):
        return existing_file(source, "a picture").open("rb")
    return as_binary_file(source, "a picture")


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, as picture viewers do."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation == 1:
        return image  # exif_transpose would copy it, and a long one is large
    return ImageOps.exif_transpose(image)


def _as_rgb(image: Image.Image, params: SpectrogramParams, *, invert: bool = False) -> Image.Image:
    if image.height != params.num_frequencies or image.width < 1:
        expected = f"{params.num_frequencies} pixels high, one for each mel band"
        matching = _code(replace(params, num_frequencies=max(1, image.height)))
        advice = f"pass params={matching} if each row is one, or resize the picture"
        raise ValueError(f"{image.width} × {image.height} pixels: a spectrogram here is {expected}; {advice}")
    if image.mode in DEEP_MODES:
        image = Image.fromarray(grey_levels(image))
    if image.mode not in MODES:
        raise ValueError(f"a picture of mode {image.mode}: convert it to RGB first")
    if has_alpha(image):
        silence = "black" if invert else "white"
        background = Image.new("RGBA", image.size, silence)
        image = Image.alpha_composite(background, image.convert("RGBA"))
    image = image.convert("RGB")
    if invert:
        return ImageOps.invert(image)
    return image


def has_alpha(image: Image.Image) -> bool:
    """Whether parts of a picture can be transparent."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def grey_levels(image: Image.Image) -> np.ndarray:
    """Convert a grey picture with more than 8 bits to 8 bits; Pillow's `convert` would clip it at 255.

    Parameters
    ----------
    image : PIL.Image.Image
        16-bit integers; 32-bit integers up to 65,535 or up to 255; or floats up to 1 or up to 255.

    Returns
    -------
    np.ndarray [shape=(rows, columns), uint8]

    Raises
    ------
    ValueError
        If a level is outside these ranges.
    """
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError(f"a picture of mode {image.mode} with levels that are NaN or infinite: repair it")
    lowest = float(levels.min(initial=0))
    highest = float(levels.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and highest > 255):
        white = 65_535
    elif image.mode == "F" and highest <= 1:
        white = 1
    else:
        white = 255
    if lowest < 0 or highest > white:
        expected = "0 to 1 or 0 to 255" if image.mode == "F" else "0 to 65535 or 0 to 255"
        raise ValueError(f"a picture of mode {image.mode} with levels from {lowest:g} to {highest:g}: use {expected}")
    return np.rint(levels * (255 / white)).astype(np.uint8)


def _code(params: SpectrogramParams) -> str:
    """Python expression for these params, without the defaults."""
    default = SpectrogramParams()
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    changed = [f"{name}={value!r}" for name, value in values.items() if value != getattr(default, name)]
    return f"SpectrogramParams({', '.join(changed)})"


def _remark(name: str, rgb: Image.Image, *, is_chosen: bool) -> None:
    """Warn if a picture without our EXIF tags is probably misread: as mono, as grey, or as not inverted."""
    pixels = np.asarray(rgb)
    red = pixels[..., 0]
    green = pixels[..., 1]
    blue = pixels[..., 2]
    has_no_red = red.min() == red.max() and red.max() in (0, 255)
    has_green_or_blue = green.min() < green.max() or blue.min() < blue.max()
    if has_no_red and has_green_or_blue:
        warn(f"{name} has no red: if it is stereo, left in green, pass params=SpectrogramParams(stereo=True)")
        return
    step = max(1, pixels.shape[1] // 1_000)  # about a thousand columns are enough
    some = pixels[:, ::step].astype(np.int16)
    spread = float((some.max(axis=2) - some.min(axis=2)).mean())
    if spread > COLOURED:
        warn(f"{name} is coloured, but only its mean brightness is read, which false colours do not represent")
    elif not is_chosen and float(np.median(some)) < DARK:
        warn(f"{name} is dark, which is loud, nearly everywhere: if bright is loud in it, pass invert=True")


def _params_from_exif(exif: Image.Exif, exact: object = None) -> SpectrogramParams:
    """Read the params from EXIF; `exact` holds the exact values of numbers that EXIF may have rounded."""
    values: dict[str, Any] = {
        name: _exif_number(exif[tag], name, tag) for name, tag in EXIF_TAGS.items() if tag in exif
    }
    if isinstance(exact, dict):
        for name, value in exact.items():
            is_param = name in EXIF_TAGS and isinstance(value, float)
            if is_param and abs(values.get(name, value) - value) < 1:  # otherwise the tag was edited since
                values[name] = value
    return SpectrogramParams(**values)


def _exif_number(value: Any, name: str, tag: int) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"EXIF tag {tag} ({name}) is {value!r}, not a number") from error
    return number


def _maximum_from_exif(exif: Image.Exif) -> float | None:
    value = exif.get(MAXIMUM_TAG, STAND_IN_MAXIMUM)
    try:
        maximum = float(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {value!r}, not a number") from error
    if not 0 <= maximum < float("inf"):
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {maximum}: it must be finite and not negative")
    if maximum == STAND_IN_MAXIMUM:
        return None
    return maximum / INT16_UNITS
