"""Sounds that are no notes, synthesized: typing, rain, a clock, waves. Each closes as a loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .vocabulary import CLIP_SECONDS


def _noise(
    rng: np.random.Generator, n_samples: int, sample_rate: int, low_hz: float, high_hz: float, tilt: float = 0.0
) -> np.ndarray:
    """Periodic noise between two frequencies, falling by `tilt` (a power of frequency)."""
    frequency = np.fft.rfftfreq(n_samples, 1 / sample_rate)
    shape = 1 / (1 + (low_hz / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high_hz) ** 4)
    shape *= np.maximum(frequency, 20) ** -tilt
    phase = rng.uniform(0, 2 * np.pi, len(frequency))
    noise = np.fft.irfft(shape * np.exp(1j * phase), n_samples)
    return noise / noise.std()


def _add(loop: np.ndarray, sound: np.ndarray, start: int) -> None:
    """Add a short sound to a loop; what reaches past the end comes in at the beginning."""
    np.add.at(loop, np.arange(start, start + len(sound)) % len(loop), sound)


def _click(rng: np.random.Generator, sample_rate: int, frequencies: tuple, decay_s: float, noise: float) -> np.ndarray:
    """A struck thing: decaying partials and a burst of noise."""
    t = np.arange(int(8 * decay_s * sample_rate)) / sample_rate
    tone = sum(np.sin(2 * np.pi * f * t + rng.uniform(0, 6)) for f in frequencies) / len(frequencies)
    return (tone + noise * rng.standard_normal(len(t))) * np.exp(-t / decay_s)


def typing(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Keys pressed and let go, in words with pauses between."""
    loop = 0.002 * _noise(rng, round(CLIP_SECONDS * sample_rate), sample_rate, 100, 3000)
    start, gap, body = 0.0, rng.uniform(0.09, 0.2), rng.uniform(250, 600)
    while start < CLIP_SECONDS:
        press = _click(rng, sample_rate, (body * rng.uniform(0.9, 1.1), rng.uniform(1500, 4000)), 0.006, 1.2)
        _add(loop, rng.uniform(0.5, 1) * press, int(start * sample_rate))
        release = _click(rng, sample_rate, (rng.uniform(2000, 5000),), 0.003, 0.8)
        _add(loop, 0.35 * release, int((start + rng.uniform(0.05, 0.08)) * sample_rate))
        start += gap * rng.uniform(0.6, 1.5) + (rng.uniform(0.1, 0.5) if rng.random() < 0.12 else 0)
    return loop


def rain(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A hiss, and drops on top of it."""
    n_samples = round(CLIP_SECONDS * sample_rate)
    loop = _noise(rng, n_samples, sample_rate, rng.uniform(300, 900), rng.uniform(5000, 9000), rng.uniform(0, 0.4))
    loop *= 0.2
    for start in rng.integers(0, n_samples, int(rng.uniform(40, 300))):
        drop = _click(rng, sample_rate, (rng.uniform(1000, 6000),), rng.uniform(0.002, 0.008), 0.5)
        _add(loop, rng.uniform(0.1, 0.7) * drop, int(start))
    return loop


def clock(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Tick and tock, evenly."""
    n_samples = round(CLIP_SECONDS * sample_rate)
    loop = 0.001 * _noise(rng, n_samples, sample_rate, 100, 2000)
    n_ticks, pitch, decay = int(rng.choice((4, 6, 10, 20))), rng.uniform(1500, 4000), rng.uniform(0.004, 0.02)
    ticks = [_click(rng, sample_rate, (pitch * f, 2.3 * pitch * f), decay, 0.5) for f in (1.0, rng.uniform(0.7, 0.9))]
    for i in range(n_ticks):
        _add(loop, ticks[i % 2], i * n_samples // n_ticks)
    return loop


def waves(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """One or two swells of surf."""
    n_samples = round(CLIP_SECONDS * sample_rate)
    t = np.arange(n_samples) / n_samples
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * (int(rng.integers(1, 3)) * t + rng.random()))
    deep = _noise(rng, n_samples, sample_rate, 40, rng.uniform(400, 900), 0.5)
    bright = _noise(rng, n_samples, sample_rate, 300, rng.uniform(3000, 7000), 0.5)
    return (0.3 + swell) * deep + 1.2 * swell**3 * bright


EFFECTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "typing": typing, "rain": rain, "clock": clock, "waves": waves,
}  # fmt: skip
