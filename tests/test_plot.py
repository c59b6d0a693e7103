from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from conftest import RATE, tone
from riffusion_lab import Clip, SpectrogramParams, plot
from riffusion_lab.display import clip_html, parts_html


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A tone of 4 kHz in the first half of one second."""
    sound = tone(4_000, 44_100)
    sound[22_050:] = 0
    return Clip.from_audio(sound, RATE)


def test_axes_are_seconds_and_hertz(clip):
    ax = plot.spectrogram(clip, title="a tone")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("time (s)", "frequency (Hz)", "a tone")
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (0, 10_000)
    # on the mel scale 1 kHz is 1000 of 3073 mel up: height 0.325
    height = ax.transAxes.inverted().transform(ax.transData.transform((0, 1_000)))[1]
    assert height == pytest.approx(0.325, abs=0.002)


def test_scale_takes_no_places_at_all(clip):
    """Matplotlib 3.10 asks where the ticks between the ticks are, of which there are none."""
    transform = plot.spectrogram(clip).yaxis.get_transform()
    assert transform.transform(np.array([])).shape == (0,)
    assert transform.inverted().transform(np.array([])).shape == (0,)


def test_the_tone_is_where_the_axes_say(clip):
    ax = plot.spectrogram(clip)
    canvas = ax.figure.canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int).sum(axis=2)

    def brightness(time_s: float, frequency_hz: float) -> int:
        x, y = ax.transData.transform((time_s, frequency_hz))
        row, column = pixels.shape[0] - 1 - round(y), round(x)
        return pixels[row - 1 : row + 2, column].max()  # the line is about a pixel high

    assert brightness(0.25, 4_000) > 400 > 100 > brightness(0.25, 1_000)
    assert brightness(0.75, 4_000) < 100


def test_parts_of_a_long_clip_are_marked(clip):
    ax = plot.spectrogram(clip)
    plot.mark_parts(ax, {"tone": 0.0, "silence": 0.5})
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [("tone", 0.25), ("silence", 0.75)]
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5]


def test_clips_in_one_player_have_their_names(clip):
    page = parts_html({"first": clip, "second": clip})
    assert page.count("<audio") == 1 and "2.00 s" in page
    assert page != clip_html(clip + clip)  # which has no names
    with pytest.raises(ValueError, match="no clip"):
        parts_html({})


def test_given_axes_and_colorbar_are_used(clip):
    figure = Figure()
    ax = figure.subplots()
    assert plot.spectrogram(clip, ax, colorbar=True) is ax
    assert [axes.get_ylabel() for axes in figure.axes] == ["frequency (Hz)", "level (dB)"]


def test_decibels_are_relative_to_the_loudest(clip):
    level = plot.decibels(clip)
    assert level.shape == (512, 100)
    assert level.max() == pytest.approx(0, abs=1e-4) and level.min() == -80
    assert level[:, 90:].max() == -80  # silence


def test_description_says_what_is_seen(clip):
    text = plot.description(clip)
    assert text.startswith("Spectrogram of 1.00 s of sound")
    assert "0 to 10,000 Hz" in text and "strongest near 4,000 Hz" in text
    assert plot.description(Clip.from_audio(np.zeros(44_100), RATE)).endswith("silence")


def test_png_is_small_stable_and_free_of_dates(clip):
    png = plot.spectrogram_png(clip)
    assert png == plot.spectrogram_png(clip)
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (600, 220)
    assert not {"Software", "Creation Time", "date"} & set(picture.info)


def contrast(one, other):
    """As WCAG 2 defines it; colours in [0, 1]."""

    def luminance(colour):
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#111111", "#0d1117"], ids=["white", "JupyterLab dark", "GitHub dark"])
def test_figures_can_be_read_on_a_light_and_on_a_dark_page(clip, page):
    """The ground is the page's. Text needs a contrast of 4.5 on white; what is drawn needs 3 (WCAG 2, 1.4.11)."""
    style = matplotlib.rc_params_from_file(plot.STYLE)
    page = to_rgb(page)
    for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"):
        assert contrast(to_rgb(style[name]), page) > (4.5 if page == (1, 1, 1) else 4)
    for line in style["axes.prop_cycle"]:
        assert contrast(to_rgb(line["color"]), page) > 3
    picture = np.asarray(Image.open(io.BytesIO(plot.spectrogram_png(clip))).convert("RGBA"))
    assert picture[0, 0, 3] == 0 and picture[60, 300, 3] == 255  # a corner, and the spectrogram
    assert set(np.unique(picture[..., 3])) == set(np.rint(np.linspace(0, 255, plot.OPACITIES)))
    ink = picture[picture[..., 3] < 255][:, :3]
    assert (ink == plot.INK).all()


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_for_papers(clip, suffix, start):
    file = io.BytesIO()
    plot.spectrogram(clip, title="a tone").figure.savefig(file, format=suffix)
    assert file.getvalue().startswith(start)


def test_global_style_is_left_alone(clip):
    before = dict(matplotlib.rcParams)
    plot.spectrogram(clip)
    assert dict(matplotlib.rcParams) == before


def test_stereo_and_one_column():
    params = SpectrogramParams(stereo=True)
    ax = plot.spectrogram(Clip.from_audio(np.stack([tone(440, 441)] * 2), RATE, params=params))
    assert ax.get_xlim() == (0, 0.01)
