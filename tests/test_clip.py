from __future__ import annotations

import base64
import io
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from conftest import RATE, drum_loop, mastered, tone
from riffusion_lab import Clip, SpectrogramParams, audio
from riffusion_lab.display import caption
from riffusion_lab.image import image_from_mel, mel_from_image
from riffusion_lab.params import PRESETS
from riffusion_lab.phase import spectral_convergence, waveform_from_mel
from riffusion_lab.spectrogram import mel_from_waveform

RECIPE = {"prompt": 'a <b>loud</b> "drum" & bass', "seed": 7}


@pytest.fixture(scope="module")
def clip(music) -> Clip:
    """A clip made from a sound."""
    return Clip.from_audio(music, RATE, loop=True, recipe=RECIPE)


@pytest.fixture(scope="module")
def reopened(clip, tmp_path_factory) -> Clip:
    """The same clip by way of its PNG."""
    path = tmp_path_factory.mktemp("clips") / "clip.png"
    clip.save(path)
    return Clip.from_image(path)


def test_clip_from_audio(clip, music):
    assert (clip.sample_rate, clip.duration_s, clip.loop, clip.recipe) == (RATE, 5.12, True, RECIPE)
    assert clip.image.size == (512, 512) and clip.image.mode == "RGB"
    np.testing.assert_array_equal(clip.waveform, music)  # the sound itself, not what its picture says
    assert clip.waveform.dtype == np.float32
    assert repr(clip) == "Clip(5.12 s, 44100 Hz, mono, loop)"


@pytest.mark.parametrize("loop", [False, True])
def test_loop_selects_circular_analysis(music, loop):
    clip = Clip.from_audio(music, RATE, loop=loop)
    mels = {way: mel_from_waveform(torch.tensor(music), clip.params, loop=way) for way in (False, True)}
    pixels = {way: np.array(image_from_mel(mel, clip.params)[0]) for way, mel in mels.items()}
    np.testing.assert_array_equal(clip.image, pixels[loop])
    assert (pixels[False] != pixels[True]).any()


def test_audio_to_png_to_audio(clip, reopened):
    assert (reopened.params, reopened.loop, reopened.recipe) == (clip.params, True, RECIPE)
    assert reopened.duration_s == 5.12
    assert reopened.waveform.shape == clip.waveform.shape
    mel = mel_from_image(clip.image, clip.params, clip.maximum)
    assert spectral_convergence(torch.tensor(reopened.waveform), mel, clip.params, loop=True) < 0.08  # see test_phase
    # what is lost above 10 kHz, to 8 bits and to imperfect phases is less than half a dB
    assert abs(audio.rms_dbfs(reopened.waveform) - audio.rms_dbfs(clip.waveform)) < 0.5


def test_a_quiet_clip_stays_quiet(music):
    quiet = Clip.from_audio(0.01 * music[:, : 441 * 64], RATE)
    picture = quiet.image
    again = Clip.from_image(picture, maximum=quiet.maximum)
    assert abs(audio.rms_dbfs(again.waveform) - audio.rms_dbfs(quiet.waveform)) < 1
    assert audio.rms_dbfs(Clip.from_image(picture).waveform) == pytest.approx(-18, abs=0.1)  # no level known


@pytest.mark.slow
def test_a_mastered_song_keeps_its_level_through_a_png(tmp_path, music):
    """Its peaks were pressed to 6.5 dB above its RMS; new phases raise them to 12, and it was turned down by 6."""
    song = Clip.from_audio(mastered(music, 6.5), RATE)
    song.save(tmp_path / "song.png")
    again = Clip.from_image(tmp_path / "song.png")
    assert abs(audio.rms_dbfs(again.waveform) - audio.rms_dbfs(song.waveform)) < 1
    assert np.abs(again.waveform).max() <= 1
    assert again.limited_db > 3
    assert f"peaks limited by {again.limited_db:.0f} dB" in caption(again)
    mel = mel_from_image(song.image, song.params, song.maximum)
    before_limiting = spectral_convergence(waveform_from_mel(mel, song.params), mel, song.params)
    assert spectral_convergence(torch.tensor(again.waveform), mel, song.params) < 1.2 * before_limiting


