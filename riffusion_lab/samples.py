"""Sounds in memory, in the forms that libraries use: arrays, tensors, lists, pairs with a sample rate, dicts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch

from .files import is_file_like, name_of
from .soundfiles import Torn, read_audio
from .values import as_scalar, check_number, check_whole, warn

Channel = Literal["mix", "left", "right", "side"] | int
FULL_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}  # sample formats of sound files
MAX_CHANNELS = 8  # an array with more rows is taken for (samples, channels)
CANCELLED_DB = 3  # warn if a mix loses this much more level than uncorrelated channels would
SAMPLES_KEYS = ("array", "raw", "audio", "waveform")  # of 🤗 datasets, 🤗 pipelines (in and out) and torchaudio's users
RATE_KEYS = ("sampling_rate", "sample_rate")


def load_sound(source: Any, sample_rate: int | None = None, *, torn: Torn = "error") -> tuple[np.ndarray, int, str]:
    """Read a sound from a file or from memory.

    Parameters
    ----------
    source : path, bytes, binary file, array, pair or dict
        See `Clip.from_audio`.
    sample_rate : int, optional
        In Hz, for samples without a rate of their own.
    torn : {"error", "keep"}
        See `read_audio`.

    Returns
    -------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz
    name : str
        What error messages call the sound.

    Raises
    ------
    OSError, TypeError, ValueError
        If this is not a sound, or its sample rate is missing or specified twice.
    """
    if isinstance(source, (str, os.PathLike)) or is_file_like(source):
        name = name_of(source, "the sound file")
        _refuse_rate(sample_rate, f"the file {name}", "leave it out, files contain it")
        waveform, file_rate = read_audio(source, torn=torn)
        return waveform, file_rate, name
    if isinstance(source, Mapping):
        return _load_dict(source, sample_rate, torn=torn)
    if callable(getattr(source, "get_all_samples", None)):  # torchcodec's decoder, which 🤗 datasets return
        decoded = source.get_all_samples()
        source = (decoded.data, decoded.sample_rate)
    pair = _as_pair(source)
    if pair is not None:
        _refuse_rate(sample_rate, f"a pair with the rate {pair[1]}", "leave one of them out")
        source, sample_rate = pair
    try:
        return as_waveform(source), check_rate(sample_rate), "the sound"
    except ValueError as error:
        raise ValueError(f"the sound: {error}") from error


def _refuse_rate(sample_rate: int | None, what: str, advice: str) -> None:
    if sample_rate is not None:
        raise ValueError(f"sample_rate {sample_rate} for {what}: {advice}")


def _load_dict(source: Mapping[str, Any], sample_rate: int | None, *, torn: Torn) -> tuple[np.ndarray, int, str]:
    """Load a sound from a dict: samples and their rate, or the bytes or the path of a file."""
    samples = _first_of(source, SAMPLES_KEYS)
    if samples is not None:
        rate = _first_of(source, RATE_KEYS)
        if rate is None:
            rate = sample_rate
        else:
            _refuse_rate(sample_rate, f"a dict with the rate {rate}", "leave one of them out")
        return load_sound(samples, rate, torn=torn)
    file = _first_of(source, ("bytes", "path"))
    if file is None:
        keys = ", ".join(map(str, source)) or "no keys"
        advice = "pass one with 'array' and 'sampling_rate', or with 'bytes' or 'path'"
        raise TypeError(f"a dict with {keys} is not a sound: {advice}")
    return load_sound(file, sample_rate, torn=torn)


def _first_of(source: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Value of the first key that is there and not None."""
    return next((source[key] for key in keys if source.get(key) is not None), None)


def _as_pair(source: Any) -> tuple[Any, Any] | None:
    """Samples and rate of a pair in either order: librosa's (samples, rate) or SciPy's (rate, samples)."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        return None
    first, second = source
    if _is_scalar(first) == _is_scalar(second):
        return None
    if _is_scalar(first):
        return second, first
    return first, second


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or getattr(value, "ndim", None) == 0


def as_waveform(samples: Any) -> np.ndarray:
    """Convert an array of samples to this package's form.

    Parameters
    ----------
    samples : array [shape=(samples,), (channels, samples) or (samples, channels)]
        From NumPy, PyTorch or pandas, a list, or whatever else NumPy can convert. Floats in [-1, 1], signed integers of
        8, 16 or 32 bits, or unsigned integers of 8 bits as in a WAV file. An array with more than 8 rows and at most 8
        columns is (samples, channels).

    Returns
    -------
    np.ndarray [shape=(channels, samples), float32]

    Raises
    ------
    TypeError
        If these are not numbers, or integers whose full scale is unknown.
    ValueError
        If the shape is wrong, or a sample is NaN, masked or infinite.
    """
    array = _as_array(samples)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"a sound of dtype {array.dtype}: use an array of floats in [-1, 1], or of signed integers")
    if array.ndim not in (1, 2):
        raise ValueError(f"a sound of shape {array.shape}: use (samples,) or (channels, samples)")
    array = np.atleast_2d(array)
    if array.shape[0] > MAX_CHANNELS >= array.shape[1] > 0:
        array = array.T
    if array.shape[0] == 0:
        raise ValueError(f"a sound of shape {array.shape} has no channels: pass at least one")
    if array.shape[0] > max(MAX_CHANNELS, array.shape[1]):
        raise ValueError(f"a sound of shape {array.shape}: use (channels, samples), perhaps `.T` is missing")
    waveform = _as_floats(array)
    broken = ~np.isfinite(waveform)
    if broken.any():
        first = int(np.flatnonzero(broken.any(axis=0))[0])
        raise ValueError(f"{broken.sum()} samples are NaN or infinite, the first at index {first}: repair the sound")
    return waveform


def _as_array(samples: Any) -> np.ndarray:
    """Convert to a NumPy array, from whatever library."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        if samples.is_floating_point():
            samples = samples.float()  # NumPy has no bfloat16
        return samples.numpy()
    if isinstance(samples, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in samples):
        samples = [_as_array(part) for part in samples]
    if isinstance(samples, np.ma.MaskedArray):
        if not samples.mask.any():
            return samples.data
        return np.ma.filled(samples.astype(float), np.nan)
    if hasattr(samples, "waveform") and hasattr(samples, "sample_rate"):
        raise TypeError("this is a clip already: pass its samples, Clip.from_audio(clip.waveform, clip.sample_rate)")
    try:
        array = np.asarray(samples)
    except ValueError as error:  # NumPy's message speaks of inhomogeneous shapes
        raise ValueError("its channels differ in length: use (samples,) or (channels, samples)") from error
    if array.dtype == object and hasattr(samples, "to_numpy"):  # pandas' nullable dtypes, with NA for NaN
        return np.asarray(samples.to_numpy(dtype=float, na_value=math.nan))
    return array


