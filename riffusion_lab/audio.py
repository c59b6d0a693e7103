"""Reading, writing, resampling and measuring sounds."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from .files import existing_file
from .values import check_number

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3", ".aiff": "AIFF", ".caf": "CAF"}
RMS_DBFS, PEAK_DBFS = -18.0, -1.0  # the level of sounds that bring none
LOUDEST_DBFS = -4.5  # RMS of the loudest sounds that are kept at their level
BLOCK = 65_536  # samples; libsndfile overflows its stack on long Ogg Vorbis writes


def read_audio(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Read a sound file: WAV, FLAC, Ogg, MP3, AIFF; anything else that ffmpeg knows, where it is installed.

    Returns
    -------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz

    Raises
    ------
    OSError
        If the file is missing, empty, torn, or no sound.
    """
    path = existing_file(path, "a sound")
    try:
        return _decode(path)
    except (soundfile.LibsndfileError, EOFError) as error:
        if _is_torn_riff(path) or not shutil.which("ffmpeg"):
            advice = "give a whole WAV, FLAC, Ogg or MP3 file, or install ffmpeg for others"
            raise OSError(f"{path} is torn or no known sound ({error}): {advice}") from error
    return _decode_with_ffmpeg(path)


def _decode(file: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    if isinstance(file, Path) and _is_torn_riff(file):
        raise EOFError("it ends before its header says so")
    with soundfile.SoundFile(file) as sound:
        samples = sound.read(dtype="float32", always_2d=True)
        if len(samples) < sound.frames:
            raise EOFError(f"{len(samples)} of {sound.frames} samples")
        return samples.T, sound.samplerate


def _decode_with_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
    command = ["ffmpeg", "-v", "error", "-xerror", "-i", f"file:{path}", "-vn", "-f", "au", "-c:a", "pcm_f32be", "-"]
    run = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if run.returncode != 0 or not run.stdout:
        reason = run.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"{path} is torn or no known sound ({reason[-1] if reason else 'no sound in it'}): give another")
    return _decode(io.BytesIO(run.stdout))


def _is_torn_riff(path: Path) -> bool:
    """Whether a WAV file is shorter than its header says: libsndfile would read what is left without a word."""
    with path.open("rb") as file:
        header = file.read(8)
    size = int.from_bytes(header[4:], "little")
    unknown = size in (0, 0xFFFFFFFF)  # written to a pipe
    return header[:4] == b"RIFF" and not unknown and path.stat().st_size < size + 8


def encode_audio(
    waveform: np.ndarray, sample_rate: int, file_format: str, *, title: str = "", comment: str = ""
) -> bytes:
    """Bytes of a sound file. WAV, FLAC and MP3 come out the same at every call.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32, range [-1, 1]]
    sample_rate : int
        Hz
    file_format : str
        One of the values of `FORMATS`.
    title, comment : str
        Stored in the file.
    """
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", sample_rate, len(waveform), format=file_format) as sound:
        if title:
            sound.title = title
        if comment:
            sound.comment = comment
        for start in range(0, waveform.shape[1], BLOCK):
            sound.write(waveform[:, start : start + BLOCK].T)
    return file.getvalue()


def encode_for(suffix: str, waveform: np.ndarray, sample_rate: int, **tags: str) -> bytes:
    """Bytes of a sound file in the format that a suffix stands for: one of `FORMATS`, else what ffmpeg takes it for.

    Parameters
    ----------
    suffix : str
        With its dot, in small letters.
    waveform, sample_rate, tags
        As in `encode_audio`; ffmpeg is given no tags.

    Raises
    ------
    ValueError
        If the suffix is none of `FORMATS`, and ffmpeg is missing or does not know it either.
    """
    if suffix in FORMATS:
        return encode_audio(waveform, sample_rate, FORMATS[suffix], **tags)
    known = f"give .png for a picture, {', '.join(FORMATS)} for a sound"
    if not shutil.which("ffmpeg"):
        raise ValueError(f"no known format ends in {suffix!r}: {known}, or install ffmpeg for others")
    with tempfile.TemporaryDirectory() as folder:  # some formats cannot be written to a pipe
        file = Path(folder) / f"sound{suffix}"
        command = ["ffmpeg", "-v", "error", "-f", "wav", "-i", "-", f"file:{file}"]
        wav = encode_audio(waveform, sample_rate, "WAV")
        run = subprocess.run(command, input=wav, capture_output=True, check=False)
        if run.returncode != 0 or not file.is_file():
            raise ValueError(f"neither soundfile nor ffmpeg knows sounds that end in {suffix!r}: {known}")
        return file.read_bytes()


def as_waveform(samples: np.ndarray | torch.Tensor | list[float]) -> np.ndarray:
    """Check an array of samples and bring it into this package's form.

    Parameters
    ----------
    samples : array [shape=(samples,) or (channels, samples), floats in [-1, 1] or signed integers]

    Returns
    -------
    np.ndarray [shape=(channels, samples), float32]

    Raises
    ------
    TypeError
        If these are no numbers.
    ValueError
        If the shape is another, or a sample is NaN or infinite.
    """
    array = np.asarray(samples)
    if array.dtype.kind not in "fi":
        raise TypeError(f"a sound of dtype {array.dtype}: give an array of floats in [-1, 1], or of signed integers")
    if array.ndim not in (1, 2):
        raise ValueError(f"a sound of shape {array.shape}: give (samples,) or (channels, samples)")
    scale = 1.0 if array.dtype.kind == "f" else -float(np.iinfo(array.dtype).min)
    waveform = np.atleast_2d(array / scale).astype(np.float32)
    if waveform.shape[0] > max(8, waveform.shape[1]):
        raise ValueError(f"a sound of shape {array.shape}: give (channels, samples), perhaps `.T` is missing")
    broken = ~np.isfinite(waveform)
    if broken.any():
        first = int(np.flatnonzero(broken.any(axis=0))[0])
        raise ValueError(f"{broken.sum()} samples are NaN or infinite, the first is number {first}: repair the sound")
    return waveform


