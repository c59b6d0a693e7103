"""Sound files as they come: of pipes and crashed recorders, torn, put together, misnamed."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import tone
from external import require
from riffusion_lab import Clip, audio

RATE = 44_100
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(0, 0.1, 3 * RATE).astype(np.float32)  # 3 s; hard to compress, so that half a file is half a sound
pytestmark = pytest.mark.filterwarnings("error")


def ffmpeg(*arguments: str, sound: np.ndarray = NOISE, rate: int = RATE) -> bytes:
    """Give a sound to ffmpeg; return what it writes to a pipe."""
    require("ffmpeg")
    wav = io.BytesIO()
    soundfile.write(wav, sound.T, rate, format="WAV")
    command = ["ffmpeg", "-v", "error", "-f", "wav", "-i", "-", *arguments, "-"]
    return subprocess.run(command, input=wav.getvalue(), capture_output=True, check=True).stdout


def ffmpeg_file(folder: Path, name: str, *arguments: str, sound: np.ndarray = NOISE) -> bytes:
    """Give a sound to ffmpeg; return the file it writes, with a header that was finished at the end."""
    require("ffmpeg")
    source, target = folder / "source.wav", folder / name
    soundfile.write(source, sound.T, RATE)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, *arguments, target], check=True)
    return target.read_bytes()


def encoded(file_format: str, sound: np.ndarray = NOISE, rate: int = RATE) -> bytes:
    """Return a file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, sound.T, rate, format=file_format)
    return file.getvalue()


def read(folder: Path, data: bytes, name: str = "sound.bin", **options: str) -> tuple[np.ndarray, int]:
    path = folder / name
    path.write_bytes(data)
    return audio.read_audio(path, **options)


def seconds(folder: Path, data: bytes, name: str = "sound.bin", **options: str) -> float:
    waveform, rate = read(folder, data, name, **options)
    return waveform.shape[1] / rate


# ---- the whole length

LOUD_THEN_QUIET = np.concatenate([NOISE[:RATE], tone(440, 5 * RATE, amplitude=0.1)])
MP3_PADDING_S = 0.1  # what encoders put before and behind a sound: up to three frames of 26 ms


@pytest.mark.parametrize("has_ffmpeg", [True, False])
def test_an_mp3_without_an_index_has_its_whole_length(tmp_path, monkeypatch, has_ffmpeg):
    data = ffmpeg("-q:a", "2", "-write_xing", "0", "-f", "mp3", sound=LOUD_THEN_QUIET)
    if not has_ffmpeg:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    waveform, rate = read(tmp_path, data)
    assert waveform.shape[1] / rate == pytest.approx(6, abs=MP3_PADDING_S)
    assert audio.rms_dbfs(waveform[:, 2 * RATE : -RATE]) == pytest.approx(
        -23.0, abs=0.3
    )  # the tone's, to the end; lossy


@pytest.mark.parametrize("has_ffmpeg", [True, False])
@pytest.mark.parametrize(
    ("kind", "second"),
    [
        ("mp3", ()),
        ("mp3", ("-ar", "22050")),
        ("mp3", ("-ac", "2")),
        ("ogg", ("-c:a", "libvorbis")),
        ("ogg", ("-c:a", "libvorbis", "-ar", "22050")),
        ("opus", ()),
    ],
)
def test_files_put_together_from_several_are_read_whole(tmp_path, monkeypatch, has_ffmpeg, kind, second):
    first = ("-c:a", "libvorbis") if kind == "ogg" else ()
    parts = [ffmpeg_file(tmp_path, f"a.{kind}", *first), ffmpeg_file(tmp_path, f"b.{kind}", *second)]
    if not has_ffmpeg:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    waveform, rate = read(tmp_path, b"".join(parts))
    assert waveform.shape[1] / rate == pytest.approx(6, abs=2 * MP3_PADDING_S)
    halves_db = [audio.rms_dbfs(half) for half in np.array_split(waveform, 2, axis=1)]
    alone_db = [audio.rms_dbfs(read(tmp_path, part)[0]) for part in parts]
    assert halves_db == pytest.approx(alone_db, abs=0.3)  # 0.1 s of padding in 3 s are 0.15 dB


PIPED = [
    ("wav", ()),
    ("wav", ("-rf64", "always")),
    ("aiff", ()),
    ("au", ()),
    ("w64", ()),
    ("flac", ()),
    ("ogg", ("-c:a", "libvorbis")),
    ("oga", ("-c:a", "flac")),
    ("opus", ()),
    ("mp3", ()),
    ("adts", ()),
    ("matroska", ()),
    ("wv", ()),
    ("mpegts", ()),
]


