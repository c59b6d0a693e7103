"""What readers without a kernel see of each widget: a figure of text, picture and sound; words by their kind."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pytest
import soundfile
from PIL import Image

import riffusion_lab
from conftest import RATE, drum_loop, tone
from riffusion_lab import Clip
from riffusion_lab.training import vocabulary as taught
from riffusion_lab.widgets import MaskPainter, Panel, Player, Recorder, Studio
from riffusion_lab.widgets.base import FIGURE_BYTES, WIDGET_VIEW
from riffusion_lab.widgets.figures import strip_html
from riffusion_lab.widgets.words import FILLERS, KINDS, word_groups

EVIL = "<img src=x onerror='window.ran = true'>"


@pytest.fixture(scope="module")
def riffling_settings():
    folder = Path(riffusion_lab.__file__).parent / "weights" / "riffling"
    return json.loads((folder / "riffusion_lab.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip():
    return Clip.from_audio(drum_loop(), RATE, loop=True, recipe={"prompt": EVIL})


def text_of(figure):
    """Return what a reader of a figure sees, in one line."""
    parser, texts = HTMLParser(), []
    parser.handle_data = texts.append
    parser.feed(figure)
    return " ".join(" ".join(texts).split())


def bytes_of(figure, kind):
    return base64.b64decode(re.search(f'data:{kind};base64,([^"]+)', figure)[1])


def duration_of(figure):
    return soundfile.info(io.BytesIO(bytes_of(figure, "audio/mpeg"))).duration


def shown(widget, monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: bundles.append(data))
    widget._ipython_display_()
    return bundles


def build(kind, clip, pipe, tmp_path):
    builders = {
        "player": lambda: Player(clip),
        "painter": lambda: MaskPainter(clip, (1, 2)),
        "recorder": Recorder,
        "studio": lambda: Studio(pipe, prompt=EVIL, folder=tmp_path, words=True),
        "panel": lambda: Panel([widgets.Text(EVIL, description="From")], caption=EVIL),
    }
    return builders[kind]()


@pytest.mark.parametrize("kind", ["player", "painter", "recorder", "studio", "panel"])
def test_every_widget_leaves_a_figure_and_nothing_that_looks_broken(kind, clip, pipe, tmp_path, monkeypatch):
    widget = build(kind, clip, pipe, tmp_path)
    figure, view = shown(widget, monkeypatch)
    assert list(view) == [WIDGET_VIEW]
    assert figure["text/plain"] == repr(widget) and "children=" not in repr(widget)
    html = figure["text/html"]
    assert html.startswith('<div class="rl-static">') and "<figcaption>" in html and "<img src=x" not in html
    assert len(html.encode()) <= FIGURE_BYTES
    assert widget._figure_html() == widget._figure_html()


def test_long_clips_are_played_in_part():
    """60 s of noise, which MP3 packs badly: the picture stays whole, and the caption says how much is played."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 60 * RATE)).astype(np.float32)
    figure = Player(Clip.from_audio(noise, RATE))._figure_html()
    assert len(figure) <= FIGURE_BYTES
    played_s = int(re.search(r"the first (\d+) s are played", figure)[1])
    assert 5 <= played_s < 30 and duration_of(figure) == pytest.approx(played_s, abs=0.1)  # MP3's frames


def test_painter_shows_its_mask(clip):
    figure = MaskPainter(clip, (0, 2.56))._figure_html()
    picture = np.asarray(Image.open(io.BytesIO(bytes_of(figure, "image/png"))).convert("RGB"), int)
    green, red = picture[..., 1], picture[..., 0]
    assert (green - red)[:, :299].mean() > 40 > (green - red)[:, 301:].mean()  # the tint is turquoise
    assert "marked to be inpainted: 50.0% of the picture" in text_of(figure)


def test_recorder_shows_its_last_recording():
    recorder = Recorder()
    assert text_of(recorder._figure_html()).startswith("● Record: a button that records the microphone")
    recorder.clip = Clip.from_audio(tone(441, RATE), RATE)
    assert duration_of(recorder._figure_html()) == pytest.approx(1, abs=0.1)