def test_a_sound_that_needs_no_limiter_is_unchanged_to_the_bit(clip, reopened):
    mel = mel_from_image(clip.image, clip.params, clip.maximum)
    plain = waveform_from_mel(mel, clip.params, loop=True).numpy()
    np.testing.assert_array_equal(reopened.waveform, plain)
    assert reopened.limited_db == clip.limited_db == 0
    assert "limited" not in caption(reopened)


def test_a_clip_does_not_change(clip):
    with pytest.raises(ValueError, match="read-only"):
        clip.waveform[0, 0] = 1
    clip.image.paste("black", (0, 0, 9, 9))
    clip.recipe["seed"] = 8
    assert clip.recipe == RECIPE
    assert clip.image.getpixel((0, 0)) != (0, 0, 0)


@pytest.mark.parametrize(
    ("n_samples", "columns"), [(225_792 + 220, 512), (225_792 - 220, 512), (221, 1), (44_100, 100)]
)
def test_waveforms_are_whole_columns(n_samples, columns):
    clip = Clip.from_audio(tone(440, n_samples), RATE)
    assert clip.waveform.shape == (1, 441 * columns)
    assert clip.image.size == (columns, 512)


def test_other_rates_and_channels_come_in():
    stereo = np.stack([tone(440, 48_000, rate=48_000), tone(880, 48_000, rate=48_000)])
    clip = Clip.from_audio(stereo, 48_000)
    assert clip.waveform.shape == (1, 44_100)
    spectrum = np.abs(np.fft.rfft(clip.waveform[0]))
    assert sorted(spectrum.argsort()[-2:]) == [440, 880]  # 1 s: bins of 1 Hz
    both = Clip.from_audio(stereo, 48_000, params=SpectrogramParams(stereo=True))
    assert both.waveform.shape == (2, 44_100)
    assert repr(both) == "Clip(1.00 s, 44100 Hz, stereo)"
    assert [int(np.abs(np.fft.rfft(channel)).argmax()) for channel in both.waveform] == [440, 880]
    picture = np.array(both.image)
    rows = [int(picture[..., colour].mean(axis=1).argmin()) for colour in (1, 2)]  # left in green, right in blue
    assert [511 - row for row in rows] == [pytest.approx(both.params.band(hz), abs=1) for hz in (440, 880)]


def test_foreign_pictures_play():
    pixels = np.full((512, 30), 255, np.uint8)
    pixels[511 - 100] = 0  # one loud line
    clip = Clip.from_image(Image.fromarray(pixels))
    assert (clip.loop, clip.recipe, clip.maximum, clip.duration_s) == (False, None, None, 0.3)
    peak_hz = np.abs(np.fft.rfft(clip.waveform[0])).argmax() / 0.3
    assert peak_hz == pytest.approx(clip.params.frequency_hz(100), abs=4)  # bins of 3.3 Hz
    assert -18.1 < audio.rms_dbfs(clip.waveform) < -17.9
    assert audio.peak_dbfs(clip.waveform) <= -1 + 0.01


def test_silence_plays_and_shows(tmp_path):
    silent = Clip.from_audio(np.zeros(441 * 8), RATE)
    silent.save(tmp_path / "silent.png")
    again = Clip.from_image(tmp_path / "silent.png")
    for clip in (silent, again):
        assert not clip.waveform.any()
        assert "peak −∞ dBFS · RMS −∞ dBFS" in clip._repr_html_()
        assert "silence" in clip._repr_html_()


def test_long_sounds_warn_and_work():
    with pytest.warns(UserWarning, match="the sound lasts 61 s"):
        clip = Clip.from_audio(np.zeros(61 * 8_000), 8_000)
    assert clip.image.size == (6_100, 512)
    with pytest.warns(UserWarning, match="lasts 61 s"):
        Clip.from_image(Image.new("RGB", (6_100, 512), "white"))


