"""Mel spectrogram ↔ picture, as Riffusion v1 draws it: loud is dark, low frequencies are at the bottom."""

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
STAND_IN_MAXIMUM = 3e7  # what Riffusion takes where it knows no level
TEXT_KEY = "riffusion_lab"  # PNG text chunk with what EXIF has no place for
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # grey, of more than 8 bits
MOST_PIXELS = 2 * 360_000 * 512  # two hours of Riffusion's columns: 1.1 GB in RGB
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
COLOURED = 16  # grey levels between a pixel's colours, on average: what a decoder adds to grey is a few
DARK = 32  # a picture of which half is darker than this is loud nearly everywhere


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


def encode_image(picture: Picture) -> bytes:
    """Bytes of a PNG that holds everything needed to play it again."""
    exif = Image.Exif()
    for name, tag in EXIF_TAGS.items():
        value = getattr(picture.params, name)
        exif[tag] = int(value) if isinstance(value, bool) else value
    if picture.maximum is not None:
        exif[MAXIMUM_TAG] = float(picture.maximum * INT16_UNITS)
    # Programs that rewrite EXIF make whole numbers of all of them.
    exact = {name: value for name, value in asdict(picture.params).items() if isinstance(value, float)}
    text = PngInfo()
    text.add_text(TEXT_KEY, json.dumps({"loop": picture.loop, "recipe": picture.recipe, "params": exact}))
    file = io.BytesIO()
    picture.image.save(file, format="PNG", exif=exif, pnginfo=text)
    return file.getvalue()


def save_image(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a PNG that holds everything needed to play it again.

    Raises
    ------
    OSError
        If the file cannot be written; nothing half-written is left behind.
    """
    write_whole(path, encode_image(picture))


def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    params: SpectrogramParams | None = None,
    *,
    invert: bool = False,
) -> Picture:
    """Open a spectrogram picture, ours, Riffusion's or anybody's.

    Parameters
    ----------
    source : path, bytes, binary file or PIL.Image.Image
        Turned upright, where its EXIF orientation says so.
    params : SpectrogramParams, optional
        Instead of what the picture's EXIF tags say. A missing tag stands for its default.
    invert : bool
        Whether bright is loud in this picture.

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
    name = "the picture" if image is source else name_of(source, "the picture")
    try:
        image.load()  # before its EXIF is read: Pillow turns a TIFF here, and no other picture
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
        raise ValueError(f"its text {TEXT_KEY!r} is {extra!r}, no dict: take it out")
    return extra


def _load(source: str | os.PathLike[str] | bytes | BinaryIO) -> Image.Image:
    """Read a picture whole. Pillow warns of long PNGs as of an attack; here there is a limit of our own."""
    is_path = isinstance(source, (str, os.PathLike))
    name = name_of(source, "the picture")
    file = existing_file(source, "a picture").open("rb") if is_path else as_binary_file(source, "a picture")
    with file:
        is_png = file.read(len(PNG_MAGIC)) == PNG_MAGIC
        file.seek(0)
        try:
            image = PngImageFile(file) if is_png else Image.open(file)
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width:,} × {image.height:,} pixels"
                raise ValueError(f"{name}: {size} are more than a picture here has, {MOST_PIXELS:,}: cut it first")
            image.load()
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error}: save it as PNG, or cut it first") from error
        except (OSError, SyntaxError) as error:  # what Pillow says of a file that is torn
            raise OSError(f"{name} is torn or no picture ({error}): give a whole PNG") from error
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says, and as viewers show it."""
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if is_turned else image  # the former copies, and a long one is large


def _as_rgb(image: Image.Image, params: SpectrogramParams, *, invert: bool = False) -> Image.Image:
    if image.height != params.num_frequencies or image.width < 1:
        wanted = f"{params.num_frequencies} pixels high, one for each mel band"
        fitting = _code(replace(params, num_frequencies=max(1, image.height)))
        advice = f"give params={fitting} if each row is one, or resize the picture"
        raise ValueError(f"{image.width} × {image.height} pixels: a spectrogram here is {wanted}; {advice}")
    if image.mode in DEEP_MODES:
        image = Image.fromarray(grey_levels(image))
    if image.mode not in MODES:
        raise ValueError(f"a picture of mode {image.mode}: convert it to RGB first")
    if has_alpha(image):  # what is transparent is silence
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black" if invert else "white"), image)
    image = image.convert("RGB")
    return ImageOps.invert(image) if invert else image


def has_alpha(image: Image.Image) -> bool:
    """Whether some of a picture can be transparent."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def grey_levels(image: Image.Image) -> np.ndarray:
    """Read a grey picture of more than 8 bits, which Pillow's `convert` would cut off at 255.

    Parameters
    ----------
    image : PIL.Image.Image
        Of 16 bits; of 32-bit integers from 0 to 65,535, or to 255; or of floats from 0 to 1, or to 255.

    Returns
    -------
    np.ndarray [shape=(rows, columns), uint8]

    Raises
    ------
    ValueError
        If a level is none of these.
    """
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError(f"a picture of mode {image.mode} with levels that are NaN or infinite: repair it")
    lowest, highest = float(levels.min(initial=0)), float(levels.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and highest > 255):
        white = 65_535
    elif image.mode == "F" and highest <= 1:
        white = 1
    else:
        white = 255
    if lowest < 0 or highest > white:
        wanted = "0 to 1 or 0 to 255" if image.mode == "F" else "0 to 65535 or 0 to 255"
        raise ValueError(f"a picture of mode {image.mode} with levels from {lowest:g} to {highest:g}: give {wanted}")
    return np.rint(levels * (255 / white)).astype(np.uint8)


