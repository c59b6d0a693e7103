from __future__ import annotations

import math
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from conftest import chirp, tone
from external import require
from riffusion_lab import audio, soundfiles

RATE = 44_100


def test_levels_in_decibels():
    sine = tone(441, amplitude=1.0)[None]
    assert audio.peak_dbfs(sine) == pytest.approx(0, abs=0.01)
    assert audio.rms_dbfs(sine) == pytest.approx(-3.01, abs=0.01)
    assert audio.peak_dbfs(np.zeros((1, 9))) == audio.rms_dbfs(np.zeros((1, 9))) == -math.inf


def test_set_level_goes_by_rms_and_spares_the_peak():
    quiet = audio.set_level(tone(441, amplitude=1e-3)[None])
    assert audio.rms_dbfs(quiet) == pytest.approx(-18, abs=0.01)
    click = np.full((1, 1_000), 1e-4, np.float32)
    click[0, 500] = 1.0
    assert audio.peak_dbfs(audio.set_level(click)) == pytest.approx(-1, abs=0.01)
    assert not audio.set_level(np.zeros((1, 9), np.float32)).any()
    assert quiet.dtype == np.float32


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48_000, 44_100), (22_050, 44_100), (210, 441), (44_099, 44_100)])
def test_resampling_keeps_a_tone(from_rate, to_rate):
    cycles = 0.01  # per sample at from_rate
    n = from_rate * 2 if from_rate < 1_000 else from_rate // 2
    window = np.hanning(n)  # away from the ends
    sound = torch.tensor(np.cos(2 * np.pi * cycles * np.arange(n)) * window, dtype=torch.float32)
    resampled = audio.resample(sound, from_rate, to_rate)
    assert len(resampled) == round(n * to_rate / from_rate)
    t = np.arange(len(resampled)) * from_rate / to_rate  # in samples at from_rate
    expected = np.cos(2 * np.pi * cycles * t) * np.interp(t, np.arange(n), window)
    np.testing.assert_allclose(resampled.numpy(), expected, atol=1e-3)  # the window is not quite band-limited


def test_resampling_keeps_a_loop_closed():
    # 101 whole cycles in 400 ms; beginning with a crest
    loop, expected = (np.cos(2 * np.pi * 101 * np.arange(n) / n).astype(np.float32) for n in (17_640, 19_200))
    loop = torch.tensor(loop)
    closed = audio.resample(loop, 44_100, 48_000, loop=True)
    np.testing.assert_allclose(closed.numpy(), expected, atol=1e-4)  # float32 FFT
    assert np.abs(audio.resample(loop, 44_100, 48_000).numpy() - expected).max() > 0.01  # ends against silence


@pytest.mark.parametrize(
    ("suffix", "error"), [(".wav", 1 / 32_768), (".flac", 1 / 32_768), (".ogg", 0.05), (".mp3", 0.05)]
)
def test_files_bring_the_sound_back(tmp_path, suffix, error):
    sound = np.stack([chirp(100, 5_000, 88_200), tone(441, 88_200)])
    data = audio.encode_audio(sound, RATE, audio.FORMATS[suffix], title="chirp", comment="{}")
    path = tmp_path / f"sound{suffix}"
    path.write_bytes(data)
    waveform, rate = audio.read_audio(path)
    assert rate == RATE and waveform.dtype == np.float32
    assert waveform.shape == sound.shape
    # 16 bits for the lossless ones; the others are lossy, and start and stop abruptly
    assert np.abs(waveform - sound)[:, 2_000:-2_000].max() <= error
    with soundfile.SoundFile(path) as file:
        assert (file.title, file.comment) == ("chirp", "{}")


@pytest.mark.parametrize("suffix", [*audio.FORMATS, ".m4a", ".opus"])
def test_every_format_is_written_and_read(tmp_path, suffix):
    if suffix not in audio.FORMATS:
        require("ffmpeg")
    path = tmp_path / f"sound{suffix}"
    path.write_bytes(audio.encode_for(suffix, tone(441, 88_200)[None], RATE, title="tone", comment="{}"))
    waveform, rate = audio.read_audio(path)
    at_441_hz = np.abs(np.fft.rfft(waveform[0], rate))[441]  # an FFT of a second: a row for each hertz
    assert at_441_hz == pytest.approx(np.abs(np.fft.rfft(waveform[0], rate)).max())
    assert audio.rms_dbfs(waveform) == pytest.approx(audio.rms_dbfs(tone(441, 88_200)), abs=0.3)


