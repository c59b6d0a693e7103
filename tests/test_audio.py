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
from riffusion_lab import audio

RATE = 44_100


def test_levels_in_decibels():
    sine = tone(441, amplitude=1.0)[None]
    assert audio.peak_dbfs(sine) == pytest.approx(0, abs=0.01)
    assert audio.rms_dbfs(sine) == pytest.approx(-3.01, abs=0.01)
    assert audio.peak_dbfs(np.zeros((1, 9))) == audio.rms_dbfs(np.zeros((1, 9))) == -math.inf


def test_a_sound_without_a_level_gets_one_and_a_known_level_is_kept():
    quiet = tone(441, amplitude=1e-3)[None]
    gain, ceiling = audio.level_gain(quiet, is_known=False)
    assert audio.rms_dbfs(gain * quiet) == pytest.approx(-18, abs=0.01)
    assert audio.peak_dbfs(np.array([[ceiling]])) == pytest.approx(-1, abs=0.01)
    assert audio.level_gain(quiet, is_known=True) == (1.0, 1.0)
    assert audio.level_gain(np.zeros((1, 9), np.float32), is_known=False)[0] == 1.0
    # +7 dBFS RMS is more than full scale can hold
    gain, _ = audio.level_gain(10 ** (10 / 20) * tone(441, amplitude=1.0)[None], is_known=True)
    assert 20 * math.log10(gain) == pytest.approx(-4.5 - 7, abs=0.02)


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
    # Turned by an eighth of a wave it begins on a slope, which a mirror bends: the measure does see open ends.
    slope = torch.sin(2 * torch.pi * (101 * torch.arange(17_640) / 17_640 + 1 / 8))
    closed, opened = (audio.resample(slope, 44_100, 48_000, loop=loop) for loop in (True, False))
    assert (closed - opened).abs().max() > 0.001


