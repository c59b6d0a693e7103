"""What riffling is taught: instruments, sounds and moods, each with the words that name it."""

from __future__ import annotations

from dataclasses import dataclass

CLIP_SECONDS = 5.12
BEATS_PER_LOOP = {4: (4, 8, 12, 16, 7, 10, 11, 13), 3: (6, 9, 12)}  # metre → whole beats in one clip


def bpm_of(n_beats: int) -> int:
    """Tempo of `n_beats` in one clip, rounded to whole beats per minute."""
    return round(n_beats * 60 / CLIP_SECONDS)


def loop_beats() -> list[int]:
    """All numbers of beats that a clip may have, rising."""
    return sorted({n for counts in BEATS_PER_LOOP.values() for n in counts})


@dataclass(frozen=True)
class Instrument:
    """One General MIDI voice: which programs play it, where it sounds well, and what it is called."""

    programs: tuple[int, ...]  # General MIDI, counted from 0
    low: int  # lowest MIDI note
    high: int  # highest MIDI note
    names: tuple[str, ...]  # the first is the class's own name
    textures: tuple[str, ...] = ("melody", "chords", "arpeggio")


POLY = ("melody", "chords", "arpeggio")
MONO = ("melody", "melody", "arpeggio")
LINE = ("bass line", "melody")
SOFT = ("chords", "chords", "melody")

_TABLE = (
    ((0, 1), 45, 84, ("piano", "grand piano", "acoustic piano", "pianoforte"), POLY),
    ((4, 5), 45, 79, ("electric piano", "rhodes", "e-piano", "wurlitzer"), POLY),
    ((16, 17), 43, 79, ("organ", "hammond organ", "drawbar organ"), POLY),
    ((19,), 43, 79, ("church organ", "pipe organ"), POLY),
    ((6,), 45, 79, ("harpsichord", "cembalo", "clavecin"), POLY),
    ((24,), 43, 76, ("classical guitar", "nylon guitar", "spanish guitar"), POLY),
    ((25,), 43, 76, ("acoustic guitar", "steel string guitar"), POLY),
    ((27,), 43, 76, ("clean electric guitar", "electric guitar", "clean guitar"), POLY),
    ((30, 29), 40, 71, ("distorted guitar", "distortion guitar", "overdriven guitar", "heavy guitar"), POLY),
    ((33, 34), 28, 50, ("bass", "electric bass", "bass guitar"), LINE),
    ((32,), 28, 52, ("double bass", "upright bass", "acoustic bass"), LINE),
    ((48, 49), 43, 81, ("strings", "string ensemble", "string section", "string orchestra"), SOFT),
    ((40,), 57, 88, ("violin", "fiddle", "solo violin"), MONO),
    ((42,), 38, 67, ("cello", "solo cello"), MONO),
    ((73,), 60, 91, ("flute", "solo flute"), MONO),
    ((71,), 52, 82, ("clarinet", "solo clarinet"), MONO),
    ((65, 66), 50, 79, ("saxophone", "sax", "alto sax"), MONO),
    ((56,), 54, 81, ("trumpet", "solo trumpet", "horn"), MONO),
    ((52,), 48, 77, ("choir", "voices", "choir aahs", "singing voices"), SOFT),
    ((14,), 55, 77, ("church bells", "tubular bells", "bells"), MONO),
    ((9,), 72, 100, ("glockenspiel", "orchestra bells"), MONO),
    ((10,), 62, 93, ("music box", "toy music box"), ("melody", "arpeggio", "arpeggio")),
    ((11,), 53, 86, ("vibraphone", "vibes"), POLY),
    ((12,), 48, 84, ("marimba", "wooden marimba"), MONO),
    ((114,), 55, 84, ("steel drums", "steel pan"), MONO),
    ((104,), 48, 76, ("sitar", "indian sitar"), MONO),
    ((105,), 48, 79, ("banjo", "bluegrass banjo"), MONO),
    ((81,), 48, 84, ("synth lead", "saw lead", "synthesizer lead", "synthesizer"), MONO),
    ((88, 89), 45, 79, ("synth pad", "warm pad", "synthesizer pad"), SOFT),
    ((80,), 52, 88, ("chiptune", "8-bit", "video game music", "arcade game"), MONO),
    ((46,), 43, 88, ("harp", "concert harp"), ("arpeggio", "arpeggio", "melody", "chords")),
    ((21,), 48, 81, ("accordion", "squeezebox"), POLY),
)
INSTRUMENTS = {row[3][0]: Instrument(*row) for row in _TABLE}

STYLE_NAMES = {
    "jazz": ("jazz", "swing jazz", "jazz trio", "smooth jazz", "bebop"),
    "rock": ("rock", "rock band", "guitar rock", "hard rock", "punk"),
    "techno": ("techno", "driving techno", "techno club music", "electronic techno", "rave"),
    "house": ("house", "deep house", "house dance music", "disco house"),
    "tropical": ("tropical", "tropical dance", "caribbean", "calypso", "reggae beach"),
    "ambient": ("ambient", "ambient pad", "ambient soundscape", "atmospheric drone", "relaxing meditation"),
    "funk": ("funk", "funky groove", "funk band", "soul funk"),
    "hip hop": ("hip hop", "hip hop beat", "lo-fi hip hop", "rap beat", "trap"),
    "classical": ("classical", "classical chamber music", "baroque classical", "string quartet"),
    "folk": ("folk", "folk song", "country folk", "bluegrass", "irish folk"),
    "bossa nova": ("bossa nova", "brazilian bossa nova", "bossa", "samba"),
    "orchestral": ("orchestral", "orchestra", "cinematic orchestra", "film score", "epic symphony"),
}

EFFECT_NAMES = {
    "typing": ("typing on a keyboard", "keyboard typing", "typing", "computer keyboard"),
    "rain": ("rain", "rainfall", "falling rain"),
    "clock": ("clock", "ticking clock", "clock ticking"),
    "waves": ("waves", "ocean waves", "sea waves"),
}

DRUM_NAMES = ("drums only", "drum beat", "drums", "drum kit", "drum solo")
TEXTURES = ("melody", "chords", "arpeggio", "bass line")
MODE_WORDS = {
    "major": ("happy", "bright", "cheerful", "major", "joyful"),
    "minor": ("sad", "dark", "melancholic", "minor", "gloomy"),
}
TEMPO_WORDS = {
    "slow": ("slow", "calm", "gentle"),
    "medium": ("medium tempo", "moderate"),
    "fast": ("fast", "upbeat", "energetic"),
}

DRUMS = "drums"
FUSION = "fusion"  # of two styles: no class of its own
CLASSES = (*INSTRUMENTS, *STYLE_NAMES, DRUMS, *EFFECT_NAMES)


def tempo_of(bpm: int) -> str:
    """`slow` (< 90 bpm), `medium` or `fast` (> 125 bpm)."""
    return "slow" if bpm < 90 else "fast" if bpm > 125 else "medium"
