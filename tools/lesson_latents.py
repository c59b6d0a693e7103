"""Compose, render and encode the short clips that lesson 10 trains on: riffusion_lab/training/data/lesson_10.npz.

The composer plays bells, drums and chiptunes; riffling's autoencoder turns each picture into latents, and a quarter of
each (1.28 s, 16 columns) is kept. Only clips of 4, 8, 12 or 16 beats are used, so that a quarter is whole beats. Needs
FluidSynth and its General MIDI soundfont:

    python tools/lesson_latents.py
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch

from riffusion_lab import load_pipeline
from riffusion_lab.image import pixels_from_mel
from riffusion_lab.networks import circular_time
from riffusion_lab.spectrogram import mel_from_waveform
from riffusion_lab.training.dataset import RENDER_PARAMS, make_sound
from riffusion_lab.training.lesson import FILE, N_COLUMNS, save_latents
from riffusion_lab.training.vocabulary import CLIP_SECONDS, DRUMS

PROMPTS = {"church bells": "solo", DRUMS: DRUMS, "chiptune": "solo"}  # prompt → kind of clip
N_EACH = 100
FIRST_SEED = 1_000_000  # none of riffling's own clips
BEATS = (4, 8, 12, 16)
QUIETEST = 0.05  # mean darkness of a quarter that is worth hearing


def quarters(prompt: str, first_seed: int, vae: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield latents of one quarter of each clip, without end [shape=(4, 64, 16)]."""
    for seed in count(first_seed):
        sound, facts = make_sound(PROMPTS[prompt], prompt, seed)
        if round(facts["bpm"] * CLIP_SECONDS / 60) not in BEATS:
            continue
        mel = mel_from_waveform(torch.from_numpy(sound)[None], RENDER_PARAMS, loop=True)
        pixels, _ = pixels_from_mel(mel, RENDER_PARAMS)
        dark = 1 - pixels.reshape(512, 4, 128).mean(axis=(0, 2)) / 255  # of each quarter
        quarter = np.random.default_rng(seed).integers(4)
        if dark[quarter] < QUIETEST:
            continue
        picture = torch.from_numpy(pixels).float().expand(1, 3, -1, -1) / 127.5 - 1
        with torch.no_grad(), circular_time(vae.encoder):
            latents = vae.encode(picture).latents[0]
        yield latents[..., N_COLUMNS * quarter : N_COLUMNS * (quarter + 1)]


def main() -> None:
    """Make the file."""
    torch.set_num_threads(1)
    vae = load_pipeline(device="cpu").vae
    latents = []
    for number, prompt in enumerate(PROMPTS):
        source = quarters(prompt, FIRST_SEED * (number + 1), vae)
        latents += [next(source) for _ in range(N_EACH)]
        print(f"{prompt}: {N_EACH} clips", flush=True)
    labels = np.repeat(np.arange(len(PROMPTS)), N_EACH)
    save_latents(torch.stack(latents), labels, tuple(PROMPTS))
    print(f"{FILE.name}: {FILE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