def test_an_open_end_does_not_ring():
    """A sound that is cut off in mid-wave, as clips of a song are, has no step against silence at its ends."""
    steady = torch.ones(4_410)  # the hardest cut that there is
    resampled = audio.resample(steady, 44_100, 48_000)
    assert len(resampled) == 4_800
    # Cut off by silence it overshoots by 9 % (Gibbs). Mirrored it is constant; float32 FFT of 3 s
    torch.testing.assert_close(resampled, torch.ones(4_800), atol=1e-3, rtol=0)
    tone_, expected = (torch.cos(2 * torch.pi * 441 / rate * torch.arange(rate // 10) + 1) for rate in (44_100, 48_000))
    error = (audio.resample(tone_, 44_100, 48_000) - expected).abs()
    # 1 % at the mirror's bend, within 0.2 ms; silence instead gives 0.5
    assert error.max() < 0.02 and error[10:-10].max() < 0.002


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
    rate = 48_000 if suffix == ".opus" else RATE  # the only one that Opus has
    sound = tone(441, 88_200, rate=rate)[None]
    path.write_bytes(audio.encode_for(suffix, sound, rate, title="tone", comment="{}"))
    waveform, rate = audio.read_audio(path)
    at_441_hz = np.abs(np.fft.rfft(waveform[0], rate))[441]  # an FFT of a second: a row for each hertz
    assert at_441_hz == pytest.approx(np.abs(np.fft.rfft(waveform[0], rate)).max())
    assert audio.rms_dbfs(waveform) == pytest.approx(audio.rms_dbfs(tone(441, 88_200)), abs=0.3)


@pytest.mark.parametrize("with_ffmpeg", [True, False])
def test_other_formats_are_refused(monkeypatch, with_ffmpeg):
    if with_ffmpeg:
        require("ffmpeg")
    else:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    words = r"'\.jpg'.*use \.png for a picture, \.wav" + ("" if with_ffmpeg else ".*install ffmpeg")
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
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif not shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg: apt install ffmpeg")
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 44_100)).astype(np.float32)
    for name in ("torn.wav", "torn.flac"):
        data = audio.encode_audio(sound, RATE, audio.FORMATS[name[4:]])
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp3").write_text("no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, words in [
        ("torn.wav", "torn.wav is truncated"),
        ("torn.flac", "torn.flac is truncated"),
        ("text.mp3", "text.mp3 is truncated or not a known sound"),
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
        (np.array([0.0, np.nan, np.inf, 0.0]), ValueError, "2 samples are NaN or infinite, the first at index 1"),
        (np.zeros((2, 2, 2)), ValueError, r"\(2, 2, 2\)"),
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


# ---- sounds in memory, as libraries hand them over

TONE = tone(441, RATE)  # a second, peak 0.5
INT16 = np.rint(TONE * 32_768).astype(np.int16)


@pytest.mark.parametrize(
    "samples",
    [
        INT16,
        INT16.astype(np.int32) * 65_536,
        (INT16 // 256).astype(np.int8),
        (INT16 // 256 + 128).astype(np.uint8),  # as in a WAV file: 128 is silence
        INT16.astype(">i2"),
        torch.tensor(INT16),
        torch.tensor((INT16 // 256 + 128).astype(np.uint8)),
    ],
)
def test_integers_are_scaled_by_their_width(samples):
    np.testing.assert_allclose(audio.as_waveform(samples)[0], TONE, atol=1 / 128)  # 8 bits, rounded down


@pytest.mark.parametrize(
    "samples",
    [
        INT16.tolist(),
        tuple(INT16.tolist()),
        INT16.astype(np.int64),
        torch.tensor(INT16).long(),
        INT16.astype(np.uint16),
        INT16.astype(np.uint64),
        np.zeros(9, int),
    ],
)
def test_integers_that_do_not_say_their_full_scale_are_refused(samples):
    with pytest.raises(TypeError, match=r"the full scale of samples of dtype u?int\d\d is not known: .* / 32768"):
        audio.as_waveform(samples)


class Series:
    """What this package uses of a pandas Series of dtype Float32, whose missing numbers are NA."""

    def __init__(self, numbers: list[float | None]) -> None:
        self.numbers = numbers

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numbers, object)

    def to_numpy(self, dtype: type, na_value: float) -> np.ndarray:
        return np.array([na_value if number is None else number for number in self.numbers], dtype)


@pytest.mark.parametrize(
    "samples",
    [
        torch.tensor(TONE, requires_grad=True),
        torch.tensor(TONE).bfloat16(),
        torch.tensor(TONE).half(),
        torch.tensor(TONE).double(),
        [torch.tensor(TONE, requires_grad=True)],
        TONE.astype(np.float16),
        TONE.astype(np.longdouble),
        TONE.tolist(),
        [TONE.tolist()],
        Series(TONE.tolist()),
        np.ma.array(TONE),
        memoryview(TONE),
        TONE[:, None],
    ],
)
def test_floats_of_every_kind(samples):
    waveform = audio.as_waveform(samples)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, TONE[None], atol=0.5 / 256)  # bfloat16 has eight bits


@pytest.mark.parametrize("shape", [(RATE, 2), (RATE, 1), (500, 8), (9, 8)])
def test_samples_before_channels_are_turned(shape):
    """soundfile, SciPy and gradio put samples first; nothing has more than 8 channels of fewer samples."""
    samples = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(audio.as_waveform(samples), samples.T)


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        (np.zeros((0, 100)), ValueError, r"\(0, 100\) has no channels"),
        ([TONE, TONE[:9]], ValueError, "its channels differ in length"),
        (np.ma.array(TONE, mask=TONE > 0.4), ValueError, "samples are NaN or infinite"),
        (Series([0.5, None, 0.5]), ValueError, "1 samples are NaN or infinite, the first at index 1"),
        (np.zeros((300, 20)), ValueError, r"\(300, 20\): use .channels, samples., perhaps `\.T` is missing"),
        (np.zeros(9, bool), TypeError, "dtype bool"),
    ],
)
def test_what_is_no_sound_is_named(samples, error, words):
    with pytest.raises(error, match=words):
        audio.as_waveform(samples)


def wav_bytes() -> bytes:
    return audio.encode_audio(TONE[None], RATE, "WAV")


class Decoder:
    """What this package uses of torchcodec's AudioDecoder."""

    def get_all_samples(self) -> object:
        class Samples:
            data, sample_rate = torch.tensor(TONE)[None], RATE

        return Samples()


@pytest.mark.parametrize(
    "source",
    [
        (TONE, RATE),
        (TONE, np.int64(RATE)),
        (torch.tensor(TONE), torch.tensor(RATE)),
        (RATE, TONE),
        [TONE, RATE],
        (RATE, INT16),
        (RATE, INT16[:, None]),
        {"array": TONE, "sampling_rate": RATE, "path": "a.wav"},
        {"array": TONE.tolist(), "sampling_rate": RATE},
        {"raw": TONE, "sampling_rate": RATE},
        {"audio": TONE[None], "sampling_rate": RATE},
        {"waveform": torch.tensor(TONE)[None], "sample_rate": RATE},
        {"bytes": wav_bytes(), "path": None},
        {"bytes": wav_bytes(), "path": "not here.wav"},
        Decoder(),
        wav_bytes(),
    ],
)
def test_sounds_that_bring_their_rate(source):
    waveform, rate, _ = audio.load_sound(source)
    assert rate == RATE
    np.testing.assert_allclose(waveform, TONE[None], atol=1 / 32_768)  # 16 bits


def test_a_dict_with_a_path_only(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes())
    assert audio.load_sound({"bytes": None, "path": str(tmp_path / "a.wav")})[0].shape == (1, RATE)


@pytest.mark.parametrize(
    ("source", "rate", "error", "words"),
    [
        ((TONE, RATE), RATE, ValueError, "sample_rate 44100 for a pair with the rate 44100: leave one of them out"),
        ({"array": TONE, "sampling_rate": RATE}, 8_000, ValueError, "8000 for a dict with the rate 44100"),
        ({"array": TONE}, None, ValueError, "contains no sample rate"),
        ({"text": "a"}, None, TypeError, "a dict with text is not a sound: pass one with 'array' and 'sampling_rate'"),
        ({}, None, TypeError, "a dict with no keys is not a sound"),
        ((TONE, 44_100.5), None, ValueError, "sample_rate is 44100.5: use a whole number"),
        ((None, RATE), None, TypeError, "dtype object"),
        (wav_bytes(), RATE, ValueError, "files contain it"),
    ],
)
def test_bad_sounds_in_memory_are_named(source, rate, error, words):
    with pytest.raises(error, match=words):
        audio.load_sound(source, rate)


# ---- channels

STEREO = np.stack([tone(441, RATE), tone(882, RATE)])


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("mix", STEREO),
        ("left", STEREO[:1]),
        ("right", STEREO[1:]),
        ("side", (STEREO[:1] - STEREO[1:]) / 2),
        (0, STEREO[:1]),
        (np.int64(1), STEREO[1:]),
    ],
)
def test_a_channel_is_chosen(channel, expected):
    np.testing.assert_array_equal(audio.pick_channel(STEREO, channel), expected)


