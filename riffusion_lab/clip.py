"""The clip: a sound together with its spectrogram picture."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from . import audio, mixing
from .files import is_file_like, name_of, write_to
from .image import Picture, encode_image, image_from_mel, mel_from_image, open_image
from .params import SpectrogramParams
from .phase import lower_peaks, waveform_from_mel
from .samples import Channel
from .soundfiles import Torn
from .spectrogram import mel_from_waveform, n_columns
from .torch_defaults import torch_defaults
from .values import check_number, check_whole, warn

LONG_S = 60  # longer sounds work, but take time and memory: a warning says so


class Clip:
    """A sound and its spectrogram picture, with everything needed to compute either from the other.

    Make one with `Clip.from_audio` or `Clip.from_image`. A notebook shows its spectrogram and a player.
    A clip is immutable. A clip made from a sound computes its picture on first access, and a clip made from a picture
    computes its waveform; the result is kept.

    Taught in: 01
    """

    def __init__(self, params: SpectrogramParams, *, loop: bool, recipe: dict[str, Any] | None) -> None:
        self.params = params
        self.loop = loop
        self._recipe = _json_copy(recipe)
        self._limited_db = 0.0

    @classmethod
    @torch_defaults()
    def from_audio(
        cls,
        path_or_array: Any,
        sample_rate: int | None = None,
        *,
        params: SpectrogramParams | None = None,
        loop: bool = False,
        recipe: dict[str, Any] | None = None,
        channel: Channel = "mix",
        torn: Torn = "error",
    ) -> Clip:
        """Make a clip from a sound.

        Parameters
        ----------
        path_or_array : path, bytes, binary file, array, pair or dict
            A sound file: its path, its bytes, or an open file. Or samples [shape=(samples,), (channels, samples) or
            (samples, channels)], floats in [-1, 1] or integers of 8, 16 or 32 bits, from NumPy, PyTorch, pandas or a
            list. Samples may come with their rate: as a pair, as `librosa.load` or `scipy.io.wavfile.read` return it,
            or as a dict of 🤗 datasets: {"array", "sampling_rate"} or {"bytes", "path"}.
        sample_rate : int, optional
            In Hz, for an array. Files, pairs and dicts contain their own.
        params : SpectrogramParams, optional
            Default: Riffusion's. They are mono, so channels are mixed.
        loop : bool
            Whether the end continues at the beginning.
        recipe : dict, optional
            How the sound was made; must be serializable as JSON.
        channel : {"mix", "left", "right", "side"} or int
            Which of several channels to use: all of them, one (by name, or by number from 0), or half the difference
            of left and right.
        torn : {"error", "keep"}
            What to do with a truncated file: raise an error, or keep what is left of it, with a warning.

        Returns
        -------
        Clip
            Resampled to `params.sample_rate`. Its length is rounded to a whole number of columns, by cutting up to half
            a column off the end or padding it with silence.

        Raises
        ------
        OSError
            If the file is missing, empty, truncated, or not a sound.
        ValueError, TypeError
            If there is less than half a column of sound, a sample is NaN, the sample rate is missing, the full scale
            of integer samples is unknown, or there is no such channel.
        """
        params = params or SpectrogramParams()
        waveform, sample_rate, name = audio.load_sound(path_or_array, sample_rate, torn=torn)
        try:
            waveform = audio.pick_channel(waveform, channel)
            waveform = _conform(waveform, sample_rate, params, loop=loop)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        clip = cls.from_waveform(waveform, params, loop=loop, recipe=recipe)
        _warn_if_long(clip, name)
        return clip

    @classmethod
    def from_image(
        cls,
        path_or_image: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
        *,
        params: SpectrogramParams | None = None,
        loop: bool | None = None,
        recipe: dict[str, Any] | None = None,
        maximum: float | None = None,
        invert: bool = False,
    ) -> Clip:
        """Make a clip from a spectrogram picture.

        Parameters
        ----------
        path_or_image : path, bytes, binary file or PIL.Image.Image
        params, loop, recipe, maximum : optional
            Override the picture's metadata. Without metadata the defaults are Riffusion's params, no loop, no recipe
            and an unknown maximum. `maximum` sets the level: it is the mel amplitude of black, for samples in [-1, 1].
        invert : bool
            Whether bright means loud in this picture. In Riffusion's, dark means loud.

        Returns
        -------
        Clip
            At the picture's own level if it is known; else at an RMS of -18 dBFS, with a peak of at most -1 dBFS.

        Raises
        ------
        OSError
            If the file is missing, truncated, or not a picture.
        ValueError, TypeError
            If the picture cannot be a spectrogram.
        """
        is_picture = isinstance(path_or_image, (str, os.PathLike, Image.Image)) or is_file_like(path_or_image)
        if not is_picture:
            raise TypeError(f"{type(path_or_image).__name__} is not a picture: pass a path or a PIL image")
        picture = open_image(path_or_image, params, invert=invert)
        if loop is not None:
            picture = replace(picture, loop=loop)
        if recipe is not None:
            picture = replace(picture, recipe=recipe)
        if maximum is not None:
            picture = replace(picture, maximum=maximum)
        clip = cls.from_picture(picture)
        _warn_if_long(clip, "the picture")
        return clip

    @classmethod
    def from_waveform(
        cls, waveform: np.ndarray, params: SpectrogramParams, loop: bool = False, recipe: dict[str, Any] | None = None
    ) -> Clip:
        """Make a clip from samples that already have the format of `Clip.waveform` and fill whole columns."""
        clip = cls(params, loop=bool(loop), recipe=recipe)
        clip.waveform = _read_only(waveform)
        return clip

    @classmethod
    def from_picture(cls, picture: Picture) -> Clip:
        """Make a clip from a picture and its metadata."""
        clip = cls(picture.params, loop=bool(picture.loop), recipe=picture.recipe)
        clip._picture = picture
        return clip

    @cached_property
    @torch_defaults()
    def _picture(self) -> Picture:
        mel = mel_from_waveform(torch.tensor(self.waveform), self.params, loop=self.loop)
        image, maximum = image_from_mel(mel, self.params)
        return Picture(image, self.params, maximum, self.loop, self._recipe)

    @cached_property
    @torch_defaults()
    def waveform(self) -> np.ndarray:
        """Samples, a NumPy array [shape=(channels, samples), float32, range [-1, 1]]; read-only."""
        image = self._picture.image
        maximum = self._picture.maximum
        mel = mel_from_image(image, self.params, maximum)
        waveform = waveform_from_mel(mel, self.params, loop=self.loop)
        gain, ceiling = audio.level_gain(waveform.numpy(), is_known=maximum is not None)
        waveform = waveform * gain
        peak = float(waveform.abs().max())
        if peak > ceiling:
            self._limited_db = 20 * math.log10(peak / ceiling)
            waveform = lower_peaks(waveform, mel * gain, self.params, ceiling=ceiling, loop=self.loop)
        return _read_only(waveform.numpy())

    @property
    def limited_db(self) -> float:
        """Decibels by which the highest peak of a reconstructed waveform was lowered; usually 0."""
        _ = self.waveform  # its reconstruction sets the value
        return self._limited_db

    @property
    def image(self) -> Image.Image:
        """The spectrogram picture: RGB, loud is dark, low frequencies at the bottom. A copy, so you may draw on it."""
        return self._picture.image.copy()

    @property
    def maximum(self) -> float | None:
        """The largest mel amplitude, which sets the level of the picture; None if it is not known."""
        return self._picture.maximum

    @property
    def recipe(self) -> dict[str, Any] | None:
        """How the clip was made; None if it was not generated. A copy."""
        return copy.deepcopy(self._recipe)

    @property
    def sample_rate(self) -> int:
        """Sample rate of `waveform` in Hz."""
        return self.params.sample_rate

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        if "waveform" in self.__dict__:
            return self.waveform.shape[1] / self.sample_rate
        return self.params.duration_s(self._picture.image.width)

    @property
    def title(self) -> str:
        """The prompt it was generated from, or an empty text."""
        prompt = (self._recipe or {}).get("prompt")
        return prompt if isinstance(prompt, str) else ""

    def save(self, path_or_file: str | os.PathLike[str] | BinaryIO, *, format: str | None = None) -> None:
        """Save as a picture that can be played again (`.png`), or as a sound (`.wav`, `.flac`, `.ogg`, `.mp3` …).

        `audio.FORMATS` lists the sound formats. With ffmpeg installed there are more, such as `.m4a`. If a format does
        not support the clip's sample rate, the sound is resampled, with a warning.

        Parameters
        ----------
        path_or_file : path or binary file
            An open file is written to at its current position.
        format : str, optional
            "png", "wav", "mp3" …; default: the extension of the file name.

        Raises
        ------
        ValueError
            If the extension is not a known format, or an open file has no name and `format` is missing.
        OSError
            If the file cannot be written. A partly written file is never left under the path.
        """
        suffix = _suffix(path_or_file, format)
        if suffix == ".png":
            data = encode_image(self._picture)
        else:
            tags = {"title": self.title, "comment": json.dumps(self._recipe) if self._recipe else ""}
            data = audio.encode_for(suffix, self.waveform, self.sample_rate, **tags)
        write_to(path_or_file, data)

    def with_waveform(self, waveform: np.ndarray, *, loop: bool = False) -> Clip:
        """Make a clip from other samples with the same params, cut or padded to a whole number of columns."""
        n_samples = n_columns(waveform.shape[1], self.params) * self.params.hop_length
        return self.from_waveform(mixing.fix_length(waveform, n_samples), self.params, loop=loop)

    def __getitem__(self, seconds: slice) -> Clip:
        """Cut out a part: `clip[1.5:3]` is the sound from 1.5 to 3 s, `clip[-1:]` the last second."""
        if not isinstance(seconds, slice) or seconds.step is not None:
            raise TypeError(f"clip[{seconds!r}]: pass times in seconds, as in clip[1.5:3]")
        start_s = self._time_s(seconds.start, default=0.0)
        stop_s = self._time_s(seconds.stop, default=self.duration_s)
        if not 0 <= start_s < stop_s <= self.duration_s + 1e-6:
            raise ValueError(
                f"cannot cut from {start_s:g} to {stop_s:g} s: the clip goes from 0 to {self.duration_s:g} s"
            )
        first = round(start_s * self.sample_rate)
        last = round(stop_s * self.sample_rate)
        is_whole = first == 0 and last == self.waveform.shape[1]
        return self.with_waveform(self.waveform[:, first:last], loop=self.loop and is_whole)

    def _time_s(self, seconds: float | None, *, default: float) -> float:
        """Seconds from the beginning; negative times count from the end, as indices of a list do."""
        if seconds is None:
            return default
        time_s = check_number("a time in seconds", seconds)
        if time_s < 0:
            return time_s + self.duration_s
        return time_s

    def __add__(self, other: Clip) -> Clip:
        """Append another clip, sample by sample; `stitch` crossfades instead."""
        check_compatible([self, other])
        return self.with_waveform(np.concatenate([self.waveform, other.waveform], axis=1))

    def __mul__(self, n_times: int) -> Clip:
        """Repeat the clip: `clip * 4`."""
        n_times = check_whole("how often", n_times, 1, 10_000)
        return self.with_waveform(np.tile(self.waveform, n_times), loop=self.loop)

    __rmul__ = __mul__  # 4 * clip
    __array_ufunc__ = None  # so that a NumPy integer leaves the multiplication to `__rmul__`

    def __radd__(self, other: object) -> Clip:
        """Let `sum(clips)` concatenate clips: it starts from 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def overlay(self, other: Clip, *, start_s: float = 0.0, gain_db: float = 0.0) -> Clip:
        """Mix another clip into this one from `start_s` on; what reaches beyond the end is cut off.

        `gain_db` makes the other clip louder or softer. If the sum exceeds full scale, the whole mix is turned down.
        """
        check_compatible([self, other])
        start = round(check_number("start_s", start_s, 0, self.duration_s) * self.sample_rate)
        gain_db = check_number("gain_db", gain_db)
        mixed = mixing.overlay(self.waveform, other.waveform, start=start, gain_db=gain_db)
        is_as_long = start == 0 and self.waveform.shape == other.waveform.shape
        return self.with_waveform(mixed, loop=self.loop and other.loop and is_as_long)

    def fade(self, in_s: float = 0.0, out_s: float = 0.0) -> Clip:
        """Fade in over the first `in_s` seconds, and out over the last `out_s`; linear in amplitude."""
        in_s = check_number("in_s", in_s, 0, self.duration_s)
        out_s = check_number("out_s", out_s, 0, self.duration_s)
        gain = mixing.fade_gain(self.waveform.shape[1], self.sample_rate, in_s=in_s, out_s=out_s)
        is_faded = in_s > 0 or out_s > 0
        return self.with_waveform(self.waveform * gain, loop=self.loop and not is_faded)

    @torch_defaults()
    def difference(self, other: Clip) -> Clip:
        """Keep what is louder here than in the other clip: the positive part of the difference of mel amplitudes."""
        check_compatible([self, other])
        if self.image.size != other.image.size:
            raise ValueError(f"clips of {self.duration_s:g} and {other.duration_s:g} s: cut them to one length first")
        mel = mel_from_waveform(torch.tensor(self.waveform), self.params, loop=self.loop)
        other_mel = mel_from_waveform(torch.tensor(other.waveform), other.params, loop=other.loop)
        image, maximum = image_from_mel((mel - other_mel).clamp(min=0), self.params)
        return self.from_image(image, params=self.params, loop=self.loop, maximum=maximum)

    def __repr__(self) -> str:
        facts = [
            f"{self.duration_s:.2f} s",
            f"{self.sample_rate} Hz",
            "stereo" if self.params.stereo else "mono",
        ]
        if self.loop:
            facts.append("loop")
        return f"Clip({', '.join(facts)})"

    def _repr_html_(self) -> str:
        """Spectrogram, player and caption, for notebooks; the same text at every call."""
        from .display import clip_html  # matplotlib takes a second to import

        return clip_html(self)


