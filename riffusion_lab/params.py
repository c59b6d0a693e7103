"""Parameters of the spectrogram: how a sound becomes a picture, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

from .values import as_scalar, check_number

LONGEST_FFT = 1_000_000  # samples; a longer one is a mistake, and would take all memory
WHOLE = ("sample_rate", "num_frequencies")  # must be whole numbers


@dataclass(frozen=True)
class SpectrogramParams:
    """How a waveform is converted into a spectrogram picture, and back.

    The defaults are those of Riffusion v1, so that pictures can be exchanged with it:
    https://github.com/riffusion/riffusion-hobby

    NumPy scalars become Python numbers, and floats with a whole value become ints.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a value is out of range, or fractional where a whole number is needed.

    Taught in: 01
    """

    sample_rate: int = 44_100  # Hz
    step_size_ms: float = 10  # hop: time from one column of the picture to the next
    window_duration_ms: float = 100  # Hann window
    padded_duration_ms: float = 400  # FFT length; a shorter one leaves low mel bands empty
    num_frequencies: int = 512  # mel bands, the rows of the picture
    min_frequency: float = 0  # Hz
    max_frequency: float = 10_000  # Hz
    power_for_image: float = 0.25  # brightness = amplitude ** power
    stereo: bool = False  # left in green, right in blue

    def __post_init__(self) -> None:
        for field in fields(self):
            default = getattr(SpectrogramParams, field.name)
            value = _as_number(field.name, getattr(self, field.name), default=default)
            object.__setattr__(self, field.name, value)  # the class is frozen
        check_number("sample_rate", self.sample_rate, 1_000, 1_000_000)
        if not self.min_frequency < self.max_frequency <= self.sample_rate / 2:
            band = f"min_frequency {self.min_frequency}, max_frequency {self.max_frequency}"
            raise ValueError(
                f"{band}: use an increasing pair of at most half the sample rate, {self.sample_rate / 2:g} Hz"
            )
        if not 1 <= self.hop_length <= self.win_length <= self.n_fft:
            durations = (
                f"step {self.step_size_ms}, window {self.window_duration_ms}, padded {self.padded_duration_ms} ms"
            )
            raise ValueError(
                f"{durations}: use a step of at least one sample, a window no shorter than the step, "
                "and a padded window no shorter than the window"
            )
        if self.n_fft > LONGEST_FFT:
            raise ValueError(f"padded_duration_ms is {self.padded_duration_ms}: use at most {LONGEST_FFT:,} samples")

    @property
    def n_fft(self) -> int:
        """FFT length in samples: the zero-padded window."""
        return round(self.padded_duration_ms / 1000 * self.sample_rate)

    @property
    def win_length(self) -> int:
        """Window length in samples."""
        return round(self.window_duration_ms / 1000 * self.sample_rate)

    @property
    def hop_length(self) -> int:
        """Samples between adjacent columns."""
        return round(self.step_size_ms / 1000 * self.sample_rate)

    @property
    def n_channels(self) -> int:
        """Number of channels: 1 or 2."""
        return 2 if self.stereo else 1

    def duration_s(self, n_columns: int) -> float:
        """Duration of a picture with `n_columns` columns, in seconds."""
        return n_columns * self.hop_length / self.sample_rate

    def frequency_hz(self, band: float) -> float:
        """Centre of a mel band in hertz; band 0 is the lowest, the bottom row of the picture."""
        low = hz_to_mel(self.min_frequency)
        high = hz_to_mel(self.max_frequency)
        return mel_to_hz(low + (high - low) * (band + 1) / (self.num_frequencies + 1))

    def band(self, frequency_hz: float) -> float:
        """Fractional mel band of a frequency; the inverse of `frequency_hz`."""
        low = hz_to_mel(self.min_frequency)
        high = hz_to_mel(self.max_frequency)
        return (hz_to_mel(frequency_hz) - low) / (high - low) * (self.num_frequencies + 1) - 1


def _as_number(name: str, value: object, *, default: float) -> float:
    """Convert a parameter to a Python number: an int if its value is whole, except for the power."""
    value = as_scalar(value)
    if name == "stereo":
        if isinstance(value, str) or value not in (True, False):  # NumPy's bools too, and EXIF's 0 and 1
            raise TypeError(f"stereo must be True or False, not {value!r}")
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = float(value)
    may_be_zero = default == 0
    if not math.isfinite(number) or number < 0 or (number == 0 and not may_be_zero):
        raise ValueError(f"{name} is {value!r}: use a positive number, such as {default}")
    if number.is_integer() and name != "power_for_image":
        return int(number)
    if name in WHOLE:
        raise ValueError(f"{name} is {value!r}: use a whole number, such as {default}")
    return number


PARAMS = SpectrogramParams()  # those of the pictures that the models were trained on
COLUMNS_PER_S = PARAMS.sample_rate / PARAMS.hop_length

# Common settings. Models understand pictures of the first kind only, unless they were trained on another.
PRESETS = {
    "riffusion": PARAMS,
    "stereo": SpectrogramParams(stereo=True),
    "20 kHz": SpectrogramParams(max_frequency=20_000),
    "stereo, 20 kHz": SpectrogramParams(stereo=True, max_frequency=20_000),
}


def hz_to_mel(frequency_hz: float) -> float:
    """Frequency in mel on HTK's scale: nearly linear below 700 Hz, logarithmic above."""
    return 2595.0 * math.log10(1.0 + frequency_hz / 700.0)


def mel_to_hz(mel: float) -> float:
    """Frequency in hertz of a value on HTK's mel scale; the inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
