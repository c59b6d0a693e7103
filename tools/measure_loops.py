"""Measure how best to close a loop: ``python tools/measure_loops.py``.

The U-Net's convolutions pad with zeros along time (a network circular in time cannot know where the bar begins), or
wrap around (so that the end meets the beginning). Tried: never circular, in the last third of the steps, always:

- seam: change of the picture from its last column to its first ÷ median change from column to column; and, beside it,
  the same over the beats inside, where a loop's seam lies too.
- off the beat: how far the onsets, folded to half a beat, lie from the grid that begins with the clip, in ms.

Rendered clips, for comparison, need FluidSynth.
"""

import numpy as np

from riffusion_lab import Clip, denoise, load_pipeline, text_to_audio
from riffusion_lab.image import mel_from_image
from riffusion_lab.training.dataset import make_sound

BEATS = {"94": 8, "117": 10, "141": 12}  # in 5.12 s
STYLES = ("techno", "rock", "house", "tropical", "funk", "drums only")
PROMPTS = [f"{style}, {bpm} bpm" for style in STYLES for bpm in BEATS]
SHARES = {"never": 0.0, "last third": denoise.CIRCULAR_SHARE, "always": 1.0}


def brightness(clip: Clip) -> np.ndarray:
    """Bands × columns."""
    return mel_from_image(clip.image, clip.params)[0].numpy() ** clip.params.power_for_image


def seam(clip: Clip, n_beats: int) -> tuple[float, float]:
    """Change from the last column to the first, and the mean of those on the other beats, both ÷ the median one."""
    picture = brightness(clip)
    changes = np.abs(picture - np.roll(picture, 1, axis=1)).mean(axis=0)  # number k: from column k - 1 to k
    beats = [max(changes[(round(beat * 512 / n_beats) + i) % 512] for i in (-1, 0, 1)) for beat in range(n_beats)]
    return beats[0] / np.median(changes), np.mean(beats[1:]) / np.median(changes)


def off_the_beat_ms(clip: Clip, n_beats: int) -> float:
    """Circular mean of where in the half beat the onsets lie, in ms from its beginning."""
    picture = brightness(clip)
    onsets = (picture - np.roll(picture, 1, axis=1)).clip(min=0).sum(axis=0)
    onsets = (onsets - np.median(onsets)).clip(min=0) ** 2
    phase = np.angle((onsets * np.exp(2j * np.pi * np.arange(512) / 512 * 2 * n_beats)).sum())
    return phase / (2 * np.pi) * 5_120 / (2 * n_beats)


def show(name: str, clips: list[Clip], n_beats: list[int]) -> None:
    """Print a line of the table."""
    seams = np.array([seam(clip, n) for clip, n in zip(clips, n_beats, strict=True)])
    off = np.abs([off_the_beat_ms(clip, n) for clip, n in zip(clips, n_beats, strict=True)])
    print(
        f"{name:20s}: seam {np.median(seams[:, 0]):.2f} (largest {seams[:, 0].max():.2f}), other beats "
        f"{np.median(seams[:, 1]):.2f}; off the beat {np.median(off):.0f} ms (largest {off.max():.0f})",
        flush=True,
    )


def main() -> None:
    """Print a table."""
    n_beats = [BEATS[prompt.split()[-2]] for prompt in PROMPTS]
    rendered, beats = [], []
    for seed, style in enumerate(STYLES[:-1] * 4):
        sound, facts = make_sound("style", style, seed)
        rendered.append(Clip.from_audio(sound, 24_000, loop=True))
        beats.append(round(facts["bpm"] * 5.12 / 60))
    show("rendered", rendered, beats)
    pipe = load_pipeline()
    for name, share in SHARES.items():
        denoise.CIRCULAR_SHARE = share
        clips = [text_to_audio(pipe, prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
        show(f"circular {name}", clips, n_beats)


if __name__ == "__main__":
    main()
