from __future__ import annotations

import io
import json
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from riffusion_lab import Clip
from riffusion_lab.image import Picture, image_from_mel, mel_from_image, open_image, pixels_from_mel, save_image
from riffusion_lab.masks import as_mask
from riffusion_lab.params import SpectrogramParams

PARAMS = SpectrogramParams()
STEREO = SpectrogramParams(stereo=True)


@pytest.fixture
def mel() -> torch.Tensor:
    """Amplitudes over 80 dB, shape (1, 512, 40)."""
    return 10 ** (-4 * torch.rand(1, 512, 40, generator=torch.Generator().manual_seed(0)))


def test_pixels_follow_the_convention():
    mel = torch.zeros(1, 512, 3)
    mel[0, 0, 0] = 16.0  # lowest band, loudest
    mel[0, 511, 2] = 1.0  # highest band: (1/16) ** 0.25 = 1/2
    pixels, maximum = pixels_from_mel(mel, PARAMS)
    assert pixels.dtype == np.uint8 and pixels.shape == (512, 3)
    assert maximum == 16.0
    assert pixels[511, 0] == 0  # loud is dark, low is at the bottom
    assert pixels[0, 2] == 127  # 255 - round(127.5), rounded half to even
    assert (np.delete(pixels.ravel(), [511 * 3, 2]) == 255).all()


def test_mono_is_grey_and_stereo_is_green_and_blue(mel):
    image, _ = image_from_mel(mel, PARAMS)
    red, green, blue = (np.array(channel) for channel in image.split())
    assert (red == green).all() and (green == blue).all()
    both = torch.cat([mel, mel.flip(-1) / 2])
    image, maximum = image_from_mel(both, STEREO)
    back = mel_from_image(image, STEREO, maximum)
    assert back.shape == both.shape
    assert back[0].max() == pytest.approx(2 * float(back[1].max()), rel=0.02)  # a quarter of a grey level


def test_round_trip_is_exact_to_half_a_grey_level(mel):
    image, maximum = image_from_mel(mel, PARAMS)
    root = (mel / maximum) ** 0.25
    back = (mel_from_image(image, PARAMS, maximum) / maximum) ** 0.25
    assert float((back - root).abs().max()) <= 0.5 / 255 + 1e-6  # rounding; float32
    assert abs(float((back - root).mean())) < 0.05 / 255  # no bias: cutting off instead would give 0.5 / 255


def test_mono_decoding_averages_the_colours():
    pixels = np.full((512, 4, 3), 255, np.uint8)
    pixels[100, :] = (0, 30, 60)
    expected = (1 - 30 / 255) ** 4
    assert float(mel_from_image(Image.fromarray(pixels), PARAMS)[0, 411, 0]) == pytest.approx(expected, rel=1e-5)


def test_silence_is_white():
    image, maximum = image_from_mel(torch.zeros(1, 512, 5), PARAMS)
    assert maximum == 0.0
    assert image.getextrema() == ((255, 255),) * 3
    assert not mel_from_image(image, PARAMS, maximum).any()


@pytest.mark.parametrize("params", [PARAMS, SpectrogramParams(sample_rate=48_000, power_for_image=0.3, stereo=True)])
def test_png_brings_everything_back(tmp_path, mel, params):
    image, maximum = image_from_mel(mel.expand(params.n_channels, -1, -1), params)
    saved = Picture(image, params, maximum, True, {"prompt": "café “jazz”", "seed": 3})
    save_image(tmp_path / "clip.png", saved)
    opened = open_image(tmp_path / "clip.png")
    assert (opened.params, opened.loop, opened.recipe) == (saved.params, True, saved.recipe)
    assert opened.maximum == pytest.approx(maximum, rel=1e-12)
    assert (np.array(opened.image) == np.array(image)).all()
    exif = Image.open(tmp_path / "clip.png").getexif()
    assert exif[11080] == pytest.approx(maximum * 32_768)  # int16 units
    assert (exif[11000], exif[11005], exif[11040]) == (params.sample_rate, int(params.stereo), 512)


def foreign(exif: dict[int, object] | None = None, size: tuple[int, int] = (20, 512), mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, size, (255, 255, 255) if mode == "RGB" else 0)
    image.getexif().update(exif or {})
    return image


def test_foreign_pictures_know_little():
    picture = open_image(foreign())
    assert (picture.params, picture.maximum, picture.loop, picture.recipe) == (PARAMS, None, False, None)


def test_missing_tags_fall_back_one_by_one_and_foreign_tags_are_no_error():
    picture = open_image(foreign({11000: 48_000, 11070: 0.5, 271: "a camera", 306: "2024:01:01 00:00:00"}))
    assert picture.params == SpectrogramParams(sample_rate=48_000, power_for_image=0.5)