@pytest.mark.parametrize(
    ("n_channels", "channel", "error", "words"),
    [
        (2, "middle", ValueError, "channel is 'middle': use 'mix', 'left', 'right', 'side', or a number from 0"),
        (1, "left", ValueError, "channel is 'left', but the sound has one channel only"),
        (2, 2, ValueError, "channel, of 2, must be between 0 and 1, not 2"),
        (2, -1, ValueError, "must be between 0 and 1, not -1"),
        (2, True, TypeError, "must be a whole number, not True"),
        (2, 0.5, TypeError, "must be a whole number, not 0.5"),
    ],
)
def test_channels_that_are_not_there_are_named(n_channels, channel, error, words):
    with pytest.raises(error, match=words):
        audio.pick_channel(STEREO[:n_channels], channel)


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ([TONE, -TONE], "their mix is silent"),
        ([TONE, -0.9 * TONE], "their mix is 26 dB quieter"),
        ([TONE, -TONE, TONE, -TONE, 0.1 * TONE], "quieter than they are: pass channel='left'"),
    ],
)
def test_a_mix_that_cancels_says_so(channels, words):
    with pytest.warns(UserWarning, match=f"the channels cancel each other, .*{words}"):
        audio.mix_channels(np.stack(channels), 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "channels",
    [
        STEREO,
        [TONE, 0 * TONE],
        [TONE] + [0 * TONE] * 7,  # one of eight microphones hears something
        [0 * TONE, 0 * TONE],
        np.random.default_rng(0).normal(0, 0.1, (8, RATE)),  # nothing in common
        [TONE, -0.2 * TONE],
    ],
)
def test_an_ordinary_mix_says_nothing(channels):
    audio.mix_channels(np.stack(channels), 1)
