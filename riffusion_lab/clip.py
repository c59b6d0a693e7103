"""A sound and its picture are one thing: the clip."""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from . import audio, join
from .files import is_file_like, name_of, write_to
from .image import Picture, encode_image, image_from_mel, mel_from_image, open_image
from .params import SpectrogramParams
from .phase import lower_peaks, waveform_from_mel
from .samples import Channel
from .soundfiles import Torn
from .spectrogram import mel_from_waveform
from .torch_defaults import torch_defaults
from .values import check_whole, warn

LONG_S = 60  # longer sounds work, but slowly


class Clip:
    """A sound and its picture, with all that is needed to make one from the other.

    Make one with `Clip.from_audio` or `Clip.from_image`. In a notebook it shows its spectrogram and a player.
    A clip does not change; what is computed from the other half is computed once, when first asked for.

    Taught in: 01
    """

    def __init__(self, params: SpectrogramParams, *, loop: bool, recipe: dict[str, Any] | None) -> None:
        self.params, self.loop, self._recipe = params, loop, _json_copy(recipe)
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
            A sound file: its path, what it holds, or an open one. Or samples [shape=(samples,), (channels, samples) or
            (samples, channels)], floats in [-1, 1] or integers of 8, 16 or 32 bits: of NumPy, PyTorch or pandas, or a
            list; as a pair with their rate, as `librosa.load` or `scipy.io.wavfile.read` give it; or a dict, as
            🤗 datasets have it: {"array", "sampling_rate"} or {"bytes", "path"}.
        sample_rate : int, optional
            In Hz; of an array. A file, a pair and a dict bring their own.
        params : SpectrogramParams, optional
            Default: Riffusion's, which are mono: channels are mixed.
        loop : bool
            Whether the end runs into the beginning.
        recipe : dict, optional
            How the sound was made; must fit into JSON.
        channel : {"mix", "left", "right", "side"} or int
            What is heard of several channels: all of them, one (by its name, or its number from 0), or half the
            difference of left and right.
        torn : {"error", "keep"}
            Whether a file whose end is missing is an error, or what is left of it is read, with a warning.

        Returns
        -------
        Clip
            Resampled to `params.sample_rate`, a whole number of columns long: the last half column of sound may fall
            off, or be filled up with silence.

        Raises
        ------
        OSError
            If the file is missing, empty, torn, or no sound.
        ValueError, TypeError
            If there is less than half a column of sound, a sample is NaN, the rate is missing, integers do not say
            their full scale, or there is no such channel.
        """
        params = params or SpectrogramParams()
        waveform, sample_rate, name = audio.load_sound(path_or_array, sample_rate, torn=torn)
        try:
            waveform = _fit(audio.pick_channel(waveform, channel), sample_rate, params, loop=loop)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return _warn_if_long(cls.from_waveform(waveform, params, loop=loop, recipe=recipe), name)

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
            Instead of what the picture's metadata says; without any: Riffusion's params, no loop, no recipe, and no
            maximum. `maximum` is the amplitude of black, for samples in [-1, 1]: the level of another clip.
        invert : bool
            Whether bright is loud in this picture. Riffusion's are dark where they are loud.

        Returns
        -------
        Clip
            At its level, where the picture tells it; else at an RMS of -18 dBFS with a peak of -1 dBFS at most.

        Raises
        ------
        OSError
            If the file is missing, torn, or no picture.
        ValueError, TypeError
            If the picture cannot be a spectrogram.
        """
        is_picture = isinstance(path_or_image, (str, os.PathLike, Image.Image)) or is_file_like(path_or_image)
        if not is_picture:
            raise TypeError(f"{type(path_or_image).__name__} is no picture: give a path or a PIL image")
        given = {"loop": loop, "recipe": recipe, "maximum": maximum}
        picture = open_image(path_or_image, params, invert=invert)
        picture = replace(picture, **{name: value for name, value in given.items() if value is not None})
        return _warn_if_long(cls.from_picture(picture), "the picture")

    @classmethod
    def from_waveform(
        cls, waveform: np.ndarray, params: SpectrogramParams, loop: bool = False, recipe: dict[str, Any] | None = None
    ) -> Clip:
        """Make a clip from samples that have the form of `waveform` already, a whole number of columns."""
        clip = cls(params, loop=bool(loop), recipe=recipe)
        clip.waveform = _read_only(waveform)
        return clip

    @classmethod
    def from_picture(cls, picture: Picture) -> Clip:
        """Make a clip from a picture of which all is known."""
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
        picture = self._picture
        mel = mel_from_image(picture.image, self.params, picture.maximum)
        waveform = waveform_from_mel(mel, self.params, loop=self.loop)
        gain, ceiling = audio.level_gain(waveform.numpy(), is_known=picture.maximum is not None)
        waveform = waveform * gain
        peak = float(waveform.abs().max())
        if peak > ceiling:
            self._limited_db = 20 * math.log10(peak / ceiling)
            waveform = lower_peaks(waveform, mel * gain, self.params, ceiling=ceiling, loop=self.loop)
        return _read_only(waveform.numpy())

    @property
    def limited_db(self) -> float:
        """By how many decibels the highest peak was lowered, since the phases that were found raise peaks; mostly 0."""
        _ = self.waveform
        return self._limited_db

    @property
    def image(self) -> Image.Image:
        """The spectrogram picture: RGB, loud is dark, low frequencies at the bottom. A copy: draw on it as you like."""
        return self._picture.image.copy()

    @property
    def maximum(self) -> float | None:
        """The loudest mel amplitude, the level that the picture alone does not tell; None where it is not known."""
        return self._picture.maximum

    @property
    def recipe(self) -> dict[str, Any] | None:
        """How the clip was made; None for sounds from elsewhere. A copy."""
        return copy.deepcopy(self._recipe)

    @property
    def sample_rate(self) -> int:
        """Samples per second of `waveform`, in Hz."""
        return self.params.sample_rate

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        if "waveform" in self.__dict__:
            return self.waveform.shape[1] / self.sample_rate
        return self.params.duration_s(self._picture.image.width)

    @property
    def title(self) -> str:
        """The prompt it was made from, if any."""
        prompt = (self._recipe or {}).get("prompt")
        return prompt if isinstance(prompt, str) else ""

    def save(self, path_or_file: str | os.PathLike[str] | BinaryIO, *, format: str | None = None) -> None:
        """Save as a picture that can be played again (`.png`), or as a sound (`.wav`, `.flac`, `.ogg`, `.mp3` …).

        `audio.FORMATS` lists the sounds; with ffmpeg installed there are more, such as `.m4a`: all those that it can
        read again. A format that has not the clip's sample rate gets another one, with a warning.

        Parameters
        ----------
        path_or_file : path or binary file
            Where to write to; an open file is written to at its position.
        format : str, optional
            What to write, "png", "wav", "mp3" …; default: what the file's name ends in.

        Raises
        ------
        ValueError
            If the name ends in no known format, or an open file has no name and `format` is missing.
        OSError
            If the file cannot be written; nothing half-written is left behind under a path.
        """
        suffix = _suffix(path_or_file, format)
        if suffix == ".png":
            data = encode_image(self._picture)
        else:
            tags = {"title": self.title, "comment": json.dumps(self._recipe) if self._recipe else ""}
            data = audio.encode_for(suffix, self.waveform, self.sample_rate, **tags)
        write_to(path_or_file, data)

    def __getitem__(self, seconds: slice) -> Clip:
        """Cut out a part: `clip[1.5:3]` goes from 1.5 to 3 s, `clip[-1:]` is the last second."""
        if not isinstance(seconds, slice) or seconds.step is not None:
            raise TypeError(f"clip[{seconds!r}]: give times in seconds, as in clip[1.5:3]")
        return join.cut(self, seconds.start, seconds.stop)

    def __add__(self, other: Clip) -> Clip:
        """Put another clip behind this one, sample by sample; `stitch` joins without a jump."""
        return join.concatenate([self, other])

    def __mul__(self, n_times: int) -> Clip:
        """Play the clip several times: `clip * 4`."""
        return join.repeat(self, check_whole("how often", n_times, 1, 10_000))

    __rmul__ = __mul__  # 4 * clip
    __array_ufunc__ = None  # so that NumPy's whole numbers leave the product to us

    def __radd__(self, other: object) -> Clip:
        """Make `sum(clips)` put clips one behind the other: it begins with 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    overlay, fade, difference = join.overlay, join.fade, join.difference

    def __repr__(self) -> str:
        parts = [f"{self.duration_s:.2f} s", f"{self.sample_rate} Hz", "stereo" if self.params.stereo else "mono"]
        return f"Clip({', '.join(parts + ['loop'] * self.loop)})"

    def _repr_html_(self) -> str:
        """Spectrogram, player and caption, for notebooks; the same text at every call."""
        from .display import clip_html  # matplotlib takes a second to import

        return clip_html(self)


def _suffix(path_or_file: object, format: str | None) -> str:
    """What a file's name ends in, with its dot, in small letters; or the format that is asked for."""
    if format is not None:
        return f".{format.lower().removeprefix('.')}"
    name = name_of(path_or_file, "")
    if not name:
        raise ValueError("an open file without a name: give format='png', 'wav', 'mp3' or another")
    return Path(name).suffix.lower()


