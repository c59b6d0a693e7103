"""How often the beats of a loop are found in its sound: ``python tools/measure_beats.py``.

The composer's clips have a known tempo; to render them needs FluidSynth with its soundfont. ``--riffling DIR`` also
makes clips of riffling whose prompts name a tempo, keeps them in a folder, and takes that tempo for theirs.

A number of beats that divides the right one, or is two or four times as large, is called an octave: another clip that
takes over there does so on a beat, an eighth or a sixteenth.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from riffusion_lab import Clip, load_pipeline, text_to_audio
from riffusion_lab.beats import heard_beats
from riffusion_lab.training.dataset import make_shard, plan
from riffusion_lab.training.vocabulary import CLIP_SECONDS

CLIPS = {"style": 60, "drums": 40, "solo": 40}  # kinds of the composer's clips, and how many
PROMPTS = (
    "drums only, 94 bpm", "techno, 129 bpm", "rock with drums, 141 bpm", "hip hop, 82 bpm", "funk, 105 bpm",
    "house, 117 bpm", "drum beat, 152 bpm", "drums, 70 bpm", "techno, 94 bpm", "disco house, 129 bpm",
    "samba, 188 bpm", "jazz trio, 117 bpm", "rock band, 82 bpm", "drum kit, 129 bpm", "trap, 141 bpm",
    "bossa nova, 70 bpm",
)  # fmt: skip
FIRST_SEED = 100


def verdict(found: int | None, right: int) -> str:
    """What to call a number of beats."""
    if found is None:
        return "unclear"
    if found == right:
        return "right"
    return "octave" if right % found == 0 or found in (2 * right, 4 * right) else "wrong"


def beats_at(bpm: float) -> int:
    """Beats in a clip."""
    return round(bpm * CLIP_SECONDS / 60)


def judge_composer() -> dict[str, Counter]:
    """Verdicts on rendered clips, with drums and without."""
    jobs = plan()
    missing = dict(CLIPS)
    verdicts = {"with drums": Counter(), "without drums": Counter()}
    for i in np.random.default_rng(0).permutation(len(jobs)):
        kind, _ = jobs[i]
        if missing.get(kind, 0) == 0:
            continue
        missing[kind] -= 1
        (picture,), (facts,) = make_shard([jobs[i]], int(i))
        found = heard_beats(Clip.from_image(Image.fromarray(picture), loop=True))
        name = "with drums" if facts["drums"] else "without drums"
        verdicts[name][verdict(found, beats_at(facts["bpm"]))] += 1
    return verdicts


def judge_riffling(folder: Path) -> Counter:
    """Verdicts on riffling's clips."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline()
    verdicts: Counter = Counter()
    for i, prompt in enumerate(PROMPTS):
        file = folder / f"{i:02d}.png"
        if not file.exists():
            text_to_audio(pipe, prompt, seed=FIRST_SEED + i, loop=True).save(file)
        found = heard_beats(Clip.from_image(file))
        right = beats_at(float(prompt.split()[-2]))
        print(f"{prompt}: {right} beats, found {found}: {verdict(found, right)}")
        verdicts[verdict(found, right)] += 1
    return verdicts


def main() -> None:
    """Judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--riffling", type=Path, metavar="DIR", help="also judge clips of riffling, kept here")
    arguments = parser.parse_args()
    if arguments.riffling:
        print(f"riffling: {dict(judge_riffling(arguments.riffling))}")
    for name, verdicts in judge_composer().items():
        print(f"rendered, {name}: {dict(verdicts)}")


if __name__ == "__main__":
    main()