def check_rate(sample_rate: int | None) -> int:
    """Return the sample rate of an array of samples in Hz.

    Raises
    ------
    TypeError, ValueError
        If it is missing, no number, or no sound has it.
    """
    if sample_rate is None:
        raise ValueError("an array of samples does not say its rate: give sample_rate=44100, or whatever it is")
    if check_number("sample_rate", sample_rate, 1_000, 1_000_000) != int(sample_rate):
        raise ValueError(f"sample_rate is {sample_rate!r}: give a whole number of hertz")
    return int(sample_rate)


def mix_channels(waveform: np.ndarray, n_channels: int) -> np.ndarray:
    """Mix to mono, or give both channels of stereo a mono sound.

    Raises
    ------
    ValueError
        If there are more than two channels and stereo is wanted.
    """
    if n_channels == 1:
        return waveform.mean(axis=0, keepdims=True)
    if len(waveform) > 2:
        raise ValueError(f"a sound of {len(waveform)} channels: stereo takes one or two; mix it first")
    return np.broadcast_to(waveform, (2, waveform.shape[1]))


def reflected(index: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Mirror indices that lie beyond the ends of a sound back into it, at the first and the last sample.

    Parameters
    ----------
    index : torch.Tensor [shape=(n,), int64]
    n_samples : int

    Returns
    -------
    torch.Tensor [shape=(n,), int64, range [0, n_samples)]
        However far the index lies outside: as ``numpy.pad(..., mode="reflect")``.
    """
    period = max(1, 2 * (n_samples - 1))
    index = index.abs() % period
    return torch.minimum(index, period - index)


def resample(waveform: torch.Tensor, from_rate: int, to_rate: int, *, loop: bool = False) -> torch.Tensor:
    """Change the sample rate by cutting or widening the spectrum: exact below both Nyquist frequencies.

    Unlike a filter bank this keeps a loop closed, loses nothing near the top, and takes any pair of rates.

    Parameters
    ----------
    waveform : torch.Tensor [shape=(..., n_samples), float32]
    from_rate, to_rate : int
        Only their ratio counts.
    loop : bool
        Take the end and the beginning for neighbours; otherwise the sound goes on mirrored beyond both ends, and
        fades out there, so that an end that is cut off does not ring.

    Returns
    -------
    torch.Tensor [shape=(..., round(n_samples * to_rate / from_rate)), float32]
    """
    if from_rate == to_rate:
        return waveform
    n_samples = waveform.shape[-1]
    n_resampled = round(n_samples * to_rate / from_rate)
    if loop:
        return _resize_spectrum(waveform, n_resampled)
    # A second before, and one or more behind, keep the ends apart; whole seconds keep the ratio exact.
    seconds = math.ceil(n_samples / from_rate) + 2
    time = torch.arange(-from_rate, (seconds - 1) * from_rate, device=waveform.device)
    outside = (torch.clamp(-time, min=0) + torch.clamp(time - n_samples + 1, min=0)) / from_rate  # seconds
    fading = (1 - outside).clamp(min=0)
    padded = waveform[..., reflected(time, n_samples)] * fading
    return _resize_spectrum(padded, seconds * to_rate)[..., to_rate : to_rate + n_resampled]


def _resize_spectrum(waveform: torch.Tensor, n_samples: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(waveform), n=n_samples) * (n_samples / waveform.shape[-1])


def peak_dbfs(waveform: np.ndarray) -> float:
    """Largest sample in dB below full scale; minus infinity for silence."""
    return _decibels(float(np.abs(waveform).max(initial=0.0)))


def rms_dbfs(waveform: np.ndarray) -> float:
    """Root mean square in dB below full scale: a full-scale sine has -3.0; minus infinity for silence."""
    return _decibels(math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64)))))


def level_gain(waveform: np.ndarray, *, is_known: bool) -> tuple[float, float]:
    """Gain that brings a reconstructed sound to its level, and the largest amplitude that it may have then.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    is_known : bool
        Whether the sound comes at its own level, which is kept; but above -4.5 dBFS RMS no music is left unharmed by
        full scale, so what is louder is turned down to that. Otherwise it gets -18 dBFS RMS. Silence stays silence.

    Returns
    -------
    gain : float
    ceiling : float
        1 where the level is known, else -1 dBFS.
    """
    ceiling = 1.0 if is_known else 10 ** (PEAK_DBFS / 20)
    if not waveform.any():
        return 1.0, ceiling
    level = rms_dbfs(waveform)
    wanted = min(level, LOUDEST_DBFS) if is_known else RMS_DBFS
    return 10 ** ((wanted - level) / 20), ceiling


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf
