"""Measure on 16 sounds what lesson 02 shows on one: riffusion_lab/training/data/lesson_02.json.

Eight melodies on the lesson's plucked string, and eight clips by riffling-turbo, 2.56 s of each: what each step from
sound to picture costs, how close the two ways back from the picture come, and how large the error is where a picture
was cut in the middle. Two threads; about three minutes:

    python tools/lesson_phases.py
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor
from torchaudio.functional import griffinlim

from riffusion_lab import SpectrogramParams, load_pipeline, text_to_audio
from riffusion_lab.phase import PhaseStream, spectral_convergence, waveform_from_mel
from riffusion_lab.spectrogram import mel_filterbank, mel_from_waveform
from riffusion_lab.training.lesson import DATA

OUTPUT = DATA / "lesson_02.json"
MODEL = "riffling-turbo"
PROMPTS = ("piano", "church bells", "violin", "acoustic guitar", "drums only, rock", "jazz", "techno", "ambient pad")
SEEDS = range(8)
PARAMS = SpectrogramParams()
RATE = PARAMS.sample_rate
STEP = 14_112  # samples from one note to the next: 0.32 s
N_SAMPLES = 8 * STEP
SCALE = (45, 48, 50, 52, 55, 57, 60, 62, 64, 67, 69)  # MIDI keys


def plucked_melody(seed: int) -> Tensor:
    """Eight notes on the plucked string of lesson 02, each with a hi-hat; the keys are chosen at random."""
    rng = np.random.default_rng(seed)
    music = np.zeros(N_SAMPLES)
    for step, key in enumerate(rng.choice(SCALE, 8)):
        rest = N_SAMPLES - step * STEP
        period = round(RATE / (440 * 2 ** ((key - 69) / 12)))
        burst = np.concatenate([rng.uniform(-1, 1, period), np.zeros(rest - period)])
        string = lfilter([1], [1] + [0] * (period - 1) + [-0.498, -0.498], burst)
        hi_hat = 0.2 * rng.standard_normal(rest) * np.exp(-np.arange(rest) / 900)
        music[-rest:] += string + hi_hat
    return torch.tensor(0.5 * music / np.abs(music).max(), dtype=torch.float32)


def sounds() -> Iterator[tuple[str, str, Tensor]]:
    """Yield kind, name and samples [shape=(n,)] of each sound."""
    for seed in SEEDS:
        yield "plucked", f"seed {seed}", plucked_melody(seed)
    pipe = load_pipeline(MODEL)
    for prompt in PROMPTS:
        clip = text_to_audio(pipe, prompt, seed=0)
        yield "generated", prompt, torch.tensor(clip.waveform[0, :N_SAMPLES])


@functools.cache
def inverse_filters() -> Tensor:
    """Pseudoinverse of the mel filters, which turns bands into rows of the FFT."""
    return torch.linalg.pinv(mel_filterbank(PARAMS).T)


def losses(waveform: Tensor) -> dict[str, float]:
    """Relative error of the magnitude when one thing is lost and all else is kept, as in section 5 of the lesson."""
    window = torch.hann_window(PARAMS.win_length)
    sizes = (PARAMS.n_fft, PARAMS.hop_length, PARAMS.win_length)
    spectrum = torch.stft(waveform, *sizes, window, return_complex=True)
    magnitude = spectrum.abs()
    unit = spectrum / (magnitude + 1e-16)
    low = torch.fft.rfftfreq(PARAMS.n_fft, d=1 / RATE)[:, None] <= PARAMS.max_frequency
    filters = mel_filterbank(PARAMS)
    greys = (255 * (magnitude / magnitude.max()) ** 0.25).round()
    from_mel = (inverse_filters() @ (filters.T @ magnitude)).clamp(min=0)
    spectra = {
        "10 kHz": spectrum * low,
        "8 bits": (greys / 255) ** 4 * magnitude.max() * unit,
        "mel": torch.where(low, from_mel, magnitude) * unit,
    }
    lossy = {name: torch.istft(changed, *sizes, window) for name, changed in spectra.items()}
    lossy["phase"] = griffinlim(
        magnitude, window, *sizes, power=1, n_iter=32, momentum=0.99, length=None, rand_init=False
    )
    errors = {}
    for name, sound in lossy.items():
        found = torch.stft(sound, *sizes, window, return_complex=True).abs()
        errors[name] = round(float((found - magnitude).norm() / magnitude.norm()), 4)
    return errors


def convergences(mel: Tensor) -> dict[str, float]:
    """Spectral convergence of the sounds that Riffusion's method and the package's find for a picture."""
    found = {}
    for method in ("riffusion", "fast"):
        waveform = waveform_from_mel(mel, PARAMS, method=method)
        found[method] = round(float(spectral_convergence(waveform, mel, PARAMS)), 4)
    return found


def errors_around_cut(mel: Tensor) -> dict[str, float]:
    """Relative error of the ten columns around the middle, where the picture is whole, streamed or cut."""
    middle = mel.shape[-1] // 2
    halves = mel.split(middle, dim=-1)
    stream = PhaseStream(PARAMS)
    streamed = [stream.push(half) for half in halves]
    assert stream.rest is not None  # after the first push
    waveforms = {
        "whole": waveform_from_mel(mel, PARAMS),
        "stream": torch.cat([*streamed, stream.rest], dim=-1),
        "apart": torch.cat([waveform_from_mel(half, PARAMS) for half in halves], dim=-1),
    }
    columns = slice(middle - 5, middle + 5)
    errors = {}
    for name, waveform in waveforms.items():
        difference = mel_from_waveform(waveform, PARAMS) - mel
        errors[name] = round(float(difference[..., columns].norm() / mel[..., columns].norm()), 4)
    return errors


def measure(kind: str, name: str, waveform: Tensor) -> dict[str, Any]:
    """All that is measured on one sound."""
    mel = mel_from_waveform(waveform[None], PARAMS)
    return {
        "kind": kind,
        "name": name,
        "losses": losses(waveform),
        "convergence": convergences(mel),
        "cut": errors_around_cut(mel),
    }


def main() -> None:
    """Measure every sound and save what was found."""
    found = [measure(*sound) for sound in sounds()]
    OUTPUT.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
