"""Measure over many seeds what lesson 05 shows on a few: riffusion_lab/training/data/lesson_05.json.

- ``holes``: for each prompt and seed, holes of several kinds, inpainted; filled with another take of the same prompt,
  pasted as it is; and the clip itself, which has no hole.
- ``extended``: level and tempo of a clip that was extended to four times its length, quarter by quarter.

Two processes of one thread; about 8 minutes. It stops after ``--minutes`` and goes on at the next call:

    python tools/lesson_holes.py
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from entries import Request, run
from riffusion_lab import Clip, extend, inpaint, load_pipeline, text_to_audio
from riffusion_lab.masks import SOFT_EDGE, box_mask, paste
from riffusion_lab.models import Pipeline
from riffusion_lab.training.classifier import load_classifier
from riffusion_lab.training.lesson import DATA

OUTPUT = DATA / "lesson_05.json"
SEEDS = range(16)
OTHER_SEED = 100  # that of the other take is larger by so much
N_STEPS = 6
PROMPTS = ("rock band with drums, 94 bpm", "strings chords, 94 bpm")
BEAT = 64  # columns, at 94 bpm
HOLES = {  # boxes in seconds and hertz; all edges in time lie between two latent cells
    "0.32 s": (1.92, 2.24),
    "0.64 s": (1.92, 2.56),
    "1.28 s": (1.92, 3.20),
    "2.56 s": (1.28, 3.84),
    "0.64 s, off the beat": (2.24, 2.88),
    "1 to 4 kHz": (0, 5.12, 1_000, 4_000),
}
WAYS = ("the clip itself", "inpainted", "pasted")


def darkness(clip: Clip) -> np.ndarray:
    """Picture [shape=(512, columns), 0 to 255], where 255 is loudest."""
    return 255 - np.asarray(clip.image.convert("L"), float)


def jump(picture: np.ndarray, mask: np.ndarray) -> float:
    """How much the picture changes across the edges of a hole, in grey levels.

    Root mean square difference of the mean of 8 columns outside and of 8 columns inside, behind the soft edge; of a
    band of frequencies, of rows instead of columns.
    """
    if mask.all(axis=1).any():  # whole rows: a band
        picture, mask = picture.T, mask.T
    inside = mask.all(axis=0).astype(int)
    first, behind = np.flatnonzero(np.diff(inside)) + 1
    pairs = [(first - 8, first + SOFT_EDGE), (behind, behind - SOFT_EDGE - 8)]  # where 8 columns begin: outside, inside
    steps = [picture[:, a : a + 8].mean(axis=1) - picture[:, b : b + 8].mean(axis=1) for a, b in pairs]
    return float(np.sqrt(np.square(steps).mean()))


def onsets(picture: np.ndarray) -> np.ndarray:
    """Mean rise from the column before [shape=(columns,)], in grey levels."""
    return np.diff(picture, axis=1, prepend=picture[:, :1]).clip(min=0).mean(axis=0)


def beats_kept(picture: np.ndarray, clip: np.ndarray, mask: np.ndarray) -> float:
    """Correlation of the onsets inside the hole with those that the kept part leads to expect.

    That is the mean beat of the clip outside the hole; for a band, the onsets outside the band.
    """
    if mask.all(axis=1).any():
        inside = mask.all(axis=1)
        return float(np.corrcoef(onsets(picture[inside]), onsets(clip[~inside]))[0, 1])
    inside = mask.all(axis=0)
    phases = np.arange(len(inside)) % BEAT
    strengths = onsets(clip)
    beat = np.array([strengths[~inside & (phases == phase)].mean() for phase in range(BEAT)])
    return float(np.corrcoef(onsets(picture)[inside], beat[phases[inside]])[0, 1])


@torch.no_grad()
def distance(picture: np.ndarray, clip: np.ndarray, mask: np.ndarray) -> float:
    """Distance in the embedding of `clip_distance` from what is inside the hole to the clip outside of it.

    For a band, from the whole to the whole clip.
    """
    inside = mask.all(axis=0)
    first, second = (picture[:, inside], clip[:, ~inside]) if inside.any() else (picture, clip)
    embeddings = [
        load_classifier().embed(1 - torch.tensor(part, dtype=torch.float32)[None, None] / 127.5)
        for part in (first, second)
    ]
    return float((embeddings[0] - embeddings[1]).norm())


@lru_cache(maxsize=1)
def pipeline() -> Pipeline:
    """riffling, once a process."""
    return load_pipeline(device="cpu")


def holes(prompt: str, seed: int) -> dict[str, Any]:
    """For each hole and each of `WAYS`: jump, beats and distance."""
    options: dict[str, Any] = {"num_inference_steps": N_STEPS, "loop": False}
    clip, other = text_to_audio(pipeline(), prompt, seed=[seed, seed + OTHER_SEED], **options)
    found = {}
    for name, box in HOLES.items():
        low_hz, high_hz = box[2:] or (None, None)
        mask = box_mask(clip, box[0], box[1], low_hz=low_hz, high_hz=high_hz)
        filled = inpaint(pipeline(), clip, mask, prompt, seed=seed + OTHER_SEED, **options)
        pasted = Clip.from_image(paste(clip.image, other.image, mask))
        pictures = [darkness(each) for each in (clip, filled, pasted)]
        found[name] = {
            "jump": [round(jump(picture, mask), 2) for picture in pictures],
            "beats": [round(beats_kept(picture, pictures[0], mask), 3) for picture in pictures],
            "distance": [round(distance(picture, pictures[0], mask), 2) for picture in pictures],
        }
    return found


def level_db(picture: np.ndarray) -> float:
    """Level, of which the darkness is the fourth root of the amplitude; only differences have a meaning."""
    return float(10 * np.log10(((picture / 255) ** 8).mean()))


def tempo(picture: np.ndarray) -> float:
    """Tempo from 86 to 103 bpm at which the onsets are most like themselves one to four beats later."""
    strength = onsets(picture)[1:] - onsets(picture)[1:].mean()
    beats = np.arange(58, 70.25, 0.25)  # columns
    shifts = np.rint(np.outer(beats, [1, 2, 3, 4])).astype(int)
    alike = [sum((strength[shift:] * strength[:-shift]).mean() for shift in row) for row in shifts]
    return float(6_000 / beats[np.argmax(alike)])


def extended(prompt: str, seed: int) -> dict[str, Any]:
    """Level (dB, beside the clip's own) and tempo (bpm) of four quarters, and the tempo of the whole."""
    clip = text_to_audio(pipeline(), prompt, seed=seed, num_inference_steps=N_STEPS, loop=False)
    options: dict[str, Any] = {"memory_s": 1.28, "num_inference_steps": N_STEPS}
    picture = darkness(extend(pipeline(), clip, prompt, seconds=15.04, seed=seed + OTHER_SEED, **options))
    quarters = [picture[:, start : start + 504] for start in range(0, 2_016, 504)]
    levels = [level_db(quarter) - level_db(quarters[0]) for quarter in quarters]
    return {
        "level": np.round(levels, 2).tolist(),
        "tempo": np.round([tempo(quarter) for quarter in quarters], 1).tolist(),
        "whole": round(tempo(picture), 1),
    }


PARTS = {"holes": (holes, PROMPTS), "extended": (extended, PROMPTS[:1])}
REQUESTS = [
    {"part": part, "text": text, "seed": seed} for part, (_, texts) in PARTS.items() for text in texts for seed in SEEDS
]


def measure(request: Request) -> dict[str, Any]:
    """One entry of the file."""
    function, _ = PARTS[request["part"]]
    return function(request["text"], request["seed"])


if __name__ == "__main__":
    run(__doc__, OUTPUT, REQUESTS, measure)