@pytest.mark.parametrize("with_ffmpeg", [True, False])
def test_other_formats_are_refused(monkeypatch, with_ffmpeg):
    if with_ffmpeg:
        require("ffmpeg")
    else:
        monkeypatch.setattr(soundfiles.shutil, "which", lambda _: None)
    words = r"'\.jpg'.*give \.png for a picture, \.wav" + ("" if with_ffmpeg else ".*install ffmpeg")
    with pytest.raises(ValueError, match=words):
        audio.encode_for(".jpg", tone(441, 4_410)[None], RATE)


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "MP3"])
def test_bytes_are_the_same_at_every_call(file_format):
    sound = chirp(100, 5_000, 44_100)[None]
    assert audio.encode_audio(sound, RATE, file_format) == audio.encode_audio(sound, RATE, file_format)


def test_long_ogg_is_written_in_blocks(tmp_path):
    path = tmp_path / "long.ogg"
    path.write_bytes(audio.encode_audio(np.zeros((1, 441_000), np.float32), RATE, "OGG"))
    assert audio.read_audio(path)[0].shape == (1, 441_000)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg: apt install ffmpeg")
def test_ffmpeg_reads_what_soundfile_cannot(tmp_path):
    path = tmp_path / "sound.m4a"
    wav = audio.encode_audio(tone(441)[None], RATE, "WAV")
    subprocess.run(["ffmpeg", "-v", "error", "-i", "-", str(path)], input=wav, check=True)
    waveform, rate = audio.read_audio(path)
    assert rate == RATE
    assert audio.rms_dbfs(waveform) == pytest.approx(-9.03, abs=0.2)  # AAC pads the ends


@pytest.mark.parametrize("with_ffmpeg", [False, True])
def test_bad_files_are_named(tmp_path, monkeypatch, with_ffmpeg):
    if not with_ffmpeg:
        monkeypatch.setattr(soundfiles.shutil, "which", lambda _: None)
    elif not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg: apt install ffmpeg")
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 44_100)).astype(np.float32)
    for name in ("torn.wav", "torn.flac"):
        data = audio.encode_audio(sound, RATE, audio.FORMATS[name[4:]])
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp3").write_text("no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, words in [
        ("torn.wav", "torn.wav is torn"),
        ("torn.flac", "torn.flac is torn"),
        ("text.mp3", "text.mp3 is torn or no known sound"),
        ("empty.wav", "empty.wav is empty"),
        ("none.wav", "none.wav does not exist"),
        ("", "is a folder"),
    ]:
        with pytest.raises(OSError, match=words):
            audio.read_audio(tmp_path / name)


def test_arrays_of_every_kind():
    assert audio.as_waveform([0.0, 0.5]).shape == (1, 2)
    assert audio.as_waveform(torch.zeros(2, 9)).shape == (2, 9)
    integers = np.array([-32_768, 16_384], np.int16)
    np.testing.assert_array_equal(audio.as_waveform(integers), [[-1.0, 0.5]])


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        (np.array([0.0, np.nan, np.inf, 0.0]), ValueError, "2 samples are NaN or infinite, the first is number 1"),
        (np.zeros((2, 2, 2)), ValueError, r"\(2, 2, 2\)"),
        (np.zeros((44_100, 2)), ValueError, r"\(44100, 2\).*\.T"),
        (np.array(["a"]), TypeError, "dtype <U1"),
        (np.zeros(4, complex), TypeError, "complex128"),
        (None, TypeError, "dtype object"),
    ],
)
def test_bad_arrays_are_named(samples, error, words):
    with pytest.raises(error, match=words):
        audio.as_waveform(samples)


def test_channels_are_mixed():
    two = np.array([[1.0, 0.0], [0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(audio.mix_channels(two, 1), [[0.5, 0.25]])
    np.testing.assert_array_equal(audio.mix_channels(two[:1], 2), [[1.0, 0.0]] * 2)
    with pytest.raises(ValueError, match="3 channels"):
        audio.mix_channels(np.zeros((3, 9)), 2)
