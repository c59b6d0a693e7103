"""Measure over 16 seeds what lesson 00 shows on a few: riffusion_lab/training/data/lesson_00.json.

How unlike clips of riffling-turbo sound (`clip_distance`) when only the seed differs, and when only the prompt differs;
and how large the step over a loop's seam is beside those inside the clip. One thread; about three minutes:

    python tools/lesson_takes.py
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np

from riffusion_lab import Clip, load_pipeline, text_to_audio
from riffusion_lab.models import Pipeline
from riffusion_lab.training.classifier import clip_distance
from riffusion_lab.training.lesson import DATA

OUTPUT = DATA / "lesson_00.json"
MODEL = "riffling-turbo"
FUSED = "tropical jazz with steel drums"
PROMPTS = ("jazz with piano", "tropical with steel drums", FUSED, "church bells")
SEEDS = range(16)


def seam_step(clip: Clip) -> float:
    """Step from a loop's last sample to its first, divided by the mean step between neighbours inside it."""
    sound = clip.waveform[0]
    return float(abs(sound[0] - sound[-1]) / np.abs(np.diff(sound)).mean())


def make_clips(pipe: Pipeline) -> dict[str, list[Clip]]:
    """For each prompt a clip of each seed."""
    return {prompt: text_to_audio(pipe, prompt, seed=SEEDS) for prompt in PROMPTS}


def measure(clips: dict[str, list[Clip]]) -> dict[str, Any]:
    """Distances between the clips and the steps over their seams.

    Returns
    -------
    dict
        ``other_seed``: for each prompt the distances between every two of its clips, in the order of `combinations`;
        ``other_prompt``: for every two prompts, by ``first | second``, the distances between their clips of one seed;
        ``seam_steps``: for each prompt what `seam_step` finds in its clips.
    """
    return {
        "model": MODEL,
        "seeds": len(next(iter(clips.values()))),
        "fused": FUSED,
        "other_seed": {
            prompt: [round(clip_distance(a, b), 1) for a, b in combinations(some, 2)] for prompt, some in clips.items()
        },
        "other_prompt": {
            f"{first} | {second}": [
                round(clip_distance(a, b), 1) for a, b in zip(clips[first], clips[second], strict=True)
            ]
            for first, second in combinations(clips, 2)
        },
        "seam_steps": {prompt: [round(seam_step(clip), 2) for clip in some] for prompt, some in clips.items()},
    }


def main() -> None:
    """Make the clips, measure them and save what was found."""
    found = measure(make_clips(load_pipeline(MODEL)))
    OUTPUT.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