@pytest.mark.parametrize(("container", "options"), PIPED)
def test_files_of_a_pipe_have_their_whole_length(tmp_path, capfd, container, options):
    data = ffmpeg(*options, "-f", container)
    assert seconds(tmp_path, data) == pytest.approx(3, abs=MP3_PADDING_S)
    assert "Exception ignored" not in capfd.readouterr().err  # of a callback of soundfile's


def wav_file(riff_size: int, data_size: int, sound: np.ndarray = NOISE, behind: bytes = b"") -> bytes:
    """A WAV file of 16 bits with these sizes in its header."""
    samples = np.rint(sound * 32_767).astype("<i2").tobytes()
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff_size) + header + b"data" + struct.pack("<I", data_size) + samples + behind


@pytest.mark.parametrize("has_ffmpeg", [True, False])
@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0x7FFF_F024, 0x7FFF_F000),  # SoX and eSpeak to a pipe
        (0x8000_0024, 0x8000_0000),  # arecord
        (0xFFFF_FFFF, 0xFFFF_FFFF),  # ffmpeg
        (0xFFFF_FFFF, 0xFFFF_FFDB),  # the same, less the header
        (0x7FFF_FFFF, 0x7FFF_FFFF),
        (0, 0),  # recorders that crashed
        (36, 0),  # by AVAudioFile
        (0, 2 * len(NOISE)),
        (0x7FFF_FFFF, 2 * len(NOISE)),
    ],
)
def test_a_wav_whose_writer_did_not_know_its_length_is_read(tmp_path, monkeypatch, has_ffmpeg, riff_size, data_size):
    if not has_ffmpeg:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    assert seconds(tmp_path, wav_file(riff_size, data_size)) == 3


