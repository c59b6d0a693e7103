"""Measure walks, masks, joins and outpainting: ``python tools/measure_edits.py [--model riffling-turbo]``."""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import librosa
import numpy as np
from scipy.signal import find_peaks

from riffusion_lab import (
    Clip,
    Prompt,
    audio_to_audio,
    extend,
    inpaint,
    interpolate,
    load_pipeline,
    stitch,
    text_to_audio,
)
from riffusion_lab.audio import rms_dbfs
from riffusion_lab.params import COLUMNS_PER_S
from riffusion_lab.seed_clips import SEED_CLIPS, seed_clip, seed_masks
from riffusion_lab.training.evaluation import class_scores

RATE = 44_100
SEEDS = range(16)
# Each with the class that it should be heard as
SEAM_PROMPTS = {
    "techno, 94 bpm": "techno",
    "strings chords": "strings",
    "rock, 94 bpm": "rock",
    "piano melody, 94 bpm": "piano",
}
STRENGTHS = (0.2, 0.3, 0.45, 0.6, 0.8)


def pixels(clip: Clip) -> np.ndarray:
    """Picture as numbers from 0 to 255."""
    return np.asarray(clip.image.convert("L"), float)


def measure_walks(pipe) -> None:
    """Compare both ends with `text_to_audio`, and the steps from clip to clip."""
    for a, b in (("piano", "piano"), ("piano", "techno"), ("jazz", "tropical")):
        start, end = Prompt(a, seed=1), Prompt(b, seed=2)
        clips = list(interpolate(pipe, start, end, num_clips=9))
        ends = [text_to_audio(pipe, prompt.text, seed=prompt.seed) for prompt in (start, end)]
        same = [x.image.tobytes() == y.image.tobytes() for x, y in zip(ends, (clips[0], clips[-1]), strict=True)]
        steps = [np.abs(pixels(x) - pixels(y)).mean() for x, y in pairwise(clips)]
        print(f"{a} → {b}: ends the same bytes {same}; steps largest ÷ smallest {max(steps) / min(steps):.2f}")


def measure_masks(pipe) -> None:
    """Count what changes outside of a mask."""
    for name in SEED_CLIPS:
        clip, changed = seed_clip(name), 0
        for mask in seed_masks(name).values():
            new = inpaint(pipe, clip, mask, "rock, 94 bpm")
            changed += int((np.asarray(new.image) != np.asarray(clip.image)).any(axis=-1)[~mask].sum())
        print(f"inpaint {name}: {changed} pixels changed outside of {len(seed_masks(name))} masks")