def check_compatible(clips: Sequence[Clip]) -> None:
    """Refuse clips that cannot be joined or mixed: all need the same sample rate and number of channels.

    Raises
    ------
    TypeError, ValueError
        If there is no clip, one is not a `Clip`, or they differ.
    """
    if not clips:
        raise ValueError("there is no clip: pass at least one")
    for clip in clips:
        if not isinstance(clip, Clip):
            raise TypeError(f"{clip!r} is not a Clip: make one with Clip.from_audio or Clip.from_image")
    kinds = {(clip.sample_rate, clip.params.n_channels) for clip in clips}
    if len(kinds) > 1:
        named = " and ".join(f"{rate} Hz with {n} channel(s)" for rate, n in sorted(kinds))
        raise ValueError(f"clips of {named} do not fit together: convert them with Clip.from_audio(…, params=…)")


def _suffix(path_or_file: object, format: str | None) -> str:
    """Return the lower-case extension, with its dot, of the requested format or else of the file name."""
    if format is not None:
        return f".{format.lower().removeprefix('.')}"
    name = name_of(path_or_file, "")
    if not name:
        raise ValueError("an open file without a name: pass format='png', 'wav', 'mp3' or another")
    return Path(name).suffix.lower()


def _conform(waveform: np.ndarray, sample_rate: int, params: SpectrogramParams, *, loop: bool) -> np.ndarray:
    """Convert samples to the params' channels and rate, within [-1, 1], a whole number of columns long."""
    n_samples = waveform.shape[1]
    columns = round(n_samples * params.sample_rate / sample_rate / params.hop_length)
    if columns == 0:
        least = f"half of a column of the picture, {params.step_size_ms / 2:g} ms"
        raise ValueError(f"{n_samples} samples at {sample_rate} Hz are too short: use at least {least}")
    waveform = audio.mix_channels(waveform, params.n_channels)
    peak = float(np.abs(waveform).max())
    if peak > 1:
        warn(f"the sound peaks at {peak:.3g}, above full scale: turned down to 1")
        waveform = waveform / peak
    resampled = audio.resample(torch.tensor(waveform), sample_rate, params.sample_rate, loop=loop)
    clamped = resampled.clamp(-1, 1).numpy()  # removing the highest frequencies may make a wave overshoot a little
    return mixing.fix_length(clamped, columns * params.hop_length)


def _read_only(waveform: np.ndarray) -> np.ndarray:
    waveform.flags.writeable = False
    return waveform


def _json_copy(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    if recipe is None:
        return None
    if not isinstance(recipe, dict):
        raise TypeError(f"recipe must be a dict, not {type(recipe).__name__}")
    copied: dict[str, Any] = json.loads(json.dumps(recipe))
    return copied


def _warn_if_long(clip: Clip, name: str) -> None:
    if clip.duration_s > LONG_S:
        warn(f"{name} lasts {clip.duration_s:.0f} s, more than {LONG_S}: this works, but takes time and memory")
