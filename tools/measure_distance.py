"""Check `clip_distance` on clips of known difference: ``python tools/measure_distance.py``.

Composed pairs that differ in one thing: the same notes at another tempo or on another instrument, another piece of the
same caption, another instrument or style. Then clips of a model: other seeds of one prompt, and other prompts. For each
the distance (median, 10th to 90th percentile), and how often what should be nearer is nearer; beside it the mean
difference of the pictures in grey levels. Needs FluidSynth and its soundfont; minutes on two cores.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from riffusion_lab import Clip, load_pipeline, text_to_audio
from riffusion_lab.spacing import picture_distance
from riffusion_lab.training.composer import DRUM_CHANNEL, STYLES, Composer, Piece
from riffusion_lab.training.evaluation import clip_distance
from riffusion_lab.training.render import Renderer
from riffusion_lab.training.vocabulary import INSTRUMENTS

PIECES = 2  # of each instrument and style
PROMPTS = ("piano", "church bells", "violin", "acoustic guitar", "drums only", "jazz", "techno", "rock", "ambient pad")
SEEDS = range(4)
DISTANCES: dict[str, Callable[[Clip, Clip], float]] = {"clip_distance": clip_distance, "grey levels": picture_distance}

Pairs = dict[str, list[tuple[Clip, Clip]]]


def other_tempo(piece: Piece) -> Piece:
    """The same notes, two beats more or fewer in the loop."""
    n_beats = piece.n_beats + (2 if piece.n_beats <= 10 else -2)
    repeated = [replace(note, start=note.start + piece.n_beats) for note in piece.notes]
    notes = [note for note in (*piece.notes, *repeated) if note.start < n_beats]
    return replace(piece, n_beats=n_beats, notes=notes)


def other_instrument(piece: Piece, name: str) -> Piece:
    """The same notes on another instrument; drums stay drums."""
    changed = deepcopy(piece)
    changed.programs = {
        channel: program if channel == DRUM_CHANNEL else INSTRUMENTS[name].programs[0]
        for channel, program in piece.programs.items()
    }
    return changed


def composed_pairs(rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    """Pairs of one instrument's solos, and pairs of bands, by what differs."""
    renderer = Renderer()

    def clip(piece: Piece) -> Clip:
        return Clip.from_audio(renderer.render(piece), renderer.sample_rate, loop=True)

    def another(names: list[str], name: str) -> str:
        return str(rng.choice([other for other in names if other != name]))

    def composer() -> Composer:
        return Composer(np.random.default_rng(int(rng.integers(2**31))))

    solos: Pairs = {"tempo": [], "clip": [], "instrument, same notes": [], "instrument": []}
    for name in [name for name in INSTRUMENTS for _ in range(PIECES)]:
        piece = composer().solo(name)
        elsewhere = another(list(INSTRUMENTS), name)
        first = clip(piece)
        solos["tempo"].append((first, clip(other_tempo(piece))))
        solos["clip"].append((first, clip(composer().solo(name))))
        solos["instrument, same notes"].append((first, clip(other_instrument(piece, elsewhere))))
        solos["instrument"].append((first, clip(composer().solo(elsewhere))))
    bands: Pairs = {"tempo": [], "clip": [], "style": []}
    for name in [name for name in STYLES for _ in range(PIECES)]:
        piece = composer().in_style(name)
        first = clip(piece)
        bands["tempo"].append((first, clip(other_tempo(piece))))
        bands["clip"].append((first, clip(composer().in_style(name))))
        bands["style"].append((first, clip(composer().in_style(another(list(STYLES), name)))))
    return solos, bands


def generated_pairs(model: str) -> Pairs:
    """Pairs of a model's clips: of one prompt, and of one seed."""
    pipe = load_pipeline(model)
    clips = {}
    for text in PROMPTS:
        for seed, clip in zip(SEEDS, text_to_audio(pipe, text, seed=list(SEEDS)), strict=True):
            clips[text, seed] = clip
    return {
        "seed": [(clips[text, a], clips[text, b]) for text in PROMPTS for a, b in combinations(SEEDS, 2)],
        "prompt": [(clips[a, seed], clips[b, seed]) for a, b in combinations(PROMPTS, 2) for seed in SEEDS],
    }


def report(title: str, pairs: Pairs, orders: list[tuple[str, str]]) -> None:
    """Print the distances of some pairs, and how often one kind is nearer than another."""
    print(f"\n{title}")
    for name, distance in DISTANCES.items():
        found = {kind: np.array([distance(*pair) for pair in some]) for kind, some in pairs.items()}
        for kind, values in found.items():
            low, middle, high = np.percentile(values, (10, 50, 90))
            print(f"  {name}, other {kind}: {middle:.1f} ({low:.1f} to {high:.1f}), {len(values)} pairs")
        for nearer, farther in orders:
            right = np.mean([a < b for a, b in product(found[nearer], found[farther])])
            print(f"  {name}, other {nearer} nearer than other {farther}: {right:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="riffling-turbo")
    parser.add_argument("--seed", type=int, default=0, help="of the composed pieces")
    arguments = parser.parse_args()
    solos, bands = composed_pairs(np.random.default_rng(arguments.seed))
    report("Solos", solos, [("tempo", "clip"), ("clip", "instrument"), ("tempo", "instrument, same notes")])
    report("Bands", bands, [("tempo", "clip"), ("clip", "style")])
    report(f"Clips of {arguments.model}", generated_pairs(arguments.model), [("seed", "prompt")])