def _fit(waveform: np.ndarray, sample_rate: int, params: SpectrogramParams, *, loop: bool) -> np.ndarray:
    """Bring samples to the params' rate and channels, within [-1, 1], a whole number of columns long."""
    n_samples = waveform.shape[1]
    n_columns = round(n_samples * params.sample_rate / sample_rate / params.hop_length)
    if n_columns == 0:
        least = f"half of a column of the picture, {params.step_size_ms / 2:g} ms"
        raise ValueError(f"{n_samples} samples at {sample_rate} Hz are too short: give at least {least}")
    waveform = audio.mix_channels(waveform, params.n_channels)
    peak = float(np.abs(waveform).max())
    if peak > 1:
        warn(f"the sound peaks at {peak:.3g}, above full scale: turned down to 1")
        waveform = waveform / peak
    samples = audio.resample(torch.tensor(waveform), sample_rate, params.sample_rate, loop=loop)
    n_samples = n_columns * params.hop_length
    samples = torch.nn.functional.pad(samples[:, :n_samples], (0, max(0, n_samples - samples.shape[1])))
    return samples.clamp(-1, 1).numpy()  # without its highest frequencies a wave may overshoot a little


def _read_only(waveform: np.ndarray) -> np.ndarray:
    waveform.flags.writeable = False
    return waveform


def _json_copy(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    if recipe is not None and not isinstance(recipe, dict):
        raise TypeError(f"recipe must be a dict, not {type(recipe).__name__}")
    return json.loads(json.dumps(recipe))


def _warn_if_long(clip: Clip, name: str) -> Clip:
    if clip.duration_s > LONG_S:
        warn(f"{name} lasts {clip.duration_s:.0f} s, more than {LONG_S}: this works, but takes time and memory")
    return clip