def roughness(waveform: np.ndarray) -> np.ndarray:
    """Largest second difference in each 10 ms."""
    jumps = np.abs(np.diff(waveform[0], 2, append=[0, 0]))
    return jumps[: len(jumps) // 441 * 441].reshape(-1, 441).max(axis=1)


def measure_joins(pipe) -> None:
    """Compare what happens at the joins of 20 clips with what happens on the other beats of the same clips."""
    prompts = ("techno, 94 bpm", "piano, 94 bpm", "rock, 94 bpm", "strings, 94 bpm")
    clips = [text_to_audio(pipe, prompts[seed % 4], seed=seed) for seed in range(20)]
    for name, whole in (("stitched", stitch(clips)), ("end to end", sum(clips[1:], start=clips[0]))):
        rough = roughness(whole.waveform)
        joins = np.array([rough[k * 512 - 3 : k * 512 + 3].max() for k in range(1, 20)])
        beats = [
            rough[k * 512 + beat * 64 - 3 : k * 512 + beat * 64 + 3].max() for k in range(20) for beat in range(1, 8)
        ]
        levels = [rms_dbfs(whole[k * 5.12 - 0.04 : k * 5.12 + 0.04].waveform) for k in range(1, 20)]
        around = [rms_dbfs(whole[k * 5.12 - 0.2 : k * 5.12 + 0.2].waveform) for k in range(1, 20)]
        print(
            f"20 clips {name}: sharpest 10 ms at the joins ÷ on other beats, "
            f"median {np.median(joins) / np.median(beats):.2f}, largest {joins.max() / max(beats):.2f}; "
            f"level at the joins − around them, mean {np.mean(np.subtract(levels, around)):+.1f} dB"
        )


def off_tempo(clip: Clip, bpm: float) -> float:
    """How far the place near four beats later, where the onsets look like themselves again, is from four beats."""
    onsets = librosa.onset.onset_strength(y=clip.waveform[0], sr=RATE, hop_length=441)
    onsets = onsets - onsets.mean()
    alike = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
    four_beats = 240 * COLUMNS_PER_S / bpm
    peak = min(find_peaks(alike)[0], key=lambda lag: abs(lag - four_beats))
    left, middle, right = alike[peak - 1 : peak + 2]
    return (peak + (left - right) / (2 * (left - 2 * middle + right))) / four_beats - 1  # between columns too


def measure_a_minute(pipe) -> None:
    """Add a minute to a clip, and see whether level and tempo hold."""
    for prompt in ("techno, 117 bpm", "rock, 94 bpm"):
        clip = text_to_audio(pipe, prompt, seed=1)
        bpm = {"117": 600 / 5.12, "94": 480 / 5.12}[prompt.split()[-2]]  # the exact ones, of whole beats in 5.12 s
        long = extend(pipe, clip, prompt, seconds=60, seed=2)
        parts = [long[s : s + 10.0] for s in (5.12, 15.12, 25.12, 35.12, 45.12, 55.12)]
        levels = [rms_dbfs(part.waveform) - rms_dbfs(clip.waveform) for part in parts]
        tempi = [off_tempo(part, bpm) for part in parts]
        print(
            f"{prompt}, a minute more: level", ", ".join(f"{level:+.1f}" for level in levels), "dB; tempo off", end=" "
        )
        print(", ".join(f"{change:+.1%}" for change in tempi))


def seam(clip: Clip, column: int) -> float:
    """Change from the column before to this one ÷ the median change from column to column."""
    picture = pixels(clip)
    changes = np.abs(picture - np.roll(picture, 1, axis=1)).mean(axis=0)
    return changes[column] / np.median(changes)


def edits_with_seams(pipe, prompt: str, seed: int) -> dict[str, tuple[Clip, tuple[int, ...]]]:
    """A clip of each kind of call, and the columns in which something made anew meets something else."""
    source = text_to_audio(pipe, prompt, seed=100 + seed)
    walk = interpolate(pipe, Prompt(prompt, seed=seed), Prompt(prompt, seed=seed + 1), num_clips=3)
    return {
        "text_to_audio": (text_to_audio(pipe, prompt, seed=seed), (0,)),
        "text_to_audio, 10.24 s": (text_to_audio(pipe, prompt, seed=seed, duration_s=10.24), (0, 512)),
        "interpolate, halfway": (list(walk)[1], (0,)),
        "audio_to_audio": (audio_to_audio(pipe, source, prompt, seed=seed), (0,)),
        "inpaint 1.28 to 3.84 s": (inpaint(pipe, source, (1.28, 3.84), prompt, seed=seed), (128, 384)),
        "extend by 2.56 s": (extend(pipe, source, prompt, seconds=2.56, seed=seed), (512,)),
    }


def measure_seams(pipe) -> None:
    """How abrupt pictures are where parts meet, over 16 seeds, and how often the prompt is heard."""
    seams, heard = {}, {}
    for seed in SEEDS:
        prompt, label = list(SEAM_PROMPTS.items())[seed % len(SEAM_PROMPTS)]
        for name, (clip, columns) in edits_with_seams(pipe, prompt, seed).items():
            seams.setdefault(name, []).extend(seam(clip, column) for column in columns)
            ends = clip[max(0.0, clip.duration_s - 5.12) :]  # of `extend`, half of it new
            heard.setdefault(name, []).append(next(iter(class_scores(ends.image))) == label)
    for name, found in seams.items():
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
        print(
            f"{name}: step at the seam ÷ median step {middle:.2f} (quartiles {low:.2f}, {high:.2f}, "
            f"largest {max(found):.2f}); prompt heard {sum(heard[name])} of {len(heard[name])}"
        )


def measure_strengths(pipe) -> None:
    """How far a clip moves from its source, and towards the prompt."""
    for strength in STRENGTHS:
        changes, heard = [], 0
        for seed in SEEDS:
            source = seed_clip(SEED_CLIPS[seed % len(SEED_CLIPS)])
            clip = audio_to_audio(pipe, source, "church organ, 94 bpm", strength=strength, seed=seed)
            changes.append(np.abs(pixels(clip) - pixels(source)).mean())
            heard += next(iter(class_scores(clip.image))) == "church organ"
        print(f"strength {strength}: {np.mean(changes):.1f} grey levels from the source, organ heard {heard} of 16")


def measure_times(pipe) -> None:
    """Time each operation, picture only, beside `text_to_audio`."""
    clip = text_to_audio(pipe, "piano", seed=1)
    operations: dict[str, Callable[[], object]] = {
        "text_to_audio": lambda: text_to_audio(pipe, "jazz", seed=2),
        "interpolate, 1 of many": lambda: next(interpolate(pipe, Prompt("jazz"), Prompt("rock"), num_clips=3)),
        "audio_to_audio, strength 0.55": lambda: audio_to_audio(pipe, clip, "jazz"),
        "audio_to_audio, strength 1": lambda: audio_to_audio(pipe, clip, "jazz", strength=1.0),
        "inpaint": lambda: inpaint(pipe, clip, (1.0, 3.0), "jazz"),
        "extend by 2.56 s": lambda: extend(pipe, clip, "jazz", seconds=2.56),
        "text_to_audio, 10.24 s": lambda: text_to_audio(pipe, "jazz", duration_s=10.24),
    }
    times = {name: [] for name in operations}
    for _ in range(4):
        for name, operation in operations.items():
            started = time.perf_counter()
            operation()
            times[name].append(time.perf_counter() - started)
    plain = np.median(times["text_to_audio"][1:])
    for name, spent in times.items():
        print(f"{name}: {np.median(spent[1:]):.2f} s, {np.median(spent[1:]) / plain:.2f} of text_to_audio")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="riffling")
    parser.add_argument("--only", nargs="*", default=list(MEASURES), choices=MEASURES, help="default: all")
    arguments = parser.parse_args()
    pipe = load_pipeline(arguments.model)
    for name in arguments.only:
        MEASURES[name](pipe)


MEASURES = {
    "walks": measure_walks,
    "masks": measure_masks,
    "joins": measure_joins,
    "seams": measure_seams,
    "strengths": measure_strengths,
    "minute": measure_a_minute,
    "times": measure_times,
}

if __name__ == "__main__":
    main()
