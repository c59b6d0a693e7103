from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from riffusion_lab.image import Picture, image_from_mel, mel_from_image, open_image, pixels_from_mel, save_image
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
    image = Image.new(mode, size)
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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_common_mode_opens(mode):
    assert open_image(foreign(mode=mode)).image.mode == "RGB"


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
        (torn, "torn.png is torn or no picture"),
        (text, "text.png is torn or no picture"),
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
