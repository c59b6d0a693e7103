"""Measure on this machine what the closing figures claim: ``python tools/measure.py``.

Prints the time from prompt to sound, the peak memory, and what a round trip sound → PNG → sound keeps.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from riffusion_lab import Clip, load_pipeline, text_to_audio
from riffusion_lab.audio import rms_dbfs
from riffusion_lab.phase import spectral_convergence
from riffusion_lab.spectrogram import mel_from_waveform


def round_trip(clip: Clip) -> tuple[float, float]:
    """Spectral convergence, and error of the level in dB, of a clip saved as PNG and played from there."""
    with tempfile.TemporaryDirectory() as folder:
        clip.save(Path(folder) / "clip.png")
        again = Clip.from_image(Path(folder) / "clip.png")
        heard, wanted = (torch.tensor(c.waveform) for c in (again, clip))
        mel = mel_from_waveform(wanted, clip.params, loop=clip.loop)
        error = spectral_convergence(heard, mel, clip.params, loop=clip.loop)
        return error, rms_dbfs(again.waveform) - rms_dbfs(clip.waveform)


def main() -> None:
    """Print the figures."""
    started = time.perf_counter()
    pipe = load_pipeline()
    print(f"load_pipeline: {time.perf_counter() - started:.1f} s")
    text_to_audio(pipe, "piano", seed=0).waveform  # noqa: B018 - warms up
    made, played = [], []
    for seed in range(1, 6):
        started = time.perf_counter()
        clip = text_to_audio(pipe, "jazz", seed=seed)
        made.append(time.perf_counter() - started)
        clip.waveform  # noqa: B018 - computed when first asked for
        played.append(time.perf_counter() - started)
    print(f"prompt → picture: {np.median(made):.2f} s; prompt → sound, 5.12 s of it: {np.median(played):.2f} s")
    generated = [text_to_audio(pipe, prompt, seed=1) for prompt in ("church bells", "techno", "violin", "rain")]
    sounds = {clip.recipe["prompt"]: Clip.from_audio(clip.waveform, clip.sample_rate, loop=True) for clip in generated}
    t = np.arange(5 * 44_100) / 44_100
    sounds["chirp 100 Hz – 8 kHz"] = Clip.from_audio(0.3 * np.sin(2 * np.pi * (100 * t + 790 * t**2)), 44_100)
    for name, clip in sounds.items():
        error, level = round_trip(clip)
        print(f"sound → PNG → sound, {name}: spectral convergence {error:.3f}, level {level:+.2f} dB")
    try:
        import resource
    except ImportError:  # Windows has no such module
        return
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
