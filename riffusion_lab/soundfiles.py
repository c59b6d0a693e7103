"""Reading and writing sound files with libsndfile, or with ffmpeg (if installed) where libsndfile cannot."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import torch

from . import containers, mp3
from .files import as_binary_file, existing_file, name_of
from .resampling import resample
from .values import warn

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3", ".aiff": "AIFF", ".caf": "CAF"}
WRITE_BLOCK = 65_536  # samples; libsndfile overflows its stack on long Ogg Vorbis writes
READ_BLOCK = 1_048_576  # samples
SMALL_READ_BLOCK = 4_096  # samples; libsndfile returns nothing of a block with an error in it
PIECE = 67_108_864  # samples (all channels) allocated at once: 256 MiB, a quarter of an hour of stereo
BUFFER = 262_144  # bytes
# Bytes of title and comment together; with more, libsndfile writes a file that it cannot read, or loses them.
LONGEST_TEXT = {"WAV": 30_000, "AIFF": 8_000, "CAF": 15_000}
MOST_NUMBERS = 2**30  # samples (all channels): 4 GiB, 3.4 hours of stereo
FFMPEG_LIMIT_S = 300
DURATION_TOLERANCE = 0.02  # relative, plus half a second: some headers are rounded

Torn = Literal["error", "keep"]


class _NotRead(Exception):
    """libsndfile would read only a part of this file, and take it for the whole."""


@dataclass(frozen=True)
class _Decoded:
    waveform: np.ndarray  # [shape=(channels, samples), float32]
    sample_rate: int
    missing: str | None  # what the file lacks, or None
    is_certain: bool = True  # False: ffmpeg might read more


def read_audio(source: str | os.PathLike[str] | bytes | BinaryIO, *, torn: Torn = "error") -> tuple[np.ndarray, int]:
    """Read a sound file: WAV, FLAC, Ogg, MP3, AIFF, or, with ffmpeg installed, anything ffmpeg can read.

    The format is recognized by the content of the file, not by its name.

    Parameters
    ----------
    source : path, bytes or binary file
        A file, the content of a file, or an open file, which is read from its current position.
    torn : {"error", "keep"}
        What to do with a truncated file: raise an error, or keep what is left of it, with a warning.

    Returns
    -------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz

    Raises
    ------
    OSError
        If the file is missing, empty, truncated, or not a sound.
    """
    if torn not in ("error", "keep"):
        raise ValueError(f"torn is {torn!r}: use 'error', or 'keep' to read what is left of a truncated file")
    name = name_of(source, "the sound file")
    with _opened(source) as file:
        decoded = _decode(file, name)
    if decoded.missing and torn == "error":
        raise OSError(f"{name} is truncated ({decoded.missing}): use a whole file, or torn='keep' for what is left")
    if decoded.waveform.shape[1] == 0:
        raise OSError(f"{name} holds no samples: use a file with a sound in it")
    if decoded.missing:
        seconds = decoded.waveform.shape[1] / decoded.sample_rate
        warn(f"{name} is truncated ({decoded.missing}): {seconds:.2f} s are left")
    return decoded.waveform, decoded.sample_rate


def read_parts(
    path: str | os.PathLike[str], part_s: float, *, torn: Torn = "error"
) -> Iterator[tuple[np.ndarray, int]]:
    """Read a sound file part by part, so that hours of music need not fit into memory.

    Formats whose header declares the length (WAV, FLAC, AIFF, CAF) are read in parts, as is an MP3 with a correct
    index; Ogg, truncated files and what only ffmpeg reads are decoded completely first, as by `read_audio`.

    Parameters
    ----------
    path : path
    part_s : float
        Duration of a part in seconds; the last one may be shorter.
    torn : {"error", "keep"}
        See `read_audio`.

    Yields
    ------
    waveform : np.ndarray [shape=(channels, samples), float32]
        Begins where the previous part ended.
    sample_rate : int
        Hz, the same for all parts.

    Raises
    ------
    OSError
        If the file is missing, empty, truncated, or not a sound; for damage in the middle, after the parts before it.
    """
    with _opened(path) as file:
        if _is_long(file, 2 * part_s):
            yield from _read_long(file, name_of(path, "the sound file"), part_s, torn)
            return
    waveform, sample_rate = read_audio(path, torn=torn)
    n_samples = round(part_s * sample_rate)
    for start in range(0, waveform.shape[1], n_samples):
        yield waveform[:, start : start + n_samples], sample_rate


def _is_long(file: _Unnamed, duration_s: float) -> bool:
    """Whether a file is longer than this, and whole as far as its header says, so that it can be read in parts."""
    is_ogg = file.read(4) == b"OggS"
    if is_ogg or containers.missing_part(file) or containers.with_length(file) is not file:
        return False
    try:
        with _Sequential(_path_or_file(file)) as sound:
            is_long = duration_s < sound.frames / sound.samplerate < containers.LARGEST / sound.samplerate
            is_mp3 = sound.format == "MP3"
    except soundfile.LibsndfileError:
        return False
    file.seek(0)
    return is_long and (not is_mp3 or mp3.has_right_index(file.read()))


def _read_long(file: _Unnamed, name: str, part_s: float, torn: Torn) -> Iterator[tuple[np.ndarray, int]]:
    file.seek(0)
    with _Sequential(_path_or_file(file)) as sound:
        n_samples = round(part_s * sound.samplerate)
        n_done = 0
        is_full = True
        while is_full:
            part = np.empty((n_samples, sound.channels), np.float32)
            n_read, error = _fill(part, sound, start=n_done)
            n_done += n_read
            if n_read:
                yield part[:n_read].T, sound.samplerate
            is_full = n_read == n_samples
        if error is None and n_done < sound.frames and sound.format != "MP3":
            error = f"{n_done:,} of {sound.frames:,} samples"
    if error and torn == "error":
        raise OSError(f"{name} is damaged ({error}): use a whole file, or torn='keep' for what is left")
    if error:
        warn(f"{name} is damaged ({error}): {n_done / sound.samplerate:.2f} s are left")


class _Unnamed(io.BufferedReader):
    """A file without a name: soundfile would take a .raw file for headerless samples, and libsndfile a .vox file."""

    name = None

    def seek(self, position: int, whence: int = 0) -> int:
        """Seek, but ignore negative positions, which libsndfile computes from placeholders in a header."""
        start = self.tell() if whence == io.SEEK_CUR else 0
        if whence != io.SEEK_END and start + position < 0:
            return self.tell()
        return super().seek(position, whence)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[_Unnamed]:
    if not isinstance(source, (str, os.PathLike)):
        yield _Unnamed(as_binary_file(source, "a sound"), BUFFER)
        return
    with _Unnamed(io.FileIO(existing_file(source, "a sound")), BUFFER) as file:
        yield file


def _decode(file: _Unnamed, name: str) -> _Decoded:
    """Read a sound with libsndfile, and with ffmpeg where that fails or may have missed something."""
    try:
        decoded = _decode_with_soundfile(file)
    except (soundfile.LibsndfileError, _NotRead) as error:
        if not shutil.which("ffmpeg"):
            advice = "use a whole WAV, FLAC, Ogg or MP3 file, or install ffmpeg for others"
            raise OSError(f"{name} is truncated or not a known sound ({_reason(error)}): {advice}") from error
        return _decode_with_ffmpeg(file, name)
    if decoded.is_certain or not shutil.which("ffmpeg"):
        return decoded
    try:
        by_ffmpeg = _decode_with_ffmpeg(file, name)
    except OSError:
        return decoded
    is_better = by_ffmpeg.missing is None or by_ffmpeg.waveform.shape[1] > decoded.waveform.shape[1]
    return by_ffmpeg if is_better else decoded


class _Sequential(soundfile.SoundFile):
    """A sound that is only read forwards: soundfile would seek after each block, which is inexact in an MP3."""

    def seekable(self) -> bool:
        """Pretend that seeking is impossible."""
        return False


def _reason(error: Exception) -> str:
    """Message of libsndfile, without the address of the file object."""
    message: str = getattr(error, "error_string", str(error))
    return message.rstrip(". ")


def _decode_with_soundfile(file: _Unnamed) -> _Decoded:
    if file.read(4) == b"OggS":
        return _decode_ogg(file)
    missing = containers.missing_part(file)
    repaired = containers.with_length(file)
    is_repaired = repaired is not file
    with _Sequential(repaired if is_repaired else _path_or_file(file)) as sound:
        if sound.format != "MP3":
            decoded = _read_blocks(sound)
            if missing:
                return replace(decoded, missing=missing, is_certain=True)
            if decoded.waveform.shape[1] == 0 and not is_repaired:
                raise _NotRead("no samples")
            return decoded
    return _decode_mp3(file)


def _path_or_file(file: _Unnamed) -> str | _Unnamed:
    """Path of the file if libsndfile may see it, which is faster: its extension must be that of a known format."""
    if not isinstance(file.raw, io.FileIO):
        return file
    path = Path(file.raw.name)
    if path.suffix.lower() not in FORMATS:
        return file
    is_utf_8 = str(path).encode(errors="replace") == os.fsencode(path)
    return str(path) if is_utf_8 else file


def _decode_ogg(file: _Unnamed) -> _Decoded:
    """Read all chained streams of an Ogg file, one after the other."""
    streams = containers.ogg_streams(file)
    file.seek(0)
    data = file.read()
    bounds = [*streams.starts, len(data)]
    parts = [_decode_bytes(data[start:stop]) for start, stop in pairwise(bounds)]
    decoded = _join(parts)
    if streams.missing:
        return replace(decoded, missing=streams.missing, is_certain=True)
    return decoded


def _decode_mp3(file: _Unnamed) -> _Decoded:
    """Read an MP3 completely: libsndfile trusts its index, and estimates from the first frame if there is none."""
    file.seek(0)
    data = file.read()
    file.seek(0)
    with _Sequential(_path_or_file(file)) as sound:
        if mp3.has_right_index(data):
            return _read_blocks(sound)
        frames = mp3.read_frames(data)
        if frames is None or _expects_all(sound, frames):  # None: the size of the frames is not known
            decoded = _read_blocks(sound)
        elif all(part.first.is_layer_3 for part in frames.parts):
            decoded = _join([_decode_bytes(mp3.with_index(data, part)) for part in frames.parts])
        else:
            raise _NotRead("its length is not known")  # the other layers have no index
    if frames is not None and frames.missing:
        return replace(decoded, missing=frames.missing, is_certain=True)
    return decoded


def _expects_all(sound: soundfile.SoundFile, frames: mp3.Frames) -> bool:
    """Whether libsndfile expects all frames of an MP3."""
    if len(frames.parts) > 1:
        return False
    part = frames.parts[0]
    n_expected = part.n_samples
    if frames.n_declared is not None and frames.n_declared >= frames.n_frames:
        n_expected -= 3 * part.first.n_samples  # libsndfile removes the encoder's padding at both ends
    return bool(sound.frames >= n_expected)


def _decode_bytes(data: bytes) -> _Decoded:
    with _Sequential(io.BytesIO(data)) as sound:
        return _read_blocks(sound)


def _join(parts: list[_Decoded]) -> _Decoded:
    """Concatenate sounds at the sample rate of the first one; mono is copied to all channels of the others."""
    if len(parts) == 1:
        return parts[0]
    rate = parts[0].sample_rate
    n_channels = max(len(part.waveform) for part in parts)
    waveforms = []
    for part in parts:
        if len(part.waveform) not in (1, n_channels):
            raise _NotRead("its number of channels changes")
        waveform = resample(torch.tensor(part.waveform), part.sample_rate, rate).numpy()
        waveforms.append(np.broadcast_to(waveform, (n_channels, waveform.shape[1])))
    missing = next((part.missing for part in parts if part.missing), None)
    is_certain = all(part.is_certain for part in parts)
    return _Decoded(np.concatenate(waveforms, axis=1), rate, missing, is_certain)


def _read_blocks(sound: soundfile.SoundFile) -> _Decoded:
    """Read block by block to the end, whatever length the header declares."""
    pieces: list[np.ndarray] = []  # many blocks each; a single piece if the header is right and the sound not long
    n_samples = 0
    missing: str | None = None
    is_full = True
    while is_full:
        n_expected = min(sound.frames - n_samples, PIECE // sound.channels)
        piece = np.empty((max(WRITE_BLOCK, n_expected), sound.channels), np.float32)
        n_read, missing = _fill(piece, sound, start=n_samples)
        pieces.append(piece[:n_read])
        n_samples += n_read
        _check_size(n_samples * sound.channels)
        is_full = n_read == len(piece)
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)  # a single piece needs no copy
    is_exact = sound.format != "MP3" and sound.frames < containers.LARGEST  # an MP3's length may be an estimate
    if missing is None and is_exact and n_samples < sound.frames:
        missing = f"{n_samples:,} of {sound.frames:,} samples"
    return _Decoded(samples.T, sound.samplerate, missing, is_certain=missing is None)


def _fill(piece: np.ndarray, sound: soundfile.SoundFile, start: int) -> tuple[int, str | None]:
    """Read samples into an array until it is full or the sound ends.

    `start` is the position of the sound, which is counted because ``sound.tell`` would seek.

    Returns
    -------
    n_read : int
    error : str or None
        What ended the sound too early.
    """
    n_read = 0
    block_size = READ_BLOCK
    while n_read < len(piece):
        try:
            block = sound.read(out=piece[n_read : n_read + block_size])
        except soundfile.LibsndfileError as error:
            if block_size > SMALL_READ_BLOCK:  # try again: what lies before the error can be read
                block_size = SMALL_READ_BLOCK
                sound.seek(start + n_read)
                continue
            if start + n_read == 0:
                raise
            return n_read, _reason(error)
        if len(block) == 0:
            break
        n_read += len(block)
    return n_read, None


def _check_size(n_numbers: int) -> None:
    if n_numbers > MOST_NUMBERS:
        raise OSError(f"a sound with more than {MOST_NUMBERS:,} samples (all channels): cut it into parts first")


def _decode_with_ffmpeg(file: _Unnamed, name: str) -> _Decoded:
    """Read a sound with ffmpeg, from a copy or link, so that ffmpeg sees neither its name nor the files beside it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "sound"
        _link_or_copy(file, copy)
        output = _run_ffmpeg(copy)
    errors = [line.replace(f"file:{copy}", "the file") for line in _errors(output.messages)]
    sound = output.sound
    start = int.from_bytes(sound[4:8], "big")  # size of the header of an AU file: six numbers, then ffmpeg's name
    if len(sound) <= max(24, start):
        reason = errors[-1] if errors else "no sound in it"
        raise OSError(f"{name} is truncated or not a known sound ({reason}): use another")
    sample_rate = int.from_bytes(sound[16:20], "big")
    n_channels = int.from_bytes(sound[20:24], "big")
    n_samples = (len(sound) - start) // (4 * n_channels)
    numbers = np.frombuffer(sound, ">f4", count=n_samples * n_channels, offset=start)
    waveform = numbers.astype(np.float32).reshape(n_samples, n_channels).T
    missing = containers.missing_part(file)
    if missing is None and errors:
        missing = errors[-1]
    if missing is None:
        missing = _missing_time(output.messages, n_samples / sample_rate)
    if missing is None and not output.is_complete:
        missing = "ffmpeg gave up"
    return _Decoded(waveform, sample_rate, missing)


