"""Sounds in memory, as libraries hand them over: arrays, tensors, lists, pairs with a rate, dicts."""

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
from .values import check_number, check_whole, warn

Channel = Literal["mix", "left", "right", "side"] | int
FULL_SCALE = {"int8": 2.0**7, "uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}  # widths that sound files have
MOST_CHANNELS = 8  # an array with more rows is (samples, channels), or no sound
CANCELLED_DB = 3  # a mix that loses so much more than channels do that have nothing in common
SAMPLES_KEYS = ("array", "raw", "audio", "waveform")  # of 🤗 datasets, 🤗 pipelines (in and out) and torchaudio's users
RATE_KEYS = ("sampling_rate", "sample_rate")


def load_sound(source: Any, sample_rate: int | None = None, *, torn: Torn = "error") -> tuple[np.ndarray, int, str]:
    """Read a sound from a file, or take it from memory.

    Parameters
    ----------
    source : path, bytes, binary file, array, pair or dict
        See `Clip.from_audio`.
    sample_rate : int, optional
        In Hz; of samples that do not bring their own.
    torn : {"error", "keep"}
        See `read_audio`.

    Returns
    -------
    waveform : np.ndarray [shape=(channels, samples), float32]
    sample_rate : int
        Hz
    name : str
        What an error calls it.

    Raises
    ------
    OSError, TypeError, ValueError
        If this is no sound, or its rate is missing or given twice.
    """
    if isinstance(source, (str, os.PathLike)) or is_file_like(source):
        name = name_of(source, "the sound file")
        _refuse_rate(sample_rate, f"the file {name}", "leave it out, files say it")
        return *read_audio(source, torn=torn), name
    if isinstance(source, Mapping):
        return _load_dict(source, sample_rate, torn=torn)
    if callable(getattr(source, "get_all_samples", None)):  # torchcodec's decoder, of which 🤗 datasets are made
        decoded = source.get_all_samples()
        source = (decoded.data, decoded.sample_rate)
    pair = _as_pair(source)
    if pair is not None:
        _refuse_rate(sample_rate, f"a pair with the rate {pair[1]}", "leave one of them out")
        source, sample_rate = pair
    waveform = _named(as_waveform, source)
    return waveform, _named(check_rate, sample_rate), "the sound"


def _named(check: Any, value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"the sound: {error}") from error


def _refuse_rate(sample_rate: int | None, what: str, advice: str) -> None:
    if sample_rate is not None:
        raise ValueError(f"sample_rate {sample_rate} for {what}: {advice}")


def _load_dict(source: Mapping[str, Any], sample_rate: int | None, *, torn: Torn) -> tuple[np.ndarray, int, str]:
    """Take a sound from a dict: samples and their rate, or a file's bytes or path."""
    samples = _first_of(source, SAMPLES_KEYS)
    if samples is not None:
        rate = _first_of(source, RATE_KEYS)
        if rate is not None:
            _refuse_rate(sample_rate, f"a dict with the rate {rate}", "leave one of them out")
        return load_sound(samples, sample_rate if rate is None else rate, torn=torn)
    file = _first_of(source, ("bytes", "path"))
    if file is None:
        keys = ", ".join(map(str, source)) or "no keys"
        wanted = "give one with 'array' and 'sampling_rate', or with 'bytes' or 'path'"
        raise TypeError(f"a dict with {keys} is no sound: {wanted}")
    return load_sound(file, sample_rate, torn=torn)


def _first_of(source: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((source[key] for key in keys if source.get(key) is not None), None)


def _as_pair(source: Any) -> tuple[Any, Any] | None:
    """Samples and rate of a pair in either order: (samples, rate) as of librosa, (rate, samples) as of SciPy."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        return None
    first, second = source
    if _is_scalar(first) == _is_scalar(second):
        return None
    return (second, first) if _is_scalar(first) else (first, second)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or getattr(value, "ndim", None) == 0


def as_waveform(samples: Any) -> np.ndarray:
    """Check an array of samples and bring it into this package's form.

    Parameters
    ----------
    samples : array [shape=(samples,), (channels, samples) or (samples, channels)]
        NumPy's, PyTorch's, pandas', a list, or whatever NumPy can read. Floats in [-1, 1], signed integers of 8, 16 or
        32 bits, or unsigned ones of 8 bits, as in a WAV file. More than 8 rows of at most 8 numbers are
        (samples, channels).

    Returns
    -------
    np.ndarray [shape=(channels, samples), float32]

    Raises
    ------
    TypeError
        If these are no numbers, or integers that do not say their full scale.
    ValueError
        If the shape is another, or a sample is NaN, masked or infinite.
    """
    array = _as_array(samples)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"a sound of dtype {array.dtype}: give an array of floats in [-1, 1], or of signed integers")
    if array.ndim not in (1, 2):
        raise ValueError(f"a sound of shape {array.shape}: give (samples,) or (channels, samples)")
    array = np.atleast_2d(array)
    if array.shape[0] > MOST_CHANNELS >= array.shape[1] > 0:
        array = array.T
    if array.shape[0] == 0:
        raise ValueError(f"a sound of shape {array.shape} has no channels: give at least one")
    if array.shape[0] > max(MOST_CHANNELS, array.shape[1]):
        raise ValueError(f"a sound of shape {array.shape}: give (channels, samples), perhaps `.T` is missing")
    waveform = _as_floats(array)
    broken = ~np.isfinite(waveform)
    if broken.any():
        first = int(np.flatnonzero(broken.any(axis=0))[0])
        raise ValueError(f"{broken.sum()} samples are NaN or infinite, the first is number {first}: repair the sound")
    return waveform


def _as_array(samples: Any) -> np.ndarray:
    """Let NumPy read it, whoever made it."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        return (samples.float() if samples.is_floating_point() else samples).numpy()
    if isinstance(samples, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in samples):
        samples = [_as_array(part) for part in samples]
    if isinstance(samples, np.ma.MaskedArray):
        return samples.astype(float).filled(np.nan) if samples.mask.any() else samples.data
    if hasattr(samples, "waveform") and hasattr(samples, "sample_rate"):
        raise TypeError("this is a clip already: give its samples, Clip.from_audio(clip.waveform, clip.sample_rate)")
    try:
        array = np.asarray(samples)
    except ValueError as error:  # NumPy's words for rows that are not alike
        raise ValueError("its channels are not of one length: give (samples,) or (channels, samples)") from error
    if array.dtype == object and hasattr(samples, "to_numpy"):  # pandas' own kinds of numbers, with NA for NaN
        return samples.to_numpy(dtype=float, na_value=math.nan)
    return array


def _as_floats(array: np.ndarray) -> np.ndarray:
    """Scale integers by their width."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    full_scale = FULL_SCALE.get(array.dtype.name)
    if full_scale is None:
        advice = "divide by it, samples / 32768 for 16 bits, or give an array of dtype int16"
        raise TypeError(f"samples of dtype {array.dtype} do not say what full scale is: {advice}")
    middle = full_scale if array.dtype.kind == "u" else 0.0
    return ((array - middle) / full_scale).astype(np.float32)


def check_rate(sample_rate: int | None) -> int:
    """Return the sample rate of an array of samples in Hz.

    Raises
    ------
    TypeError, ValueError
        If it is missing, no number, or no sound has it.
    """
    if sample_rate is None:
        raise ValueError("an array of samples does not say its rate: give sample_rate=44100, or whatever it is")
    if getattr(sample_rate, "ndim", None) == 0:  # an array or a tensor of one number
        sample_rate = sample_rate.item()
    if check_number("sample_rate", sample_rate, 1_000, 1_000_000) != int(sample_rate):
        raise ValueError(f"sample_rate is {sample_rate!r}: give a whole number of hertz")
    return int(sample_rate)


def pick_channel(waveform: np.ndarray, channel: Channel) -> np.ndarray:
    """Choose what is heard of several channels.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    channel : {"mix", "left", "right", "side"} or int
        All of them; the first; the second; half the difference of both, which holds what is not in the middle; or
        one by its number, from 0.

    Returns
    -------
    np.ndarray [shape=(channels, samples) for "mix", else (1, samples), float32]

    Raises
    ------
    ValueError, TypeError
        If there is no such channel.
    """
    if isinstance(channel, str) and channel == "mix":
        return waveform
    if not isinstance(channel, str):
        number = check_whole(f"channel, of {len(waveform)},", channel, 0, len(waveform) - 1)
        return waveform[number : number + 1]
    if channel not in ("left", "right", "side"):
        raise ValueError(f"channel is {channel!r}: give 'mix', 'left', 'right', 'side', or a number from 0")
    if len(waveform) < 2:
        raise ValueError(f"channel is {channel!r}, but the sound has one channel only: leave it out")
    left, right = waveform[:1], waveform[1:2]
    if channel == "side":
        return (left - right) / 2
    return left if channel == "left" else right


def mix_channels(waveform: np.ndarray, n_channels: int) -> np.ndarray:
    """Mix to mono, or give both channels of stereo a mono sound. A mix whose channels cancel brings a warning.

    Raises
    ------
    ValueError
        If there are more than two channels and stereo is wanted.
    """
    if n_channels == 1:
        mix = waveform.mean(axis=0, keepdims=True)
        _warn_if_cancelled(waveform, mix)
        return mix
    if len(waveform) > 2:
        raise ValueError(f"a sound of {len(waveform)} channels: stereo takes one or two; mix it first")
    return np.broadcast_to(waveform, (2, waveform.shape[1]))


def _warn_if_cancelled(waveform: np.ndarray, mix: np.ndarray) -> None:
    """Warn of channels that are opposite: their mix is quieter than one of as many channels alike in nothing."""
    n_channels = len(waveform)
    if n_channels == 1 or waveform.shape[1] == 0:
        return
    power, mixed_power = _power(waveform), _power(mix)
    if power == 0 or mixed_power * n_channels * 10 ** (CANCELLED_DB / 10) > power:
        return
    loss = f"{10 * math.log10(power / mixed_power):.0f} dB quieter than they are" if mixed_power else "silent"
    warn(f"the channels cancel each other, their mix is {loss}: give channel='left', 'right' or 'side'")


def _power(waveform: np.ndarray) -> float:
    """Mean square of all samples; takes no memory."""
    return sum(float(np.vdot(channel, channel)) for channel in waveform) / waveform.size