@pytest.mark.parametrize(
    ("file_format", "subtype"),
    [
        ("MP3", "MPEG_LAYER_III"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("FLAC", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "GSM610"),
        ("WAV", "PCM_24"),
    ],
)
def test_blocks_join_without_a_seam(tmp_path, file_format, subtype):
    """Nine seconds are several blocks; read at once, they are the same to the bit."""
    rate = 48_000 if subtype == "OPUS" else RATE
    path = tmp_path / "a"
    sound = np.concatenate([NOISE, tone(441, 3 * RATE), NOISE])
    with soundfile.SoundFile(path, "w", rate, 1, subtype=subtype, format=file_format) as file:
        for block in np.array_split(sound, 9):  # libsndfile overflows its stack on long writes
            file.write(block)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    np.testing.assert_array_equal(audio.read_audio(path)[0], expected)


# ---- torn

BY_LIBSNDFILE = ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"]
BY_FFMPEG = {
    "a.faststart.m4a": ("-movflags", "faststart"),
    "a.aac": (),
    "a.mka": ("-c:a", "flac"),
    "a.webm": (),
    "a.opus": (),
    "a.oga": ("-c:a", "flac"),
    "a.wma": (),
    "a.wv": (),
    "a.tta": (),
    "a.ac3": (),
    "a.avi": (),
    "a.flv": (),
    "a.ts": (),
    "a.adpcm.wav": ("-c:a", "adpcm_ms"),
}


def check_torn(folder: Path, data: bytes, share: float) -> None:
    torn = data[: round(len(data) * share)]
    with pytest.raises(OSError, match=r"torn\.bin is truncated .*torn='keep'"):
        read(folder, torn, "torn.bin")
    with pytest.warns(UserWarning, match=r"torn\.bin is truncated \(.*\): \d\.\d\d s are left"):
        left_s = seconds(folder, torn, "torn.bin", torn="keep")
    assert (share - 0.4) * 3 < left_s < (share + 0.1) * 3  # a block or a page may be lost with what is torn off


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("file_format", BY_LIBSNDFILE)
def test_a_torn_file_is_an_error_and_may_be_kept(tmp_path, file_format, share):
    if file_format == "CAF":  # libsndfile takes none that is torn
        require("ffmpeg")
    check_torn(tmp_path, encoded(file_format), share)


@pytest.mark.parametrize("name", BY_FFMPEG)
def test_a_torn_file_is_an_error_whoever_reads_it(tmp_path, name):
    check_torn(tmp_path, ffmpeg_file(tmp_path, name, *BY_FFMPEG[name]), 0.6)


@pytest.mark.parametrize("file_format", ["MP3", "FLAC", "OGG", "WAV"])
def test_a_torn_file_is_noticed_without_ffmpeg(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    check_torn(tmp_path, encoded(file_format), 0.6)


@pytest.mark.parametrize("share", [0.25, 0.6, 0.9])
def test_of_a_torn_flac_all_that_is_whole_is_kept(tmp_path, monkeypatch, share):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    data = encoded("FLAC")
    with pytest.warns(UserWarning, match="is truncated"):
        left_s = seconds(tmp_path, data[: round(len(data) * share)], "a.flac", torn="keep")
    assert left_s == pytest.approx(share * 3, abs=0.2)  # two frames of 4,096 samples


def test_an_ogg_without_its_last_page_is_torn(tmp_path):
    data = encoded("OGG")
    check_torn(tmp_path, data, data.rindex(b"OggS") / len(data))


@pytest.mark.parametrize("name", BY_FFMPEG)
def test_a_whole_file_is_not_called_torn(tmp_path, name):
    data = ffmpeg_file(tmp_path, name, *BY_FFMPEG[name])
    assert seconds(tmp_path, data) == pytest.approx(3, abs=MP3_PADDING_S)


def test_a_film_longer_than_its_sound_is_not_called_torn(tmp_path):
    require("ffmpeg")
    soundfile.write(tmp_path / "a.wav", NOISE, RATE)
    film = ["-f", "lavfi", "-i", "testsrc=d=6:s=64x64", "-i", tmp_path / "a.wav", "-c:a", "aac", tmp_path / "a.mkv"]
    subprocess.run(["ffmpeg", "-v", "error", *film], check=True)
    waveform, rate = audio.read_audio(tmp_path / "a.mkv")
    assert waveform.shape[1] / rate == pytest.approx(3, abs=MP3_PADDING_S)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"", b"TAG" + b" " * 125),  # ID3v1
        (b"", b"APETAGEX" + b"\xff" * 300),
        (b"", bytes(5_000)),
        (bytes(3_000), b""),
        (b"ID3\x03\x00\x00\x00\x00\x4e\x20" + bytes(10_016), b""),  # an ID3v2 tag, as one with a picture is
    ],
)
def test_what_stands_around_an_mp3_is_no_part_of_it(tmp_path, before, behind):
    data = ffmpeg_file(tmp_path, "a.mp3", "-id3v2_version", "0")
    assert seconds(tmp_path, before + data + behind) == pytest.approx(3, abs=MP3_PADDING_S)


@pytest.mark.parametrize("behind", [b"", b"LIST\x90\x01\x00\x00INFO", bytes(77)])
def test_a_wav_is_whole_when_its_sound_is(tmp_path, behind):
    """A chunk behind the sound may be torn, or no chunk."""
    assert seconds(tmp_path, wav_file(2 * len(NOISE) + 36 + 400, 2 * len(NOISE), behind=behind)) == 3


def test_no_samples_is_an_error(tmp_path):
    nothing = NOISE[:0]
    info = b"LIST\x04\x00\x00\x00INFO"
    for data in (wav_file(36, 0, nothing), wav_file(48, 0, nothing, info), encoded("AIFF", nothing)):
        with pytest.raises(OSError, match=r"sound\.bin (holds no samples|is truncated or not a known sound)"):
            read(tmp_path, data)


def test_torn_is_one_of_two_words(tmp_path):
    with pytest.raises(ValueError, match="torn is 'yes': use 'error', or 'keep'"):
        read(tmp_path, encoded("WAV"), torn="yes")


def test_a_clip_can_be_made_of_what_is_left(tmp_path):
    path = tmp_path / "torn.wav"
    path.write_bytes(encoded("WAV")[: 44 + 2 * RATE])
    with pytest.warns(UserWarning, match=r"1\.00 s are left"):
        assert Clip.from_audio(path, torn="keep").duration_s == 1


# ---- names


@pytest.mark.parametrize("suffix", [".raw", ".vox", ".gsm", ".au", ".sw", ".al", ".g722"])
@pytest.mark.parametrize("data", [b"no sound at all\n" * 500, np.rint(NOISE * 32_767).astype("<i2").tobytes()])
def test_a_suffix_makes_no_sound_of_anything(tmp_path, suffix, data):
    with pytest.raises(OSError, match=f"sound{suffix} is truncated"):
        read(tmp_path, data, f"sound{suffix}")


