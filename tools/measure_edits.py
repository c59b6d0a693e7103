"""Measure walks, masks, joins and outpainting with riffling: ``python tools/measure_edits.py``."""

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

RATE = 44_100


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
            new = inpaint(pipe, clip, mask, "rock, 94 bpm", num_inference_steps=3)
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
    pipe = load_pipeline()
    for measure in (measure_walks, measure_masks, measure_joins, measure_a_minute, measure_times):
        measure(pipe)


if __name__ == "__main__":
    main()