def _link_or_copy(file: _Unnamed, copy: Path) -> None:
    """Link to a file on disk if possible, else copy its content."""
    if isinstance(file.raw, io.FileIO):
        try:
            copy.symlink_to(Path(file.raw.name).resolve())
            return
        except OSError:
            pass  # on Windows links need a privilege
    file.seek(0)
    with copy.open("wb") as target:
        shutil.copyfileobj(file, target, BUFFER)


@dataclass(frozen=True)
class _FfmpegOutput:
    sound: bytearray  # an AU file with 32-bit floats
    messages: str
    is_complete: bool  # whether ffmpeg reported success


def _run_ffmpeg(path: Path) -> _FfmpegOutput:
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info"]
    command += ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    command += ["-vn", "-sn", "-dn", "-f", "au", "-c:a", "pcm_f32be", "-"]
    sound = bytearray()
    is_late = threading.Event()
    with tempfile.TemporaryFile() as messages:
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
        assert run.stdout is not None, "stdout is a pipe"

        def stop() -> None:
            is_late.set()
            run.kill()

        timer = threading.Timer(FFMPEG_LIMIT_S, stop)
        timer.start()
        try:
            while block := run.stdout.read(BUFFER):
                sound += block
                _check_size(len(sound) // 4)
            run.wait()
        finally:
            timer.cancel()
            run.kill()  # if the sound is too long
            run.stdout.close()
            run.wait()
        messages.seek(0)
        text = messages.read().decode(errors="replace")
    if is_late.is_set():
        raise OSError(f"ffmpeg took more than {FFMPEG_LIMIT_S} s to read the sound: use a shorter one, or a WAV file")
    return _FfmpegOutput(sound, text, is_complete=run.returncode == 0)


def _errors(messages: str) -> list[str]:
    """Errors in ffmpeg's messages, and warnings of corrupt packets, but not what concerns only its own output."""
    lines = re.findall(r"^(?:\[[^\]\n]* @ \w+\] )?\[(error|fatal|panic|warning)\] (.*)$", messages, re.MULTILINE)
    errors = [line for level, line in lines if level != "warning" or "corrupt" in line]
    return [line for line in errors if "monotonically increasing dts to muxer" not in line]


def _missing_time(messages: str, duration_s: float) -> str | None:
    """What a sound lacks compared to the duration in its header, unless that is a film's or an estimate."""
    is_film = any("Video:" in line and "(attached pic)" not in line for line in messages.splitlines())
    if is_film or "Estimating duration" in messages:
        return None
    found = re.search(r"Duration: (\d+):(\d\d):(\d\d\.\d+)", messages)
    if not found:
        return None
    hours, minutes, seconds = (float(number) for number in found.groups())
    declared_s = 3600 * hours + 60 * minutes + seconds
    if duration_s >= declared_s * (1 - DURATION_TOLERANCE) - 0.5:
        return None
    return f"{duration_s:.2f} of {declared_s:.2f} s"


def encode_audio(
    waveform: np.ndarray, sample_rate: int, file_format: str, *, title: str = "", comment: str = ""
) -> bytes:
    """Encode a sound file; WAV, FLAC and MP3 give the same bytes at every call.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32, range [-1, 1]]
    sample_rate : int
        Hz; MP3 supports nine rates, see `rate_for_mp3`.
    file_format : str
        One of the values of `FORMATS`.
    title, comment : str
        Stored in the file; omitted with a warning if too long for WAV, AIFF or CAF.

    Raises
    ------
    ValueError
        If the format does not support the sample rate or the number of channels.
    """
    title, comment = _shortened(file_format, title, comment)
    file = io.BytesIO()
    try:
        with soundfile.SoundFile(file, "w", sample_rate, len(waveform), format=file_format) as sound:
            if title and file_format != "MP3":
                sound.title = title
            if comment and file_format != "MP3":
                sound.comment = comment
            for start in range(0, waveform.shape[1], WRITE_BLOCK):
                sound.write(waveform[:, start : start + WRITE_BLOCK].T)
    except soundfile.LibsndfileError as error:
        kind = f"{len(waveform)} channel(s) at {sample_rate} Hz"
        raise ValueError(f"{file_format} cannot hold {kind} ({_reason(error)}): use another format or rate") from error
    if file_format == "MP3":
        return id3_tag(title, comment) + file.getvalue()
    return file.getvalue()


def _shortened(file_format: str, title: str, comment: str) -> tuple[str, str]:
    """Omit what a format cannot hold: the comment, and a title that is too long by itself."""
    title = title.encode(errors="replace").decode()
    comment = comment.encode(errors="replace").decode()
    limit = LONGEST_TEXT.get(file_format)
    n_bytes = len((title + comment).encode())
    if limit is None or n_bytes <= limit:
        return title, comment
    warn(
        f"{n_bytes:,} bytes of title and recipe are too much for {file_format}: save as FLAC, Ogg, MP3 or PNG for them"
    )
    if len(title.encode()) > limit:
        title = ""
    return title, ""


def id3_tag(title: str, comment: str) -> bytes:
    """ID3v2.3 tag with both texts as UTF-16, which all players understand; empty if both texts are.

    libsndfile would write UTF-8 into fields that are declared as Latin-1.
    """
    frames = b""
    if title:
        frames += _id3_frame(b"TIT2", b"\x01" + _utf_16(title))
    if comment:
        frames += _id3_frame(b"COMM", b"\x01eng" + _utf_16("") + b"\0\0" + _utf_16(comment))
    if not frames:
        return b""
    size = bytes(len(frames) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + size + frames


def _id3_frame(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "big") + b"\0\0" + content


def _utf_16(text: str) -> bytes:
    return b"\xff\xfe" + text.replace("\0", " ").encode("utf-16-le", errors="replace")


def rate_for_mp3(sample_rate: int) -> int:
    """The lowest sample rate of MP3 that loses nothing of a sound; at most 48,000 Hz."""
    if sample_rate > 48_000:
        return 44_100 if sample_rate % 44_100 == 0 else 48_000
    return min(rate for rate in mp3.MP3_RATES if rate >= sample_rate)


def encode_mp3(waveform: np.ndarray, sample_rate: int, **tags: str) -> bytes:
    """Encode as MP3, resampled if MP3 does not support the sample rate; see `encode_audio`."""
    rate = rate_for_mp3(sample_rate)
    if rate != sample_rate:
        waveform = resample(torch.tensor(waveform), sample_rate, rate).clamp(-1, 1).numpy()
    return encode_audio(waveform, rate, "MP3", **tags)


def encode_for(suffix: str, waveform: np.ndarray, sample_rate: int, **tags: str) -> bytes:
    """Encode in the format of a file name extension: one of `FORMATS`, or one that ffmpeg knows.

    If the format does not support the sample rate, the sound is resampled, with a warning.

    Parameters
    ----------
    suffix : str
        With its dot, in lower case.
    waveform, sample_rate, tags
        As in `encode_audio`.

    Raises
    ------
    ValueError
        If the suffix is not in `FORMATS`, and ffmpeg is missing or cannot write a file that can be read again.
    """
    if suffix == ".mp3":
        _warn_of_rate(suffix, sample_rate, rate_for_mp3(sample_rate))
        return encode_mp3(waveform, sample_rate, **tags)
    if suffix in FORMATS:
        return encode_audio(waveform, sample_rate, FORMATS[suffix], **tags)
    known = f"use .png for a picture, {', '.join(FORMATS)} for a sound"
    if not shutil.which("ffmpeg"):
        raise ValueError(f"no known format ends in {suffix!r}: {known}, or install ffmpeg for others")
    with tempfile.TemporaryDirectory() as folder:  # some formats cannot be written to a pipe
        file = Path(folder) / f"sound{suffix}"
        command = ["ffmpeg", "-v", "error", "-f", "flac", "-i", "-", f"file:{file}"]
        flac = encode_audio(waveform, sample_rate, "FLAC", **tags)
        try:
            run = subprocess.run(command, input=flac, capture_output=True, check=False, timeout=FFMPEG_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"ffmpeg took more than {FFMPEG_LIMIT_S} s to write {suffix!r}: {known}") from error
        if run.returncode != 0 or not file.is_file():
            raise ValueError(f"neither soundfile nor ffmpeg knows sounds that end in {suffix!r}: {known}")
        _warn_of_rate(suffix, sample_rate, _rate_read_back(file, waveform, sample_rate, known))
        return file.read_bytes()


def _rate_read_back(file: Path, waveform: np.ndarray, sample_rate: int, known: str) -> int:
    """Sample rate of a file that ffmpeg has written; an error if reading it does not return the same sound."""
    refused = f"what ffmpeg writes for {file.suffix!r} cannot be read again as the same sound: {known}"
    try:
        again, rate = read_audio(file)
    except OSError as error:
        raise ValueError(refused) from error
    longer_s = again.shape[1] / rate - waveform.shape[1] / sample_rate
    if len(again) != len(waveform) or not -0.1 < longer_s < 0.2:  # lossy formats pad their last block
        raise ValueError(refused)
    return rate


def _warn_of_rate(suffix: str, sample_rate: int, rate: int) -> None:
    if rate != sample_rate:
        warn(f"{suffix} does not support a sample rate of {sample_rate:,} Hz: the sound is saved at {rate:,} Hz")
