"""Music by rule: a small grammar of styles and textures that writes loops of exactly one clip.

Every piece is a whole number of beats in 5.12 s; notes that ring past the end ring into the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .vocabulary import BEATS_PER_LOOP, DRUMS, FUSION, INSTRUMENTS, bpm_of

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Roots of chords as steps of the scale; each leads back to its first.
PROGRESSIONS = {
    "major": ((0,), (0, 4), (0, 3), (0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 0, 4), (0, 5, 1, 4)),
    "minor": ((0,), (0, 6), (0, 5), (0, 5, 2, 6), (0, 3, 5, 4), (0, 6, 5, 6), (0, 3, 0, 4)),
    "jazz": ((1, 4, 0, 5), (0, 5, 1, 4), (1, 4), (0, 3)),
}
KICK, SNARE, CLAP, CLOSED_HAT, OPEN_HAT, RIDE, CRASH, RIM, SHAKER, CONGA, LOW_CONGA, COWBELL, TOM, LOW_TOM = (
    36, 38, 39, 42, 46, 51, 49, 37, 70, 63, 64, 56, 48, 45,
)  # fmt: skip
DRUM_CHANNEL = 9


@dataclass(frozen=True)
class Note:
    """One note of a piece. Start and duration in beats, pitch and velocity as in MIDI."""

    start: float
    duration: float
    pitch: int
    velocity: int
    channel: int


@dataclass
class Piece:
    """One loop: its notes, which program plays which channel, and the facts its caption may tell."""

    n_beats: int
    metre: int
    notes: list[Note] = field(default_factory=list)
    programs: dict[int, int] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Style:
    """A band: who plays, in which patterns. Patterns are sixteenths; `x` loud, `o` soft, `.` silent."""

    beats: tuple[int, ...]  # whole beats in one loop, to choose from
    modes: tuple[str, ...]
    drums: tuple[dict[int, str], ...] = ()
    kits: tuple[int, ...] = (0,)
    bass: tuple[str, ...] = ()
    bass_patterns: tuple[str, ...] = ("x...x...x...x...",)
    chords: tuple[str, ...] = ()
    chord_patterns: tuple[str, ...] = ("x...............",)
    lead: tuple[str, ...] = ()
    lead_chance: float = 0.7
    swing: float = 0.0  # share of a half beat by which off-beats come late
    progression: str | None = None
    seventh: bool = False
    metre: int = 4


STYLES = {
    "jazz": Style(
        (8, 10, 12, 16), ("major", "minor"), progression="jazz", seventh=True, swing=0.33, kits=(32, 40),
        drums=({RIDE: "x...x.x.x...x.x.", CLOSED_HAT: "....x.......x...", KICK: "o.......o......."},
               {RIDE: "x...x.x.x...x.x.", SNARE: "......o.......o.", CLOSED_HAT: "....x.......x..."}),
        bass=("double bass",), bass_patterns=("x...x...x...x...",),
        chords=("piano", "vibraphone", "clean electric guitar"),
        chord_patterns=("x.....x.........", "..x.......x.....", "......x...x....."),
        lead=("saxophone", "trumpet", "piano", "clarinet"),
    ),
    "rock": Style(
        (8, 10, 12), ("major", "minor"), kits=(0, 16),
        drums=({KICK: "x.......x.x.....", SNARE: "....x.......x...", CLOSED_HAT: "x.x.x.x.x.x.x.x."},
               {KICK: "x.....x.x.......", SNARE: "....x.......x..o", OPEN_HAT: "x...x...x...x..."}),
        bass=("bass",), bass_patterns=("x.x.x.x.x.x.x.x.", "x...x.x.x...x.x."),
        chords=("distorted guitar",), chord_patterns=("x...x...x.x.x...", "x.x.x.x.x.x.x.x.", "x.......x......."),
        lead=("distorted guitar", "clean electric guitar", "organ"), lead_chance=0.5,
    ),
    "techno": Style(
        (11, 12, 13), ("minor",), kits=(24, 25),
        drums=({KICK: "x...x...x...x...", CLOSED_HAT: "..x...x...x...x."},
               {KICK: "x...x...x...x...", OPEN_HAT: "..x...x...x...x.", CLOSED_HAT: "oooooooooooooooo"},
               {KICK: "x...x...x...x...", CLAP: "....x.......x...", CLOSED_HAT: "..x...x...x...x."}),
        bass=("bass", "synth lead"), bass_patterns=("..x...x...x...x.", ".xxx.xxx.xxx.xxx"),
        chords=("synth lead", "synth pad"), chord_patterns=("x..x..x...x.....", "..x..x....x..x.."), lead_chance=0.0,
    ),
    "house": Style(
        (10, 11), ("minor", "major"), kits=(24, 25), seventh=True,
        drums=({KICK: "x...x...x...x...", OPEN_HAT: "..x...x...x...x.", CLAP: "....x.......x..."},
               {KICK: "x...x...x...x...", OPEN_HAT: "..x...x...x...x.", SHAKER: "oooooooooooooooo",
                CLAP: "....x.......x..."}),
        bass=("bass",), bass_patterns=("..x...x...x...x.", "x..x..x...x..x.."),
        chords=("electric piano", "piano", "organ"), chord_patterns=("x..x..x..x..x...", "..x...x...x...x."),
        lead=("vibraphone", "flute"), lead_chance=0.25,
    ),
    "tropical": Style(
        (8, 9, 10), ("major",), kits=(0,),
        drums=({KICK: "x...x...x...x...", CONGA: "..x..x....x..x..", LOW_CONGA: "x.....x.x.....x.",
                SHAKER: "x.o.x.o.x.o.x.o."},
               {KICK: "x.....x.x.....x.", COWBELL: "x..x..x...x.x...", CONGA: "...x..xx...x..xx"}),
        bass=("bass",), bass_patterns=("x..x..x.x..x..x.", "x.....x.x.....x."),
        chords=("marimba", "acoustic guitar"), chord_patterns=("..x...x...x...x.", "x..x..x.x..x..x."),
        lead=("steel drums",), lead_chance=1.0,
    ),
    "ambient": Style(
        (4, 7), ("major", "minor"), seventh=True,
        chords=("synth pad", "choir", "strings"),
        lead=("synth pad", "glockenspiel", "electric piano", "harp"), lead_chance=0.6,
    ),
    "funk": Style(
        (8, 9), ("minor", "major"), kits=(0, 8), seventh=True,
        drums=({KICK: "x..x..x...x..x..", SNARE: "....x..o.o..x...", CLOSED_HAT: "xoxoxoxoxoxoxoxo"},
               {KICK: "x.x....x..x.....", SNARE: "....x..o.o.ox..o", CLOSED_HAT: "x.xxx.xxx.xxx.xx"}),
        bass=("bass",), bass_patterns=("x..x..x.x.xx..x.", "x.x..x.xx..x.x.."),
        chords=("clean electric guitar", "organ", "electric piano"),
        chord_patterns=("..xx..x...xx..x.", "....x..x....x..x"),
        lead=("trumpet", "saxophone"), lead_chance=0.5,
    ),
    "hip hop": Style(
        (7, 8), ("minor",), kits=(25, 0), seventh=True, swing=0.2,
        drums=({KICK: "x......x..x.....", SNARE: "....x.......x...", CLOSED_HAT: "x.x.x.x.x.x.x.x."},
               {KICK: "x..x......x..x..", SNARE: "....x.......x...", CLOSED_HAT: "x.x.xxx.x.x.x.xx"}),
        bass=("bass",), bass_patterns=("x......x..x.....", "x.........x.x..."),
        chords=("electric piano", "piano", "vibraphone"), chord_patterns=("x...............", "x.......x......."),
        lead=("flute", "vibraphone", "music box"), lead_chance=0.3,
    ),
    "classical": Style(
        (6, 8, 9), ("major", "minor"), bass=("cello",), bass_patterns=("x.......x.......", "x...x...x...x..."),
        chords=("harpsichord", "strings", "piano"), chord_patterns=("x...x...x...x...", "x.x.x.x.x.x.x.x."),
        lead=("violin", "flute", "clarinet"), lead_chance=1.0,
    ),
    "folk": Style(
        (8, 9, 12), ("major",), bass=("double bass",), bass_patterns=("x.......x.......",),
        chords=("acoustic guitar", "banjo"), chord_patterns=("x.x.x.xxx.x.x.xx", "x...x.x.x...x.x."),
        lead=("violin", "accordion", "banjo"), lead_chance=0.9,
    ),
    "bossa nova": Style(
        (10, 11, 12), ("major", "minor"), progression="jazz", seventh=True, kits=(40, 32),
        drums=({RIM: "x..x..x...x..x..", CLOSED_HAT: "xoxoxoxoxoxoxoxo", KICK: "x..xx..xx..xx..x"},
               {RIM: "x..x...x..x.....", SHAKER: "xoxoxoxoxoxoxoxo", KICK: "x..xx..xx..xx..x"}),
        bass=("double bass",), bass_patterns=("x..xx..xx..xx..x",),
        chords=("classical guitar",), chord_patterns=("x..x..x...x..x..", "x..x...x..x....."),
        lead=("flute", "saxophone"), lead_chance=0.6,
    ),
    "orchestral": Style(
        (7, 8, 9, 10), ("major", "minor"), kits=(48,),
        drums=({41: "x...............", 49: "x..............."}, {41: "x.....x.x......."}, {41: "x.x.x.x.x.x.x.x."}),
        bass=("cello",), bass_patterns=("x.......x.......", "x.x.x.x.x.x.x.x."),
        chords=("strings", "choir"), chord_patterns=("x...............", "x.......x.......", "x.x.x.x.x.x.x.x."),
        lead=("trumpet", "flute", "violin"), lead_chance=0.9,
    ),
}  # fmt: skip


class Composer:
    """Writes pieces; the same seed writes the same pieces."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, options):
        """One of `options`, all alike likely."""
        return options[int(self.rng.integers(len(options)))]

    def begin(
        self, n_beats: int, metre: int, mode: str, progression: str | None = None, seventh: bool = False
    ) -> Piece:
        """An empty piece with a key and chords: `self.chords` holds (start, duration, scale steps of the chord)."""
        self.tonic = int(self.rng.integers(12))
        self.scale = SCALES[mode]
        roots = self.pick(PROGRESSIONS[progression or mode])
        length = n_beats / len(roots)
        if length == int(length) or len(roots) <= 2:
            starts = [i * length for i in range(len(roots))]
        else:  # whole beats each, the last one takes the rest
            starts = [i * int(length) for i in range(len(roots))]
        ends = [*starts[1:], n_beats]
        steps = (0, 2, 4, 6) if seventh else (0, 2, 4)
        self.chords = [(s, e - s, [r + step for step in steps]) for s, e, r in zip(starts, ends, roots, strict=True)]
        return Piece(n_beats, metre, facts={"mode": mode, "bpm": bpm_of(n_beats), "metre": metre})

    def pitch(self, step: int) -> int:
        """MIDI note of a scale step, in the octave of the tonic (which may be any)."""
        return self.tonic + 12 * (step // 7) + self.scale[step % 7]

    def near(self, pitch_class: int, centre: float, low: int, high: int) -> int:
        """The note of this pitch class that lies nearest to `centre` within the range."""
        notes = [n for n in range(low, high + 1) if (n - pitch_class) % 12 == 0]
        return min(notes, key=lambda n: abs(n - centre)) if notes else low

    def chord_at(self, beat: float) -> list[int]:
        """Scale steps of the chord that sounds at `beat`."""
        return next(steps for start, duration, steps in reversed(self.chords) if beat >= start - 1e-6)

    def velocity(self, loud: bool = True) -> int:
        """How hard a note is struck, as in MIDI."""
        return int(self.rng.integers(88, 116) if loud else self.rng.integers(55, 80))

    def add_voice(self, piece: Piece, name: str) -> int:
        """A free channel that plays instrument `name`."""
        channel = next(c for c in range(16) if c != DRUM_CHANNEL and c not in piece.programs)
        piece.programs[channel] = self.pick(INSTRUMENTS[name].programs)
        return channel

    def onsets(self, piece: Piece, pattern: str, swing: float = 0.0):
        """(start in beats, loud?) of each stroke of a pattern, bar by bar; odd beats cut the last bar short."""
        bar = 4 * piece.metre
        for step in range(4 * piece.n_beats):
            mark = pattern[step % bar]
            if mark != ".":
                yield step / 4 + (swing / 2 if step % 4 == 2 else 0.0), mark == "x"

    def play_drums(self, piece: Piece, pattern: dict[int, str], kit: int, swing: float) -> None:
        """A drum pattern, from the first bar to the last."""
        piece.programs[DRUM_CHANNEL] = kit
        for drum, strokes in pattern.items():
            for start, loud in self.onsets(piece, strokes, swing):
                piece.notes.append(Note(start, 0.2, drum, self.velocity(loud), DRUM_CHANNEL))

    def play_fill(self, piece: Piece) -> None:
        """A roll over the last beat."""
        drums = self.pick(((SNARE, SNARE, TOM, LOW_TOM), (TOM, TOM, LOW_TOM, LOW_TOM), (SNARE,) * 4))
        for i, drum in enumerate(drums):
            piece.notes.append(Note(piece.n_beats - 1 + i / 4, 0.2, drum, self.velocity(), DRUM_CHANNEL))

    def play_bass(self, piece: Piece, name: str, pattern: str, swing: float) -> None:
        """A bass line on the roots and tones of the chords."""
        channel, voice = self.add_voice(piece, name), INSTRUMENTS[name]
        low, high = max(28, voice.low), 50
        for start, loud in self.onsets(piece, pattern, swing):
            steps = self.chord_at(start)
            step = steps[0] if self.rng.random() < 0.7 else self.pick(steps)
            pitch = self.near(self.pitch(step), 38, low, max(high, low + 11))
            piece.notes.append(Note(start, 0.45, pitch, self.velocity(loud), channel))

    def play_chords(
        self, piece: Piece, name: str, pattern: str, swing: float = 0.0, length: float | None = None
    ) -> None:
        """Chords in a rhythm; each lasts until the next, or for `length` beats."""
        channel, voice = self.add_voice(piece, name), INSTRUMENTS[name]
        centre = (voice.low + voice.high) / 2 + self.rng.uniform(-5, 5)
        strokes = list(self.onsets(piece, pattern, swing))
        ends = [s for s, _ in strokes[1:]] + [piece.n_beats + strokes[0][0]]
        for (start, loud), end in zip(strokes, ends, strict=True):
            duration = (end - start) * 0.95 if length is None else min(length, end - start)
            velocity = self.velocity(loud) - 10
            pitches = {self.near(self.pitch(s), centre, voice.low, voice.high) for s in self.chord_at(start)}
            piece.notes += [Note(start, duration, p, velocity, channel) for p in sorted(pitches)]

    def play_arpeggio(self, piece: Piece, name: str, centre: float, channel: int | None = None) -> None:
        """Chords broken into their notes, in eighths or sixteenths."""
        voice = INSTRUMENTS[name]
        channel = self.add_voice(piece, name) if channel is None else channel
        fast = 4 if piece.facts["bpm"] < 100 and self.rng.random() < 0.6 else 2
        shape = self.pick(((0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3, 2, 1), (0, 2, 1, 2)))
        for i in range(fast * piece.n_beats):
            start = i / fast
            chord = self.chord_at(start)
            notes = sorted(self.near(self.pitch(s), centre, voice.low, voice.high) for s in chord[:3])
            notes.append(notes[0] + 12 if notes[0] + 12 <= voice.high else notes[0])
            pitch = notes[shape[i % len(shape)]]
            piece.notes.append(Note(start, 1.2 / fast, pitch, self.velocity(i % fast == 0), channel))

    def rhythm(self, n_beats: int, bpm: int) -> list[tuple[float, float]]:
        """(start, duration) of a melody's notes: a motif of two beats, said again and varied."""
        cells = ((1.0,), (0.5, 0.5), (1.5, 0.5), (2.0,), (0.75, 0.25), (0.5, 0.25, 0.25), (1.0, 0.5, 0.5))
        if bpm > 125:
            cells = ((1.0,), (0.5, 0.5), (2.0,), (1.5, 0.5), (1.0, 1.0))
        motif = [self.pick(cells) for _ in range(3)]
        notes, start = [], 0.0
        while start < n_beats:
            for duration in motif[len(notes) % 3] if self.rng.random() < 0.7 else self.pick(cells):
                if start < n_beats:
                    notes.append((start, min(duration, n_beats - start)))
                start += duration
        return notes

    def play_melody(self, piece: Piece, name: str, centre: float) -> None:
        """A tune that walks along the scale and meets the chords on the beat."""
        channel, voice = self.add_voice(piece, name), INSTRUMENTS[name]
        offset = round((centre - self.tonic) / 12) * 7
        step = offset + self.pick((0, 2, 4))
        for start, duration in self.rhythm(piece.n_beats, piece.facts["bpm"]):
            if self.rng.random() < 0.08:
                continue  # a rest
            step += int(self.rng.choice((-2, -1, -1, 0, 1, 1, 2, 3, -3)))
            if abs(step - offset) > 8:
                step = offset + self.pick((0, 2, 4))
            if start == int(start):  # on the beat a note of the chord
                chord = [s % 7 for s in self.chord_at(start)]
                step = min(range(step - 3, step + 4), key=lambda s: (s % 7 not in chord, abs(s - step)))
            pitch = self.pitch(step)
            while pitch > voice.high:
                pitch -= 12
            while pitch < voice.low:
                pitch += 12
            piece.notes.append(Note(start, duration * 0.95, pitch, self.velocity(start == int(start)), channel))

    def solo(self, name: str) -> Piece:
        """One instrument alone: a melody, chords, an arpeggio or a bass line."""
        voice, texture = INSTRUMENTS[name], self.pick(INSTRUMENTS[name].textures)
        metre = 3 if self.rng.random() < 0.2 else 4
        piece = self.begin(self.pick(BEATS_PER_LOOP[metre]), metre, self.pick(("major", "minor")))
        third = (voice.high - voice.low) / 3
        register = self.pick(("low", "middle", "high"))
        centre = voice.low + third * (0.5 + ("low", "middle", "high").index(register))
        if texture == "chords":
            patterns = (
                "x...............",
                "x.......x.......",
                "x...x...x...x...",
                "x.....x...x.....",
                "x.x.x.x.x.x.x.x.",
            )
            long_notes = name in ("strings", "choir", "synth pad")
            self.play_chords(piece, name, self.pick(patterns[: 2 if long_notes else 5]))
            register = "middle"
        elif texture == "arpeggio":
            self.play_arpeggio(piece, name, centre)
        elif texture == "bass line":
            pattern = self.pick(("x...x...x...x...", "x..x..x.x..x..x.", "x.x.x.x.x.x.x.x.", "x.....x.x......."))
            self.play_bass(piece, name, pattern, 0.0)
            register = "low"
        else:
            self.play_melody(piece, name, centre)
        piece.facts |= {"kind": "solo", "label": name, "texture": texture, "register": register, "drums": False}
        return piece

    def in_style(self, name: str) -> Piece:
        """A whole band."""
        style = STYLES[name]
        metre = 3 if name in ("classical", "folk", "orchestral") and self.rng.random() < 0.3 else style.metre
        beats = tuple(b for b in style.beats if b % 3 == 0) if metre == 3 else style.beats
        piece = self.begin(self.pick(beats), metre, self.pick(style.modes), style.progression, style.seventh)
        lead = self.pick(style.lead) if style.lead and self.rng.random() < style.lead_chance else None
        drums = bool(style.drums) and (self.rng.random() < 0.94 or not style.bass)
        if drums:
            self.play_drums(piece, self.pick(style.drums), self.pick(style.kits), style.swing)
        if style.bass:
            self.play_bass(piece, self.pick(style.bass), self.pick(style.bass_patterns), style.swing)
        accompaniment = self.pick(style.chords)
        self.play_chords(piece, accompaniment, self.pick(style.chord_patterns), style.swing)
        if lead:
            voice = INSTRUMENTS[lead]
            play = self.play_arpeggio if name == "ambient" and self.rng.random() < 0.5 else self.play_melody
            play(piece, lead, voice.low + 0.65 * (voice.high - voice.low))
        piece.facts |= {
            "kind": "style",
            "label": name,
            "lead": lead,
            "with": accompaniment,
            "drums": drums,
            "texture": None,
        }
        return piece

    def fusion(self) -> Piece:
        """Two styles at once: the beat of one, the harmony and the tune of the other."""
        with_drums = [name for name, style in STYLES.items() if style.drums]
        beat_name = self.pick(with_drums)
        tune_name = self.pick([name for name in STYLES if name != beat_name])
        beat, tune = STYLES[beat_name], STYLES[tune_name]
        shared = [n for n in beat.beats if n in tune.beats] or list(beat.beats)
        piece = self.begin(self.pick(shared), 4, self.pick(tune.modes), tune.progression, tune.seventh)
        self.play_drums(piece, self.pick(beat.drums), self.pick(beat.kits), beat.swing)
        if bass := self.pick((beat, tune)).bass or beat.bass:
            bassist = next(style for style in (beat, tune) if style.bass == bass)
            self.play_bass(piece, self.pick(bass), self.pick(bassist.bass_patterns), beat.swing)
        accompaniment = self.pick(tune.chords)
        self.play_chords(piece, accompaniment, self.pick(tune.chord_patterns), beat.swing)
        lead = self.pick(tune.lead) if tune.lead and self.rng.random() < 0.8 else None
        if lead:
            voice = INSTRUMENTS[lead]
            self.play_melody(piece, lead, voice.low + 0.65 * (voice.high - voice.low))
        facts = {"kind": FUSION, "label": FUSION, "styles": [beat_name, tune_name], "drums": True, "texture": None}
        piece.facts |= facts | {"lead": lead, "with": accompaniment}
        return piece

    def drum_beat(self) -> Piece:
        """Drums alone, in one of the styles that have them."""
        name = self.pick([n for n, s in STYLES.items() if s.drums and n != "orchestral"])
        style = STYLES[name]
        piece = self.begin(self.pick(style.beats), 4, "major")
        self.play_drums(piece, self.pick(style.drums), self.pick(style.kits), style.swing)
        if self.rng.random() < 0.3:
            self.play_fill(piece)
        piece.facts |= {"kind": DRUMS, "label": DRUMS, "style": name, "mode": None, "drums": True, "texture": None}
        return piece