@pytest.mark.parametrize("suffix", [".raw", ".vox", ".wav", ".txt", ""])
@pytest.mark.parametrize("file_format", ["FLAC", "MP3", "WAV"])
def test_a_file_is_what_it_holds(tmp_path, suffix, file_format):
    assert seconds(tmp_path, encoded(file_format), f"sound{suffix}") == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("name", ["m%d", "a:b", "-i", "a b\n'c'", "日本 🎵", os.fsdecode(b"caf\xe9")])
@pytest.mark.parametrize("kind", ["wav", "m4a"])
def test_a_file_may_have_any_name(tmp_path, name, kind):
    if sys.platform != "linux":
        pytest.skip("other systems do not allow these names")
    data = encoded("WAV") if kind == "wav" else ffmpeg_file(tmp_path, "a.m4a")
    assert seconds(tmp_path, data, f"{name}.{kind}") == pytest.approx(3, abs=MP3_PADDING_S)
    with pytest.raises(OSError, match="is truncated"):
        read(tmp_path, data[:20_000], f"{name}.{kind}")


def test_an_address_is_no_file():
    with pytest.raises(OSError, match="https://example.org/a.mp3 is a web address: download the file first"):
        audio.read_audio("https://example.org/a.mp3")


# ---- ffmpeg is kept within bounds


def fake_ffmpeg(folder: Path, monkeypatch, script: str) -> None:
    if sys.platform == "win32":
        pytest.skip("needs a POSIX shell")
    program = folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_ffmpeg_has_a_time_limit(tmp_path, monkeypatch):
    from riffusion_lab import soundfiles

    fake_ffmpeg(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(soundfiles, "FFMPEG_LIMIT_S", 0.3)
    with pytest.raises(OSError, match=r"ffmpeg took more than 0\.3 s"):
        read(tmp_path, b"unknown" * 99)


def test_ffmpeg_opens_files_only_and_reads_no_keys(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, monkeypatch, f'printf "%s\\n" "$@" > "{tmp_path}/arguments"; exit 1')
    with pytest.raises(OSError, match="not a known sound"):
        read(tmp_path, b"unknown" * 99)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    assert arguments.index("-protocol_whitelist") < arguments.index("-i")
    assert "-nostdin" in arguments


@pytest.mark.parametrize("kind", ["flac", "m4a"])
def test_what_is_read_is_bounded(tmp_path, monkeypatch, kind):
    """A small file may hold days of silence."""
    from riffusion_lab import soundfiles

    data = ffmpeg_file(tmp_path, f"a.{kind}")
    monkeypatch.setattr(soundfiles, "MOST_NUMBERS", 2 * RATE)
    with pytest.raises(OSError, match="more than 88,200 samples"):
        read(tmp_path, data)


# ---- bytes and open files


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a"])
def test_bytes_and_open_files_are_read(tmp_path, kind):
    data = ffmpeg_file(tmp_path, f"a.{kind}")
    expected = audio.read_audio(tmp_path / f"a.{kind}")[0]
    with (tmp_path / f"a.{kind}").open("rb") as file:
        waveforms = [audio.read_audio(source)[0] for source in (data, bytearray(data), io.BytesIO(data), file)]
    for waveform in waveforms:
        np.testing.assert_array_equal(waveform, expected)


def test_an_open_file_that_was_just_written_is_read_from_its_beginning():
    file = io.BytesIO()
    Clip.from_audio(NOISE, RATE).save(file, format="wav")
    assert Clip.from_audio(file).duration_s == 3


def test_bad_bytes_and_files_are_named(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded("WAV")[:5_000])
    with path.open("rb") as file, pytest.raises(OSError, match=r"a\.wav is truncated"):
        audio.read_audio(file)
    with path.open(encoding="latin-1") as file, pytest.raises(TypeError, match=r"a\.wav is open as text.*'rb'"):
        audio.read_audio(file)
    with pytest.raises(OSError, match="the file is empty"):
        audio.read_audio(b"")
    with pytest.raises(ValueError, match="sample_rate 44100 for the file .*leave it out"):
        Clip.from_audio(encoded("WAV"), 44_100)


# ---- writing


def tags_of(path: Path) -> str:
    """What ffmpeg finds in a file."""
    run = subprocess.run(["ffmpeg", "-i", path], capture_output=True, check=False)
    return run.stderr.decode()


@pytest.mark.parametrize("suffix", [*audio.FORMATS, ".m4a", ".opus"])
@pytest.mark.parametrize("title", ["música 日本", "плавная музыка", "🎵 𝄞", "jazz"])
def test_titles_in_any_script(tmp_path, suffix, title):
    require("ffmpeg")
    path = tmp_path / f"a{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opus has another sample rate
        path.write_bytes(audio.encode_for(suffix, NOISE[None], RATE, title=title, comment=f"{title} “too”"))
    if suffix in audio.FORMATS:
        with soundfile.SoundFile(path) as file:
            assert (file.title, file.comment) == (title, f"{title} “too”")
    if suffix != ".caf":  # ffmpeg reads no strings of CAF's
        assert title in tags_of(path)


def test_a_long_recipe_fits_into_most_formats(tmp_path):
    comment = "é" * 50_000  # that of a session of an hour
    for suffix in (".flac", ".ogg", ".mp3"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(audio.encode_for(suffix, NOISE[None], RATE, comment=comment))
        with soundfile.SoundFile(path) as file:
            assert file.comment == comment


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".caf"])
@pytest.mark.parametrize("n_bytes", [7_000, 14_000, 29_000, 60_000, 200_000])
def test_what_a_file_says_never_costs_its_sound(tmp_path, suffix, n_bytes):
    fits = n_bytes <= {".wav": 30_000, ".aiff": 8_000, ".caf": 15_000}[suffix]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = audio.encode_for(suffix, NOISE[None], RATE, title="jazz", comment="c" * n_bytes)
    assert seconds(tmp_path, data) == 3
    assert (b"c" * n_bytes in data) == fits
    assert b"jazz" in data
    remark = f"{n_bytes + 4:,} bytes of title and recipe are too much for {suffix[1:].upper()}"
    assert [str(warning.message).startswith(remark) for warning in caught] == ([] if fits else [True])