def _as_floats(array: np.ndarray) -> np.ndarray:
    """Convert samples to float32; integers are divided by their full scale."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    full_scale = FULL_SCALE.get(array.dtype.name)
    if full_scale is None:
        advice = "divide by it, samples / 32768 for 16 bits, or use an array of dtype int16"
        raise TypeError(f"the full scale of samples of dtype {array.dtype} is not known: {advice}")
    zero = full_scale if array.dtype.kind == "u" else 0.0
    scaled = (array - zero) / full_scale
    return scaled.astype(np.float32)


def check_rate(sample_rate: object) -> int:
    """Return the sample rate of an array of samples, in Hz.

    Raises
    ------
    TypeError, ValueError
        If it is missing, not a whole number, or out of range.
    """
    if sample_rate is None:
        raise ValueError("an array of samples contains no sample rate: pass sample_rate=44100, or whatever it is")
    sample_rate = as_scalar(sample_rate)
    number = check_number("sample_rate", sample_rate, 1_000, 1_000_000)
    if not number.is_integer():
        raise ValueError(f"sample_rate is {sample_rate!r}: use a whole number of hertz")
    return int(number)


def pick_channel(waveform: np.ndarray, channel: Channel) -> np.ndarray:
    """Select from several channels.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    channel : {"mix", "left", "right", "side"} or int
        All of them; the first; the second; half their difference, which contains what is not panned to the centre; or
        one by number, from 0.

    Returns
    -------
    np.ndarray [shape=(channels, samples) for "mix", else (1, samples), float32]

    Raises
    ------
    ValueError, TypeError
        If there is no such channel.
    """
    if not isinstance(channel, str):
        number = check_whole(f"channel, of {len(waveform)},", channel, 0, len(waveform) - 1)
        return waveform[number : number + 1]
    if channel == "mix":
        return waveform
    if channel not in ("left", "right", "side"):
        raise ValueError(f"channel is {channel!r}: use 'mix', 'left', 'right', 'side', or a number from 0")
    if len(waveform) < 2:
        raise ValueError(f"channel is {channel!r}, but the sound has one channel only: leave it out")
    left = waveform[:1]
    right = waveform[1:2]
    if channel == "left":
        return left
    if channel == "right":
        return right
    return (left - right) / 2


def mix_channels(waveform: np.ndarray, n_channels: int) -> np.ndarray:
    """Mix to mono, or copy mono to both channels of stereo. Warns if the channels cancel each other in the mix.

    Raises
    ------
    ValueError
        If more than two channels are to become stereo.
    """
    if n_channels == 1:
        mix = waveform.mean(axis=0, keepdims=True)
        _warn_if_cancelled(waveform, mix)
        return mix
    if len(waveform) > 2:
        raise ValueError(f"a sound of {len(waveform)} channels: stereo takes one or two; mix it first")
    return np.broadcast_to(waveform, (2, waveform.shape[1]))


def _warn_if_cancelled(waveform: np.ndarray, mix: np.ndarray) -> None:
    """Warn of channels in opposite phase: their mix is much quieter than that of uncorrelated channels."""
    n_channels = len(waveform)
    if n_channels == 1 or waveform.shape[1] == 0:
        return
    power = _power(waveform)
    mixed_power = _power(mix)
    uncorrelated_power = power / n_channels
    if power == 0 or mixed_power * 10 ** (CANCELLED_DB / 10) > uncorrelated_power:
        return
    if mixed_power == 0:
        loss = "silent"
    else:
        loss = f"{10 * math.log10(power / mixed_power):.0f} dB quieter than they are"
    warn(f"the channels cancel each other, their mix is {loss}: pass channel='left', 'right' or 'side'")


def _power(waveform: np.ndarray) -> float:
    """Mean square of all samples, computed without a copy."""
    energy = sum(float(np.vdot(channel, channel)) for channel in waveform)
    return energy / waveform.size