def test_studio_shows_what_it_asks_and_its_clip(clip, pipe, tmp_path):
    studio = Studio(pipe, prompt="slow piano", seed=7, folder=tmp_path, words=True)
    text = text_of(studio._figure_html())
    assert "Prompt slow piano" in text and "Seed 7" in text and "Generate · Cancel" in text
    assert "run this cell" in text and "<audio" not in studio._figure_html()
    studio.clip = clip * 8
    assert duration_of(studio._figure_html()) > 5 and len(studio._figure_html()) <= FIGURE_BYTES
    sources = Studio(pipe, prompt="piano", folder=tmp_path, source={"low": clip, "high": clip})
    assert "Source ● low ○ high ○ the clip below" in text_of(sources._figure_html())


def test_panel_is_a_table_of_its_parts(clip):
    choice = widgets.RadioButtons(options=["waves", "drums"], value=None, description="It is")
    slider = widgets.FloatSlider(value=0.5, description="Alpha")
    parts = [choice, widgets.HBox([slider, widgets.Button(description="Go")]), widgets.Label(), widgets.Output()]
    panel = Panel([*parts, widgets.FileUpload(), Recorder(), Player(clip)], caption="A riddle.")
    figure = panel._figure_html()
    text = text_of(figure)
    assert "It is ○ waves ○ drums" in text and "Alpha 0.5" in text and "Buttons Go · Upload · Record" in text
    assert figure.count("<audio") == 1
    assert text.endswith("A riddle. It answers where a kernel runs: run this cell.")
    assert repr(Panel([choice, Recorder()])) == "Panel(RadioButtons, Recorder)"
    choice.value = "drums"
    assert "It is ○ waves ● drums" in text_of(panel._figure_html())


def test_strip_has_prompts_and_sound(clip):
    other = Clip.from_audio(tone(441), RATE, loop=True)
    figure = strip_html([("drums", clip), ("drums", clip), (EVIL, other)], "Live. Run this cell.")
    assert figure == strip_html([("drums", clip), ("drums", clip), (EVIL, other)], "Live. Run this cell.")
    assert "<img src=x" not in figure and "drums, then &lt;img" in figure
    assert Image.open(io.BytesIO(bytes_of(figure, "image/png"))).size == (600, 200)
    assert duration_of(figure) == pytest.approx(15.36, abs=0.1) and len(figure) <= FIGURE_BYTES
    assert text_of(figure) == "Live. Run this cell."
    assert duration_of(strip_html([("drums", clip)], "Live.")) == pytest.approx(5.12, abs=0.1)


# Words


def test_kinds_are_those_that_riffling_was_taught():
    """Widgets must not import the training, so the names stand there twice."""
    names = {
        "instruments": [instrument.names for instrument in taught.INSTRUMENTS.values()],
        "styles": taught.STYLE_NAMES.values(),
        "drums": [taught.DRUM_NAMES],
        "tempo": [[word] for words in taught.TEMPO_WORDS.values() for word in words],
        "mood": [[word] for words in taught.MODE_WORDS.values() for word in words],
        "texture": [[word] for word in taught.TEXTURES],
        "sounds": taught.EFFECT_NAMES.values(),
    }
    assert KINDS == {kind: [", ".join(each) for each in things] for kind, things in names.items()}


def test_words_are_grouped_and_none_is_lost(riffling_settings):
    words = riffling_settings["vocabulary"]
    groups = word_groups(words, riffling_settings["tempi_bpm"])
    assert list(groups) == [*KINDS, "more words"]
    assert "church bells" in groups["instruments"][0] and "tubular bells" in groups["instruments"][1]
    assert "94 bpm" in groups["tempo"][0]
    names = [name for pair in groups.values() for each in pair for name in each]
    shown = {word for name in names for word in re.findall(r"[\w'-]+", name)}
    assert {word.lower() for word in words} - shown <= FILLERS


def test_words_of_another_model_stay_as_they_are():
    assert word_groups(["gamelan", "Piano", "rainfall forest"]) == {
        "instruments": (["piano"], []),
        "sounds": (["rainfall"], []),  # the usual name, "rain", is not known
        "more words": (["gamelan", "rainfall forest"], []),
    }
    assert word_groups([]) == {}
