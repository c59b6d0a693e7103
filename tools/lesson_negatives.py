"""Measure over many seeds what lesson 06 shows on a few: riffusion_lab/training/data/lesson_06.json.

- ``composed``: composed pieces with their drums and the same notes without, to check the measure of drums.
- ``drums``: for each prompt and seed the clip as it comes, with "no drums" in its prompt, with the negative prompt
  "drums", and both with and without the negative prompt at a larger guidance scale.
- ``weights``: prompts of which one part has three weights.

Two processes of one thread; about 4 minutes. It stops after ``--minutes`` and goes on at the next call. The composed
pieces need FluidSynth and its soundfont:

    python tools/lesson_negatives.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from entries import Request, run
from riffusion_lab import Clip, load_pipeline, text_to_audio
from riffusion_lab.models import Pipeline
from riffusion_lab.training.classifier import class_scores, load_classifier, picture_tensor
from riffusion_lab.training.composer import DRUM_CHANNEL, Composer
from riffusion_lab.training.lesson import DATA
from riffusion_lab.training.render import Renderer

OUTPUT = DATA / "lesson_06.json"
SEEDS = range(16)
N_STEPS = 4  # fewer than the default 12, as for the pictures of the lesson
STYLES = ("jazz", "rock", "funk")  # composed
PROMPTS = ("jazz with piano", "rock", "funk")
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "“no drums”": {"prompt": "{}, no drums"},
    "negative": {"negative_prompt": "drums"},
    "scale 3": {"guidance_scale": 3},
    "negative, scale 3": {"negative_prompt": "drums", "guidance_scale": 3},
}
WEIGHTS = (0, 1, 2)
WEIGHTED = {"jazz with piano, (no drums:{})": "jazz", "piano and (church bells:{})": "church bells"}  # class heard for
FROM_HZ = 5_000


def high_onsets(clip: Clip) -> float:
    """Mean rise from column to column above 5 kHz, in grey levels."""
    darkness = 255 - np.asarray(clip.image.convert("L"), float)
    high = darkness[: 512 - round(clip.params.band(FROM_HZ))]
    return float(np.diff(high, axis=1).clip(min=0).mean())


@torch.no_grad()
def embedding(clip: Clip) -> np.ndarray:
    """Embedding by the classifier [shape=(64,)]."""
    return load_classifier().embed(picture_tensor(clip.image))[0].numpy()


def measures(clips: list[Clip]) -> dict[str, list[float]]:
    """Onsets above 5 kHz of each clip."""
    return {"onsets": rounded([high_onsets(clip) for clip in clips])}


def rounded(values: Any) -> list[float]:
    """Numbers with three digits behind the point, for the file."""
    return np.round(np.asarray(values, float), 3).tolist()


@lru_cache(maxsize=1)
def pipeline() -> Pipeline:
    """riffling, once a process."""
    return load_pipeline(device="cpu")


def composed(style: str, seed: int) -> dict[str, Any]:
    """A composed piece with its drums, and without."""
    composer, renderer = Composer(np.random.default_rng(seed)), Renderer()
    piece = composer.in_style(style)
    while not any(note.channel == DRUM_CHANNEL for note in piece.notes):
        piece = composer.in_style(style)
    without = replace(piece, notes=[note for note in piece.notes if note.channel != DRUM_CHANNEL])
    sounds = [renderer.render(each) for each in (piece, without)]
    return measures([Clip.from_audio(sound, renderer.sample_rate, loop=True) for sound in sounds])


def drums(prompt: str, seed: int) -> dict[str, Any]:
    """One seed in all `WAYS`: also the distance from the clip as it comes, and the class that the classifier hears."""
    clips = []
    for changed in WAYS.values():
        options = {"prompt": "{}", "num_inference_steps": N_STEPS} | changed
        options["prompt"] = options["prompt"].format(prompt)
        clips.append(text_to_audio(pipeline(), seed=seed, **options))
    embeddings = [embedding(clip) for clip in clips]
    distances = [np.linalg.norm(each - embeddings[0]) for each in embeddings]
    place = np.round(embeddings[0], 1).tolist()  # for the distance between seeds
    heard = [next(iter(class_scores(clip.image))) for clip in clips]
    return measures(clips) | {"distance": rounded(distances), "embedding": place, "heard": heard}


@torch.no_grad()
def weights(prompt: str, seed: int) -> dict[str, Any]:
    """One part of a prompt with each of `WEIGHTS`: also the probability of the class that it names."""
    prompts = [prompt.format(weight) for weight in WEIGHTS]
    clips = text_to_audio(pipeline(), prompts, seed=seed, num_inference_steps=N_STEPS)
    classifier = load_classifier()
    wanted = classifier.choices["class"].index(WEIGHTED[prompt])
    scores = [classifier(picture_tensor(clip.image))["class"][0].softmax(dim=0)[wanted] for clip in clips]
    return measures(clips) | {"score": rounded(scores)}


PARTS = {"composed": (composed, STYLES), "drums": (drums, PROMPTS), "weights": (weights, WEIGHTED)}
REQUESTS = [
    {"part": part, "text": text, "seed": seed} for part, (_, texts) in PARTS.items() for text in texts for seed in SEEDS
]


def measure(request: Request) -> dict[str, Any]:
    """One entry of the file."""
    function, _ = PARTS[request["part"]]
    return function(request["text"], request["seed"])


if __name__ == "__main__":
    run(__doc__, OUTPUT, REQUESTS, measure)
