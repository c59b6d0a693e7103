"""Measure how best to close a loop: ``python tools/measure_loops.py``.

The U-Net's convolutions pad with zeros along time (a network circular in time cannot know where the bar begins), or
wrap around (so that the end meets the beginning). Tried: never circular, in the last third of the steps, always:

- seam: change of the picture from its last column to its first ÷ median change from column to column, in sounds that
  are sustained.
- off the beat, in rhythmic ones: how far the onsets, folded to half a beat, lie from the grid that begins with the
  clip, in ms.

Rendered clips, for comparison, need FluidSynth.
"""

import numpy as np

from riffusion_lab import Clip, load_pipeline, sampling, text_to_audio
from riffusion_lab.image import mel_from_image
from riffusion_lab.training.dataset import make_sound

BEATS = {"94": 8, "117": 10, "141": 12}  # in 5.12 s
STYLES = ("techno", "rock", "house", "tropical", "funk", "drums only")
RHYTHMIC = [f"{style}, {bpm} bpm" for style in STYLES for bpm in BEATS]
SUSTAINED = {"strings": "solo", "choir": "solo", "organ": "solo", "church organ": "solo", "ambient": "style"}
SHARES = {"never": 0.0, "last third": sampling.CIRCULAR_SHARE, "always": 1.0}


def brightness(clip: Clip) -> np.ndarray:
    """Bands × columns."""
    return mel_from_image(clip.image, clip.params)[0].numpy() ** clip.params.power_for_image


def seam(clip: Clip) -> float:
    """Change from the last column to the first ÷ the median one."""
    picture = brightness(clip)
    changes = np.abs(picture - np.roll(picture, 1, axis=1)).mean(axis=0)  # number k: from column k - 1 to k
    return changes[0] / np.median(changes)


def off_the_beat_ms(clip: Clip, n_beats: int) -> float:
    """Circular mean of where in the half beat the onsets lie, in ms from its beginning."""
    picture = brightness(clip)
    onsets = (picture - np.roll(picture, 1, axis=1)).clip(min=0).sum(axis=0)
    onsets = (onsets - np.median(onsets)).clip(min=0) ** 2
    phase = np.angle((onsets * np.exp(2j * np.pi * np.arange(512) / 512 * 2 * n_beats)).sum())
    return phase / (2 * np.pi) * 5_120 / (2 * n_beats)


def show(name: str, sustained: list[Clip], rhythmic: list[Clip], n_beats: list[int]) -> None:
    """Print a line of the table."""
    seams = [seam(clip) for clip in sustained]
    off = np.abs([off_the_beat_ms(clip, n) for clip, n in zip(rhythmic, n_beats, strict=True)])
    print(
        f"{name:20s}: seam {np.median(seams):.1f} (largest {max(seams):.1f}); "
        f"off the beat {np.median(off):.0f} ms (largest {off.max():.0f})",
        flush=True,
    )


def render(kind: str, label: str, seed: int) -> tuple[Clip, int]:
    """A rendered clip, and its beats."""
    sound, facts = make_sound(kind, label, seed)
    return Clip.from_audio(sound, 24_000, loop=True), round(facts["bpm"] * 5.12 / 60)


def main() -> None:
    """Print a table."""
    rhythmic, n_beats = zip(*(render("style", s, seed) for seed, s in enumerate(STYLES[:-1] * 4)), strict=True)
    sustained, _ = zip(*(render(SUSTAINED[s], s, seed) for seed, s in enumerate(list(SUSTAINED) * 2)), strict=True)
    show("rendered", sustained, rhythmic, n_beats)
    pipe = load_pipeline()
    for name, share in SHARES.items():
        sampling.CIRCULAR_SHARE = share
        sustained = [text_to_audio(pipe, prompt, seed=seed) for seed, prompt in enumerate(list(SUSTAINED) * 2)]
        rhythmic = [text_to_audio(pipe, prompt, seed=seed) for seed, prompt in enumerate(RHYTHMIC)]
        show(f"circular {name}", sustained, rhythmic, [BEATS[prompt.split()[-2]] for prompt in RHYTHMIC])


if __name__ == "__main__":
    main()
