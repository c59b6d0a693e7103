"""Measure over 16 seeds what lesson 07 shows on one: riffusion_lab/training/data/lesson_07.json.

Four seed clips, each restyled in four styles, every time with another seed. First with strengths from 0.5 to 1: what is
kept of the notes and the onsets, whether the style is heard, and how the level changes. Then what is left of a join, in
overlapping windows and in two pieces. Then where the style changes between two prompts. About five minutes:

    python tools/lesson_restyle.py [strengths] [joins] [morphs]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch

from riffusion_lab import Clip, audio_to_audio, load_pipeline
from riffusion_lab.audio import rms_dbfs
from riffusion_lab.beats import onset_strength
from riffusion_lab.models import Pipeline
from riffusion_lab.seed_clips import seed_clip
from riffusion_lab.training.classifier import class_scores
from riffusion_lab.training.lesson import DATA

OUTPUT = DATA / "lesson_07.json"
SOURCES = ("arpeggio", "chords", "bass", "melody")
STYLES = ("church organ", "choir", "electric piano", "techno")
RUNS = list(product(SOURCES, STYLES))  # the place of a pair is its seed
END = {"church organ": "harp", "choir": "music box", "electric piano": "flute", "techno": "choir"}
STRENGTHS = (0.5, 0.625, 0.75, 0.875, 1.0)
FEW: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 2.5}
LONG_S = 5.76  # nine beats; the cut in its middle lies between two beats
N_AROUND = 30  # columns of 10 ms on each side of the cut
PART = 256  # columns that the classifier judges at a time
N_PARTS = 9


def chroma(clip: Clip) -> np.ndarray:
    """How dark the twelve notes of the octave are in each column, minus their mean [shape=(12, n_columns)]."""
    bands = range(clip.params.num_frequencies)
    rows_hz = np.array([clip.params.frequency_hz(band) for band in bands])[::-1]
    notes = np.round(12 * np.log2(rows_hz / 440)) % 12
    notes[(rows_hz < 100) | (rows_hz > 2_000)] = -1
    dark = 1 - np.asarray(clip.image.convert("L")) / 255
    strength = np.stack([dark[notes == note].mean(axis=0) for note in range(12)])
    return strength - strength.mean(axis=0)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two arrays of one shape."""
    return round(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 3)


def measure_strengths(pipe: Pipeline, seed: int) -> dict[str, Any]:
    """Restyle a seed clip with all strengths.

    Returns
    -------
    dict
        ``source``, ``style``, and a list with a number for each strength: ``notes`` and ``onsets``, the correlations of
        chroma and of onset strength with the source's; ``heard``, the classifier's score for the style; ``level_db``,
        how much louder than the source.
    """
    source, style = RUNS[seed]
    old = seed_clip(source)
    found: dict[str, Any] = {"source": source, "style": style, "notes": [], "onsets": [], "heard": [], "level_db": []}
    for strength in STRENGTHS:
        new = audio_to_audio(pipe, old, style, strength=strength, seed=seed, **FEW)
        found["notes"].append(correlation(chroma(new), chroma(old)))
        found["onsets"].append(correlation(onset_strength(new), onset_strength(old)))
        found["heard"].append(round(class_scores(new.image)[style], 3))
        found["level_db"].append(round(float(rms_dbfs(new.waveform) - rms_dbfs(old.waveform)), 2))
    return found


def measure_joins(pipe: Pipeline, seed: int) -> dict[str, Any]:
    """Restyle nine beats whole, and as two pieces that are cut in the middle.

    Returns
    -------
    dict
        ``source``, ``style``, and the onset strength, in grey levels, of the columns around the cut, which has the
        number `N_AROUND`: of the ``recording``, in ``pieces``, and in ``windows``, each read from the sound.
    """
    source, style = RUNS[seed]
    recording = (seed_clip(source) * 2)[:LONG_S]
    options = {"strength": 0.625, "seed": seed, **FEW}
    halves = [recording[: LONG_S / 2], recording[LONG_S / 2 :]]
    first, second = (audio_to_audio(pipe, half, style, **options) for half in halves)
    clips = {
        "recording": recording,
        "pieces": first + second,
        "windows": audio_to_audio(pipe, recording, style, **options),
    }
    middle = first.image.width
    around = slice(middle - N_AROUND, middle + N_AROUND + 1)
    found: dict[str, Any] = {"source": source, "style": style}
    for name, clip in clips.items():
        heard = Clip.from_audio(clip.waveform, clip.sample_rate)
        found[name] = np.round(onset_strength(heard)[around], 2).tolist()
    return found


def measure_morphs(pipe: Pipeline, seed: int) -> dict[str, Any]:
    """Restyle a seed clip with one style that turns into another.

    Returns
    -------
    dict
        ``source``, ``style``, ``end_style``, the scores of both in parts of 2.56 s from the first to the last
        (``heard``, ``end_heard``), and ``notes`` as in `measure_strengths`.
    """
    source, style = RUNS[seed]
    old = seed_clip(source)
    new = audio_to_audio(pipe, old, style, end_prompt=END[style], strength=0.75, seed=seed, loop=False, **FEW)
    starts = np.linspace(0, new.image.width - PART, N_PARTS).astype(int)
    scores = [class_scores(new.image.crop((start, 0, start + PART, new.image.height))) for start in starts]
    return {
        "source": source,
        "style": style,
        "end_style": END[style],
        "heard": [round(each[style], 3) for each in scores],
        "end_heard": [round(each[END[style]], 3) for each in scores],
        "notes": correlation(chroma(new), chroma(old)),
    }


MEASURES: dict[str, Callable[[Pipeline, int], dict[str, Any]]] = {
    "strengths": measure_strengths,
    "joins": measure_joins,
    "morphs": measure_morphs,
}


def main() -> None:
    """Measure all, or what is named; the rest of the file stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MEASURES), metavar="NAME", help=", ".join(MEASURES))
    names = parser.parse_args().names
    torch.set_grad_enabled(False)
    pipe = load_pipeline(device="cpu")
    content = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    content |= {"values": list(STRENGTHS), "n_around": N_AROUND}
    for name in names:
        content[name] = [MEASURES[name](pipe, seed) for seed in range(len(RUNS))]
        OUTPUT.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