def test_too_loud_sounds_are_turned_down():
    with pytest.warns(UserWarning, match="peaks at 2"):
        clip = Clip.from_audio(tone(440, 44_100, amplitude=2.0), RATE)
    assert np.abs(clip.waveform).max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_save_and_read_again(clip, tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    clip.save(path)
    again = Clip.from_audio(path, loop=True)
    assert again.duration_s == pytest.approx(clip.duration_s, abs=0.03)  # one lossy block
    assert audio.rms_dbfs(again.waveform) == pytest.approx(audio.rms_dbfs(clip.waveform), abs=0.3)
    with soundfile.SoundFile(path) as file:
        assert file.title == RECIPE["prompt"]
        assert json.loads(file.comment) == RECIPE
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_eight_channels_are_mixed_and_levels_kept():
    sound = np.stack([tone(441)] * 8)
    assert audio.rms_dbfs(Clip.from_audio(sound, RATE).waveform) == pytest.approx(audio.rms_dbfs(sound), abs=0.01)
    with pytest.raises(ValueError, match="8 channels: stereo takes one or two"):
        Clip.from_audio(sound, RATE, params=PRESETS["stereo"])


@pytest.mark.slow
def test_an_hour_works_with_a_warning():
    with pytest.warns(UserWarning, match="lasts 3600 s"):
        clip = Clip.from_audio(np.zeros(3600 * RATE, np.float32), RATE)
    assert clip.duration_s == 3600


def test_a_wide_picture_works_with_a_warning():
    with pytest.warns(UserWarning, match="lasts 200 s"):
        assert Clip.from_image(Image.new("RGB", (20_000, 512), "white")).duration_s == 200


@pytest.mark.parametrize("rate", [1, 10_000_000])
def test_impossible_rates_are_named(rate):
    with pytest.raises(ValueError, match=f"sample_rate must be between 1000 and 1000000, not {rate}"):
        Clip.from_audio(tone(441), rate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stereo", "20 kHz", "stereo, 20 kHz"])
def test_presets_there_and_back(name, tmp_path):
    sound = np.stack([tone(441), tone(14_112)])  # only with 20 kHz the right one can be heard
    Clip.from_audio(sound, RATE, params=PRESETS[name]).save(tmp_path / "clip.png")
    again = Clip.from_image(tmp_path / "clip.png")
    assert again.params == PRESETS[name]
    power = np.abs(np.fft.rfft(again.waveform, axis=1)) ** 2
    hz = np.fft.rfftfreq(again.waveform.shape[1], 1 / RATE)
    shares = {f: power[:, np.abs(hz - f) < 150].sum(axis=1) / power.sum(axis=1) for f in (441, 14_112)}
    if name == "stereo, 20 kHz":
        assert shares[441][0] > 0.9 and shares[14_112][1] > 0.9
    if name == "stereo":
        assert shares[441][0] > 0.9 and again.waveform[1].std() < 0.01 * again.waveform[0].std()
    if name == "20 kHz":
        # A band is 100 Hz wide up there: a tone comes back as narrow noise of the same amplitude sum, less power.
        assert shares[441][0] + shares[14_112][0] > 0.9 and shares[14_112][0] > 0.1


def test_save_takes_known_endings_and_folders_only(clip, tmp_path):
    for name, error, words in [
        ("clip.jpg", ValueError, r"'.jpg': use .png|'.jpg'.*ffmpeg"),
        ("clip", ValueError, "''"),
        ("none/clip.png", OSError, "folder .*none does not exist"),
        ("none/clip.wav", OSError, "folder .*none does not exist"),
    ]:
        with pytest.raises(error, match=words):
            clip.save(tmp_path / name)
    (tmp_path / "is_folder.wav").mkdir()
    with pytest.raises(OSError, match="it is a folder"):
        clip.save(tmp_path / "is_folder.wav")
    assert [entry.name for entry in tmp_path.iterdir()] == ["is_folder.wav"]


@pytest.mark.parametrize("name", ["clip.png", "clip.wav"])
def test_a_failed_save_leaves_the_old_file(clip, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("riffusion_lab.files.os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        clip.save(tmp_path / name)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(name, b"old")]


@pytest.mark.parametrize(
    ("sound", "options", "error", "words"),
    [
        (np.zeros(0), {"sample_rate": RATE}, ValueError, "0 samples at 44100 Hz are too short"),
        (np.zeros(1), {"sample_rate": RATE}, ValueError, "1 samples at 44100 Hz are too short"),
        (np.full(900, np.nan), {"sample_rate": RATE}, ValueError, "900 samples are NaN"),
        (np.zeros(900), {}, ValueError, "pass sample_rate"),
        (np.zeros(900), {"sample_rate": 0}, ValueError, "sample_rate must be between 1000 and 1000000, not 0"),
        (np.zeros(900), {"sample_rate": float("nan")}, ValueError, "sample_rate must be finite"),
        (np.zeros(900), {"sample_rate": "44100"}, TypeError, "'44100'"),
        (np.zeros(900), {"sample_rate": RATE, "recipe": "jazz"}, TypeError, "recipe must be a dict"),
        ("no_such_file.wav", {}, OSError, "no_such_file.wav does not exist"),
        ("no_such_file.wav", {"sample_rate": RATE}, ValueError, "leave it out"),
        (None, {"sample_rate": RATE}, TypeError, "dtype object"),
    ],
)
def test_bad_sounds_are_named(sound, options, error, words):
    with pytest.raises(error, match=words):
        Clip.from_audio(sound, **options)


def test_bad_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match="1 × 1 pixels"):
        Clip.from_image(Image.new("RGB", (1, 1)))
    with pytest.raises(TypeError, match="int is not a picture"):
        Clip.from_image(3)
    Image.new("RGB", (300, 300)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="small.png: 300 × 300"):
        Clip.from_image(tmp_path / "small.png")


class Elements(HTMLParser):
    """Collects the elements of an HTML text, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] = dict(attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def shown(clip) -> Elements:
    return Elements(clip._repr_html_())


def test_a_clip_shows_itself(clip, shown):
    assert set(shown.found) == {"figure", "img", "br", "audio", "figcaption"}  # no <source>, nothing from the prompt
    picture = shown.found["img"]
    assert "strongest near" in picture["alt"] and "5.12 s" in picture["alt"]
    assert picture["src"].startswith("data:image/png;base64,")
    player = shown.found["audio"]
    assert player["preload"] == "none" and "controls" in player
    sound = base64.b64decode(player["src"].removeprefix("data:audio/mpeg;base64,"))
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate == RATE
    # not normalized: as loud as the clip
    assert audio.rms_dbfs(samples) == pytest.approx(audio.rms_dbfs(clip.waveform), abs=0.3)
    assert RECIPE["prompt"] in shown.text
    assert re.search(r"5\.12 s · 44,100 Hz · mono · peak −\d+\.\d dBFS · RMS −\d+\.\d dBFS · loop$", shown.text)


def test_what_is_shown_is_small_and_always_the_same(clip, music):
    text = clip._repr_html_()
    assert len(text) < 150_000
    assert Clip.from_audio(music, RATE, loop=True, recipe=RECIPE)._repr_html_() == text
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 225_792)
    assert len(Clip.from_audio(noise, RATE)._repr_html_()) < 150_000  # the hardest to compress


def test_formats_that_ipython_asks_for(clip):
    from IPython.core.formatters import DisplayFormatter

    bundle, _ = DisplayFormatter().format(clip, include={"text/plain", "text/html"})
    assert bundle["text/plain"] == "Clip(5.12 s, 44100 Hz, mono, loop)"
    assert bundle["text/html"].startswith("<figure")


def test_ordinary_use_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = Clip.from_audio(drum_loop()[: 441 * 64], RATE)
        clip.save(tmp_path / "clip.png")
        Clip.from_image(tmp_path / "clip.png")._repr_html_()


# ---- sounds and files as people have them


def test_a_clip_of_one_channel():
    stereo = np.stack([tone(441, RATE), tone(882, RATE)])
    loudest = {
        channel: int(np.abs(np.fft.rfft(Clip.from_audio(stereo, RATE, channel=channel).waveform[0])).argmax())
        for channel in ("left", "right", 0, 1)
    }  # of one second: rows of 1 Hz
    assert loudest == {"left": 441, "right": 882, 0: 441, 1: 882}
    side = Clip.from_audio(np.stack([tone(441, RATE), -tone(441, RATE)]), RATE, channel="side")
    np.testing.assert_allclose(side.waveform[0], tone(441, RATE), atol=1e-6)
    both = Clip.from_audio(stereo, RATE, channel="left", params=PRESETS["stereo"])
    np.testing.assert_array_equal(both.waveform[0], both.waveform[1])
    with pytest.raises(ValueError, match="the sound: channel is 'back'"):
        Clip.from_audio(stereo, RATE, channel="back")


def test_a_mix_that_cancels_says_so():
    with pytest.warns(UserWarning, match="the channels cancel each other, their mix is silent"):
        Clip.from_audio(np.stack([tone(441), -tone(441)]), RATE)


def test_a_clip_is_no_sound_to_make_another_of(clip):
    with pytest.raises(TypeError, match=r"a clip already: .*from_audio\(clip\.waveform, clip\.sample_rate\)"):
        Clip.from_audio(clip)


@pytest.mark.parametrize("kind", ["wav", "FLAC", ".mp3", "ogg", "png"])
def test_a_clip_is_saved_to_an_open_file(clip, tmp_path, kind):
    memory, named = io.BytesIO(), tmp_path / f"clip.{kind.lower().lstrip('.')}"
    clip.save(memory, format=kind)
    with named.open("wb") as file:
        clip.save(file)
    assert memory.getvalue() == named.read_bytes() or kind == "ogg"  # Ogg has a random number in it
    if kind == "png":
        assert Clip.from_image(memory).recipe == RECIPE
    else:
        assert Clip.from_audio(memory).duration_s == pytest.approx(clip.duration_s, abs=0.03)


def test_the_format_may_be_another_than_the_name_says(clip, tmp_path):
    clip.save(tmp_path / "clip", format="wav")
    assert soundfile.info(tmp_path / "clip").format == "WAV"


def test_bad_targets_are_named(clip, tmp_path):
    with pytest.raises(ValueError, match="an open file without a name: pass format='png', 'wav'"):
        clip.save(io.BytesIO())
    with pytest.raises(ValueError, match="'.jpeg'"):
        clip.save(io.BytesIO(), format="jpeg")
    with pytest.raises(TypeError, match="the file is open as text: open it in binary mode"):
        clip.save(io.StringIO(), format="wav")
    with (tmp_path / "a.wav").open("w") as file, pytest.raises(TypeError, match=r"a\.wav is open as text"):
        clip.save(file)


def test_clips_are_multiplied_and_added_from_either_side():
    clip = Clip.from_audio(tone(441, 44_100), RATE)
    for repeated in (2 * clip, clip * 2, np.int64(2) * clip, clip * np.int64(2), sum([clip, clip])):
        np.testing.assert_array_equal(repeated.waveform, np.tile(clip.waveform, 2))
    assert sum([clip]) is clip
    for wrong in (lambda: 1 + clip, lambda: "a" + clip, lambda: 2.5 * clip, lambda: np.ones(3) * clip):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize(("rate", "played"), [(96_000, 48_000), (88_200, 44_100), (37_800, 44_100), (192_000, 48_000)])
def test_a_clip_of_a_rate_that_mp3_has_not_can_be_heard(rate, played):
    params = SpectrogramParams(sample_rate=rate, max_frequency=8_000)
    clip = Clip.from_audio(tone(441, rate, rate=rate), rate, params=params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is heard is no file: nothing to warn of
        shown = Elements(clip._repr_html_())
    mp3 = base64.b64decode(shown.found["audio"]["src"].removeprefix("data:audio/mpeg;base64,"))
    samples, found = soundfile.read(io.BytesIO(mp3))
    assert found == played
    assert audio.rms_dbfs(samples) == pytest.approx(audio.rms_dbfs(clip.waveform), abs=0.5)  # padded by up to 0.1 s
    assert f"{rate:,} Hz" in shown.text  # the clip's


def test_an_inverted_picture_sounds_like_the_other(clip):
    inverted = Image.fromarray(255 - np.asarray(clip.image))
    again = Clip.from_image(inverted, invert=True, maximum=clip.maximum)
    np.testing.assert_array_equal(again.image, clip.image)
