"""Notes → sound with FluidSynth, as exact loops."""

from __future__ import annotations

from ctypes import c_int, c_void_p
from pathlib import Path

import numpy as np

from .composer import DRUM_CHANNEL, Piece
from .vocabulary import CLIP_SECONDS

SOUNDFONTS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",  # Debian, Ubuntu: fluid-soundfont-gm
    "/usr/share/soundfonts/FluidR3_GM.sf2",  # Fedora, Arch
    "/opt/homebrew/share/soundfonts/FluidR3_GM.sf2",
)


def find_soundfont(path: str | Path | None = None) -> Path:
    """The soundfont to play with: `path`, or FluidR3 GM where systems keep it.

    Raises
    ------
    FileNotFoundError
        Where there is none; names the places looked at.
    """
    places = [Path(path)] if path else [Path(p) for p in SOUNDFONTS]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no soundfont at {', '.join(map(str, places))}: install FluidR3 GM "
        "(Debian: apt-get install fluid-soundfont-gm)"
    )


class Renderer:
    """A synthesizer that plays pieces as loops of one clip.

    The slow turning of FluidSynth's chorus and reverb runs on from piece to piece: the same piece is rendered alike,
    but not to the bit.

    Parameters
    ----------
    sample_rate : int
        In Hz. 24,000 is enough for pictures, which end at 10 kHz.
    soundfont : path, optional
    """

    def __init__(self, sample_rate: int = 24_000, soundfont: str | Path | None = None) -> None:
        import fluidsynth  # needs the FluidSynth library: only those who render need it

        # pyfluidsynth itself gives 16 bits; their rounding noise is plain to see in a picture of amplitude ** 0.25.
        self._write_float = fluidsynth.cfunc(
            "fluid_synth_write_float", c_int, ("synth", c_void_p, 1), ("len", c_int, 1), ("left", c_void_p, 1),
            ("left_offset", c_int, 1), ("left_step", c_int, 1), ("right", c_void_p, 1), ("right_offset", c_int, 1),
            ("right_step", c_int, 1),
        )  # fmt: skip
        self.sample_rate = sample_rate
        self.synth = fluidsynth.Synth(gain=0.4, samplerate=float(sample_rate))
        self.synth.setting("synth.reverb.room-size", 0.4)
        self.soundfont = self.synth.sfload(str(find_soundfont(soundfont)))

    def render(self, piece: Piece) -> np.ndarray:
        """Play the loop twice and keep the second time, so that what rings over the end is heard at the beginning.

        Returns
        -------
        np.ndarray [shape=(n_samples,), float32]
            Mono, 5.12 s.
        """
        n_samples = round(CLIP_SECONDS * self.sample_rate)
        samples_per_beat = n_samples / piece.n_beats
        self.synth.system_reset()
        for channel, program in piece.programs.items():
            bank = 128 if channel == DRUM_CHANNEL else 0
            self.synth.program_select(channel, self.soundfont, bank, program)
        events = []  # (sample, note on?, note): a note ends before the next one of its pitch begins
        for cycle in range(2):
            for note in piece.notes:
                start = round(note.start * samples_per_beat) + cycle * n_samples
                events.append((start, 1, note))
                events.append((start + max(1, round(note.duration * samples_per_beat) - 64), 0, note))
        events.sort(key=lambda event: event[:2])
        sound, now = np.zeros((2 * n_samples, 2), np.float32), 0
        for sample, is_on, note in events:
            if sample >= 2 * n_samples:
                break
            if sample > now:
                self._play_into(sound[now:sample])
                now = sample
            if is_on:
                self.synth.noteon(note.channel, note.pitch, note.velocity)
            else:
                self.synth.noteoff(note.channel, note.pitch)
        self._play_into(sound[now:])
        return sound[n_samples:].mean(axis=1)

    def _play_into(self, samples: np.ndarray) -> None:
        """Fill an array [shape=(n_samples, 2), float32, contiguous] with what sounds next."""
        address = samples.ctypes.data
        if self._write_float(self.synth.synth, len(samples), address, 0, 2, address, 1, 2) != 0:
            raise RuntimeError("FluidSynth could not render")