def _code(params: SpectrogramParams) -> str:
    """How these params are written in Python, without those that are the defaults."""
    default = SpectrogramParams()
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    changed = [f"{name}={value!r}" for name, value in values.items() if value != getattr(default, name)]
    return f"SpectrogramParams({', '.join(changed)})"


def _remark(name: str, rgb: Image.Image, *, is_chosen: bool) -> None:
    """Warn of a picture without our tags that is likely read as another one than it is."""
    pixels = np.asarray(rgb)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    is_empty = red.min() == red.max() and red.max() in (0, 255)
    is_filled = green.min() < green.max() or blue.min() < blue.max()
    if is_empty and is_filled:
        warn(f"{name} has no red: if it is stereo, left in green, give params=SpectrogramParams(stereo=True)")
        return
    part = pixels[:, :: max(1, pixels.shape[1] // 1_000)].astype(np.int16)  # a thousand columns tell
    spread = float((part.max(axis=2) - part.min(axis=2)).mean())
    if spread > COLOURED:
        warn(f"{name} is coloured, and only its mean brightness is read: false colours do not tell what is loud")
    elif not is_chosen and float(np.median(part)) < DARK:
        warn(f"{name} is dark, which is loud, nearly everywhere: if bright is loud in it, give invert=True")


def _params_from_exif(exif: Image.Exif, exact: object = None) -> SpectrogramParams:
    """Read the params from EXIF; what it holds as a whole number may stand in the text beside it as it was."""
    exact = exact if isinstance(exact, dict) else {}
    given = {name: _exif_number(exif[tag], name, tag) for name, tag in EXIF_TAGS.items() if tag in exif}
    for name, value in exact.items():
        is_param = name in EXIF_TAGS and isinstance(value, float)
        if is_param and abs(given.get(name, value) - value) < 1:  # else somebody changed the tag
            given[name] = value
    return replace(SpectrogramParams(), **given)


def _exif_number(value: Any, name: str, tag: int) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"EXIF tag {tag} ({name}) is {value!r}, no number") from error
    return number


def _maximum_from_exif(exif: Image.Exif) -> float | None:
    value = exif.get(MAXIMUM_TAG, STAND_IN_MAXIMUM)
    try:
        maximum = float(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {value!r}, no number") from error
    if not 0 <= maximum < float("inf"):
        raise ValueError(f"EXIF tag {MAXIMUM_TAG} (maximum) is {maximum}: it must be finite and not negative")
    return None if maximum == STAND_IN_MAXIMUM else maximum / INT16_UNITS
