"""Compose and render the six seed clips, riffusion_lab/seed_clips/*.ogg: two bars each at 94 bpm, in A minor.

They are in time and in tune with one another. Needs FluidSynth and its General MIDI soundfont:

    python tools/seed_clips.py
"""

from pathlib import Path

import numpy as np

from riffusion_lab import Clip
from riffusion_lab.audio import level_gain
from riffusion_lab.limiter import limit
from riffusion_lab.params import PARAMS
from riffusion_lab.seed_clips import SEED_CLIPS
from riffusion_lab.training.composer import CLOSED_HAT, KICK, OPEN_HAT, SNARE, Composer, Piece
from riffusion_lab.training.render import Renderer

FOLDER = Path(__file__).parents[1] / "riffusion_lab" / "seed_clips"
A, MINOR, N_BEATS, METRE = 9, "minor", 8, 4
CHORDS = [(0, 4, [0, 2, 4]), (4, 4, [5, 7, 9])]  # a bar of A minor, a bar of F major
ROCK = {KICK: "x.......x.x.....", SNARE: "....x.......x...", CLOSED_HAT: "x.o.x.o.x.o.x.o."}
HATS = {CLOSED_HAT: "xoxoxoxoxox.xoxo", OPEN_HAT: "...........o...."}
FUNK = {KICK: "x..x......x.....", SNARE: "....x..o.o..x...", **HATS}


def play(name: str, composer: Composer, piece: Piece) -> None:
    """Write one of the six into a piece."""
    if name == "beat":
        composer.play_drums(piece, ROCK, kit=0, swing=0)
    elif name == "groove":
        composer.play_drums(piece, FUNK, kit=0, swing=0)
        composer.play_bass(piece, "bass", "x..x..x...x.x...", swing=0)
    elif name == "arpeggio":
        composer.play_arpeggio(piece, "harp", centre=69)
    elif name == "chords":
        composer.play_chords(piece, "electric piano", "x..x..x.....x...")
    elif name == "bass":
        composer.play_bass(piece, "bass", "x.....x.x...x.x.", swing=0)
    else:
        composer.play_melody(piece, "vibraphone", centre=72)


def main() -> None:
    """Render all six."""
    renderer = Renderer(PARAMS.sample_rate)
    FOLDER.mkdir(exist_ok=True)
    for seed, name in enumerate(SEED_CLIPS):
        composer = Composer(np.random.default_rng(seed))
        piece = composer.begin(N_BEATS, METRE, MINOR)
        composer.tonic, composer.chords = A, CHORDS
        play(name, composer, piece)
        sound = renderer.render(piece)[None]
        gain, ceiling = level_gain(sound, is_known=False)
        sound = limit(gain * sound, PARAMS.sample_rate, ceiling=ceiling, loop=True)
        Clip.from_audio(sound, PARAMS.sample_rate, loop=True).save(FOLDER / f"{name}.ogg")


if __name__ == "__main__":
    main()