@pytest.mark.parametrize(("value", "maximum"), [(3e7, None), (65_536.0, 2.0), (0.0, 0.0)])
def test_maximum_is_in_int16_units_and_3e7_is_none(value, maximum):
    assert open_image(foreign({11080: value})).maximum == maximum


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_common_mode_opens(mode):
    blank = Image.new("RGB", (20, 512), "white")
    assert open_image(blank.convert(mode)).image.getextrema() == ((255, 255),) * 3


def test_what_is_transparent_is_silent():
    assert open_image(foreign(mode="RGBA")).image.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (foreign(size=(1, 1)), "1 × 1 pixels: a spectrogram here is 512 pixels high"),
        (foreign(size=(512, 300)), "512 × 300"),
        (foreign(mode="LAB"), "mode LAB"),
        (foreign({11000: "fast"}), "11000 .sample_rate. is 'fast'"),
        (foreign({11010: 0}), "step_size_ms is 0"),
        (foreign({11080: -1.0}), "11080 .maximum. is -1.0"),
    ],
)
def test_bad_pictures_are_named(image, words):
    with pytest.raises(ValueError, match=words):
        open_image(image)


def test_bad_files_are_named(tmp_path, mel):
    whole, torn, text, empty = (tmp_path / name for name in ("whole.png", "torn.png", "text.png", "empty.png"))
    save_image(whole, Picture(image_from_mel(mel, PARAMS)[0], PARAMS))
    torn.write_bytes(whole.read_bytes()[:5_000])
    text.write_text("no picture")
    empty.write_bytes(b"")
    for path, words in [
        (torn, "torn.png is truncated or not a picture"),
        (text, "text.png is truncated or not a picture"),
        (empty, "empty.png is empty"),
        (tmp_path / "none.png", "none.png does not exist"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(OSError, match=words):
            open_image(path)


def test_nothing_half_written(tmp_path, mel):
    picture = Picture(image_from_mel(mel, PARAMS)[0], PARAMS, recipe={"prompt": {1, 2}})  # a set does not fit into JSON
    with pytest.raises(TypeError):
        save_image(tmp_path / "clip.png", picture)
    with pytest.raises(FileNotFoundError, match="no_folder"):
        save_image(tmp_path / "no_folder" / "clip.png", Picture(picture.image, PARAMS))
    assert list(tmp_path.iterdir()) == []


# ---- pictures as people have them


@pytest.fixture
def grey() -> Image.Image:
    """A spectrogram of 40 columns in which no two corners are alike, as a grey picture."""
    rows, columns = np.mgrid[:512, :40]
    return Image.fromarray((200 - rows // 4 + columns).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(int)


TURNED_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED_BY)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation_is_followed(tmp_path, grey, orientation, suffix):
    exif = Image.Exif()
    exif[274], exif[11000] = orientation, 48_000
    path = tmp_path / f"a.{suffix}"
    grey.transpose(TURNED_BY[orientation]).save(path, exif=exif)
    picture = open_image(path)
    np.testing.assert_array_equal(pixels(picture.image), pixels(grey))
    assert picture.params.sample_rate == 48_000  # the other tags stay
    with path.open("rb") as file:  # by its path, Pillow 13 itself opens a TIFF on its side wrongly
        np.testing.assert_array_equal(pixels(open_image(Image.open(file)).image), pixels(grey))


DEEP = {
    "16 bits": lambda levels: Image.fromarray((levels * 257).astype(np.uint16)),
    "16 bits, big-endian": lambda levels: Image.fromarray((levels * 257).astype(">u2")),
    "32 bits of which 16 are used": lambda levels: Image.fromarray((levels * 257).astype(np.int32)),
    "32 bits of which 8 are used": lambda levels: Image.fromarray(levels.astype(np.int32)),
    "floats to 1": lambda levels: Image.fromarray((levels / 255).astype(np.float32)),
    "floats to 255": lambda levels: Image.fromarray(levels.astype(np.float32)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_of_many_bits_opens(grey, kind):
    picture = open_image(DEEP[kind](pixels(grey)))
    assert picture.image.mode == "RGB"
    np.testing.assert_array_equal(pixels(picture.image), pixels(grey))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_files_of_sixteen_bits_open(tmp_path, grey, suffix):
    DEEP["16 bits"](pixels(grey)).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(pixels(open_image(tmp_path / f"a.{suffix}").image), pixels(grey))


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.full((512, 4), 300.0, np.float32), "mode F with levels from 0 to 300: use 0 to 1 or 0 to 255"),
        (np.full((512, 4), -1.0, np.float32), "mode F with levels from -1 to 0"),
        (np.full((512, 4), np.nan, np.float32), "mode F with levels that are NaN"),
        (np.full((512, 4), 70_000, np.int32), "mode I with levels from 0 to 70000: use 0 to 65535 or 0 to 255"),
    ],
)
def test_levels_that_are_none_are_named(levels, words):
    with pytest.raises(ValueError, match=words):
        open_image(Image.fromarray(levels))


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_that_stands_for_transparent_is_silent(tmp_path, mode):
    image = Image.new("L", (20, 512), 0).convert(mode)
    colour = {"L": 0, "RGB": (0, 0, 0), "P": image.getpixel((0, 0)) if mode == "P" else 0}[mode]
    image.save(tmp_path / "a.png", transparency=colour)
    assert open_image(tmp_path / "a.png").image.getextrema() == ((255, 255),) * 3


ODD_PARAMS = SpectrogramParams(
    step_size_ms=512 / 44_100 * 1_000, window_duration_ms=2_048 / 44.1, min_frequency=27.5, max_frequency=9_999.9
)


def test_params_that_are_no_whole_numbers_survive(tmp_path, mel):
    save_image(tmp_path / "a.png", Picture(image_from_mel(mel, ODD_PARAMS)[0], ODD_PARAMS))
    assert open_image(tmp_path / "a.png").params == ODD_PARAMS


def with_whole_exif(path) -> None:
    """Save a picture again as programs do that hold whole numbers only in EXIF, and keep the text."""
    image = Image.open(path)
    exif, text = image.getexif(), PngInfo()
    for tag in (11010, 11020, 11050, 11060):
        exif[tag] = int(exif[tag])
    text.add_text("riffusion_lab", image.info["riffusion_lab"])
    image.save(path, exif=exif, pnginfo=text)


def test_params_survive_a_program_that_rounds_exif(tmp_path, mel):
    path = tmp_path / "a.png"
    save_image(path, Picture(image_from_mel(mel, ODD_PARAMS)[0], ODD_PARAMS))
    with_whole_exif(path)
    assert Image.open(path).getexif()[11010] == 11
    assert open_image(path).params == ODD_PARAMS


def test_a_tag_that_somebody_changed_counts(tmp_path, mel):
    path = tmp_path / "a.png"
    save_image(path, Picture(image_from_mel(mel, ODD_PARAMS)[0], ODD_PARAMS))
    image = Image.open(path)
    exif, text = image.getexif(), PngInfo()
    exif[11010] = 20
    text.add_text("riffusion_lab", image.info["riffusion_lab"])
    image.save(path, exif=exif, pnginfo=text)
    assert open_image(path).params.step_size_ms == 20


@pytest.mark.parametrize("text", ["[1]", "3", '"words"'])
def test_a_text_that_is_no_dict_is_named(tmp_path, grey, text):
    info = PngInfo()
    info.add_text("riffusion_lab", text)
    grey.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"a\.png: its text 'riffusion_lab' is .*, not a dict"):
        open_image(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_columns", [180_000, 360_000])
def test_a_long_picture_of_our_own_opens(tmp_path, n_columns):
    """Pillow warns of an attack from half an hour on, and refuses an hour."""
    save_image(tmp_path / "a.png", Picture(Image.new("L", (n_columns, 512), 255), PARAMS, 1.0))
    assert open_image(tmp_path / "a.png").image.width == n_columns


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is this large."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_there_is_a_bound(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(1_000_000, 512))
    with pytest.raises(ValueError, match="1,000,000 × 512 pixels are more than the limit of 368,640,000"):
        open_image(tmp_path / "a.png")
    Image.new("1", (400_000, 512)).save(tmp_path / "a.tiff", compression="group4")
    with pytest.raises(ValueError, match=r"a\.tiff: .*save it as PNG, or cut it first"):
        open_image(tmp_path / "a.tiff")


def test_an_inverted_picture_is_read(grey):
    inverted = ImageOps.invert(grey)
    np.testing.assert_array_equal(pixels(open_image(inverted, invert=True).image), pixels(grey))
    clip = Clip.from_image(inverted, invert=True)
    np.testing.assert_array_equal(pixels(clip.image), pixels(grey))  # the clip's own is Riffusion's way round


def test_what_is_transparent_is_silent_in_an_inverted_picture_too():
    assert open_image(foreign(mode="RGBA"), invert=True).image.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(("height", "exif"), [(256, {}), (300, {11000: 48_000, 11060: 20_000}), (513, {11005: 1})])
def test_the_error_for_another_height_names_the_params_that_read_it(height, exif):
    image = foreign(exif, size=(20, height))
    with pytest.raises(ValueError, match="pixels high") as caught:
        open_image(image)
    advice = re.search(r"SpectrogramParams\([^)]*\)", str(caught.value)).group()
    params = eval(advice, {"SpectrogramParams": SpectrogramParams})
    assert (params.num_frequencies, params.sample_rate) == (height, exif.get(11000, 44_100))
    assert open_image(image, params).image.height == height


def stereo_without_its_tag() -> Image.Image:
    left = np.tile(np.arange(512)[:, None] // 2, (1, 40)).astype(np.uint8)
    return Image.fromarray(np.stack([0 * left, left, 255 - left], axis=-1))


def false_colours(grey: Image.Image) -> Image.Image:
    table = np.stack([np.arange(256), np.arange(256) // 3, 255 - np.arange(256)], axis=-1).astype(np.uint8)
    return Image.fromarray(table[np.asarray(grey)])


def test_a_remark_on_what_is_likely_read_wrong(grey):
    with pytest.warns(UserWarning, match=r"has no red: .* pass params=SpectrogramParams\(stereo=True\)"):
        open_image(stereo_without_its_tag())
    with pytest.warns(UserWarning, match="is coloured, .*which false colours do not represent"):
        open_image(false_colours(grey))
    with pytest.warns(UserWarning, match="is dark, .*pass invert=True"):
        open_image(Image.new("L", (20, 512), 10))


@pytest.mark.filterwarnings("error")
def test_no_remark_on_what_is_right(grey):
    open_image(grey)
    open_image(stereo_without_its_tag(), STEREO)
    open_image(Image.new("RGB", (20, 512), "white"))
    open_image(Image.new("L", (20, 512), 10), invert=True)
    picture = stereo_without_its_tag()
    picture.getexif()[11005] = 1
    open_image(picture)
    noise = np.random.default_rng(0).normal(0, 4, (512, 40, 3))  # what an autoencoder adds to each colour
    open_image(Image.fromarray(np.clip(np.asarray(grey)[..., None] + noise, 0, 255).astype(np.uint8)))


def test_bytes_and_open_files_are_read(tmp_path, grey):
    grey.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with (tmp_path / "a.png").open("rb") as file:
        for source in (data, io.BytesIO(data), file):
            np.testing.assert_array_equal(pixels(Clip.from_image(source).image), pixels(grey))
    with pytest.raises(OSError, match="the picture is truncated or not a picture"):
        Clip.from_image(data[: len(data) // 2])
    with pytest.raises(OSError, match="is a web address: download the file first"):
        Clip.from_image("https://example.org/a.png")


def test_the_text_of_an_older_picture_is_understood(tmp_path, mel):
    info = PngInfo()
    info.add_text("riffusion_lab", json.dumps({"loop": True, "recipe": {"seed": 1}}))
    image_from_mel(mel, PARAMS)[0].save(tmp_path / "a.png", pnginfo=info)
    picture = open_image(tmp_path / "a.png")
    assert (picture.loop, picture.recipe, picture.params) == (True, {"seed": 1}, PARAMS)


# ---- masks

CLIP_OF_40 = Clip.from_picture(Picture(Image.new("RGB", (40, 512), "white"), PARAMS, 1.0))
PAINTED = np.zeros((512, 40), bool)
PAINTED[100:200, 10:20] = True


def layer(colour: int, mode: str) -> Image.Image:
    """A transparent layer on which something was painted in this grey."""
    rgba = np.zeros((512, 40, 4), np.uint8)
    rgba[PAINTED] = (colour, colour, colour, 255)
    return Image.fromarray(rgba).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [0, 100, 255])
def test_a_transparent_mask_marks_what_is_painted(mode, colour):
    np.testing.assert_array_equal(as_mask(layer(colour, mode), CLIP_OF_40), PAINTED)


def test_a_mask_with_a_transparent_colour_marks_what_is_painted(tmp_path):
    Image.fromarray(PAINTED.astype(np.uint8) * 90 + 7).save(tmp_path / "a.png", transparency=7)
    np.testing.assert_array_equal(as_mask(Image.open(tmp_path / "a.png"), CLIP_OF_40), PAINTED)


def test_an_opaque_mask_goes_by_its_brightness():
    grey = Image.fromarray(PAINTED.astype(np.uint8) * 255)
    turned = grey.transpose(Image.Transpose.ROTATE_180)
    turned.getexif()[274] = 3
    deep = [Image.fromarray(PAINTED.astype(np.uint16) * 65_535), Image.fromarray(PAINTED.astype(np.float32))]
    for mask in (grey, grey.convert("RGBA"), grey.convert("1"), turned, *deep):
        np.testing.assert_array_equal(as_mask(mask, CLIP_OF_40), PAINTED)


def test_half_grey_of_sixteen_bits_is_no_mask():
    with pytest.raises(ValueError, match="the mask is empty"):
        as_mask(Image.fromarray(np.full((512, 40), 30_000, np.uint16)), CLIP_OF_40)