def test_half_a_character_does_no_harm(tmp_path):
    for suffix in audio.FORMATS:
        data = audio.encode_for(suffix, NOISE[None], RATE, title="half \ud83c of it")
        assert seconds(tmp_path, data) == pytest.approx(3, abs=MP3_PADDING_S)


@pytest.mark.parametrize("suffix", [".raw", ".sw", ".ul", ".g722", ".m3u8", ".mpd", ".txt", ".gif", ".yuv", ".md5", ""])
def test_only_what_can_be_read_again_is_written(suffix):
    require("ffmpeg")
    with pytest.raises(ValueError, match=rf"{suffix!r}.*: use \.png for a picture, \.wav"):
        audio.encode_for(suffix, np.stack([NOISE, NOISE / 2]), RATE)


@pytest.mark.parametrize(
    ("rate", "saved"),
    [(96_000, 48_000), (88_200, 44_100), (192_000, 48_000), (64_000, 48_000), (37_800, 44_100), (5_000, 8_000)],
)
def test_rates_that_mp3_has_not(tmp_path, rate, saved):
    sound = tone(441, rate, rate=rate)[None]  # one second
    message = rf"\.mp3 does not support a sample rate of {rate:,} Hz: the sound is saved at {saved:,}"
    with pytest.warns(UserWarning, match=message):
        data = audio.encode_for(".mp3", sound, rate)
    waveform, found = read(tmp_path, data)
    assert found == saved
    spectrum = np.abs(np.fft.rfft(waveform[0], saved))  # rows of 1 Hz
    assert int(spectrum.argmax()) == 441
    assert audio.rms_dbfs(waveform) == pytest.approx(audio.rms_dbfs(sound), abs=0.5)  # padded by up to 0.1 s


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_rates_that_mp3_has_are_kept(tmp_path, rate):
    assert read(tmp_path, audio.encode_for(".mp3", tone(441, rate, rate=rate)[None], rate))[1] == rate


@pytest.mark.parametrize(("suffix", "rate"), [(".opus", 44_100), (".m4a", 192_000)])
def test_other_formats_say_when_they_change_the_rate(suffix, rate):
    require("ffmpeg")
    message = rf"\{suffix} does not support a sample rate of {rate:,} Hz: the sound is saved at"
    with pytest.warns(UserWarning, match=message):
        audio.encode_for(suffix, tone(441, rate, rate=rate)[None], rate)


def test_what_a_format_cannot_hold_is_an_error():
    with pytest.raises(ValueError, match=r"FLAC cannot hold 1 channel\(s\) at 700000 Hz"):
        audio.encode_for(".flac", NOISE[None], 700_000)
