"""The words of a model, sorted by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What riffling was trained on: the usual name of a thing, then other names. riffusion_lab/training/vocabulary.py has
# the same words; widgets must not import it, so a test compares both.
KINDS = {
    "styles": [
        "jazz, swing jazz, jazz trio, smooth jazz, bebop", "rock, rock band, guitar rock, hard rock, punk",
        "techno, driving techno, techno club music, electronic techno, rave",
        "house, deep house, house dance music, disco house",
        "tropical, tropical dance, caribbean, calypso, reggae beach",
        "ambient, ambient pad, ambient soundscape, atmospheric drone, relaxing meditation",
        "funk, funky groove, funk band, soul funk", "hip hop, hip hop beat, lo-fi hip hop, rap beat, trap",
        "classical, classical chamber music, baroque classical, string quartet",
        "folk, folk song, country folk, bluegrass, irish folk", "bossa nova, brazilian bossa nova, bossa, samba",
        "orchestral, orchestra, cinematic orchestra, film score, epic symphony",
    ],
    "drums": [
        "drums only, drum beat, drums, drum kit, drum solo",
    ],
    "tempo": [
        "slow", "calm", "gentle", "medium tempo", "moderate", "fast", "upbeat", "energetic",
    ],
    "mood": [
        "happy", "bright", "cheerful", "major", "joyful", "sad", "dark", "melancholic", "minor", "gloomy",
    ],
    "texture": [
        "melody", "chords", "arpeggio", "bass line",
    ],
    "sounds": [
        "typing on a keyboard, keyboard typing, typing, computer keyboard", "rain, rainfall, falling rain",
        "clock, ticking clock, clock ticking", "waves, ocean waves, sea waves",
    ],
    "instruments": [
        "piano, grand piano, acoustic piano, pianoforte", "electric piano, rhodes, e-piano, wurlitzer",
        "organ, hammond organ, drawbar organ", "church organ, pipe organ", "harpsichord, cembalo, clavecin",
        "classical guitar, nylon guitar, spanish guitar", "acoustic guitar, steel string guitar",
        "clean electric guitar, electric guitar, clean guitar",
        "distorted guitar, distortion guitar, overdriven guitar, heavy guitar", "bass, electric bass, bass guitar",
        "double bass, upright bass, acoustic bass", "strings, string ensemble, string section, string orchestra",
        "violin, fiddle, solo violin", "cello, solo cello", "flute, solo flute", "clarinet, solo clarinet",
        "saxophone, sax, alto sax", "trumpet, solo trumpet, horn", "choir, voices, choir aahs, singing voices",
        "church bells, tubular bells, bells", "glockenspiel, orchestra bells", "music box, toy music box",
        "vibraphone, vibes", "marimba, wooden marimba", "steel drums, steel pan", "sitar, indian sitar",
        "banjo, bluegrass banjo", "synth lead, saw lead, synthesizer lead, synthesizer",
        "synth pad, warm pad, synthesizer pad", "chiptune, 8-bit, video game music, arcade game",
        "harp, concert harp", "accordion, squeezebox",
    ],
}  # fmt: skip
# Words that only hold a sentence together
FILLERS = {
    "a", "an", "and", "at", "bpm", "can", "for", "hear", "i", "in", "is", "it", "like", "made", "music", "no",
    "of", "on", "only", "or", "piece", "play", "played", "some", "sound", "the", "this", "to", "want", "with",
}  # fmt: skip
OTHERS = "more words"
_WORD = re.compile(r"[\w'-]+")


def word_groups(words: Iterable[str], tempi_bpm: Iterable[int] = ()) -> dict[str, tuple[list[str], list[str]]]:
    """Sort the words of a model by kind.

    Parameters
    ----------
    words : iterable of str
        Single words or whole names, as in a model's settings.
    tempi_bpm : iterable of int
        Tempi it was trained on, in beats per minute.

    Returns
    -------
    dict of str to two lists of str
        For each kind, the usual names and other names for the same things, such as "church bells" and "tubular bells";
        only names of which the model knows every word. The last kind holds the words that are in none of these names.
        Kinds without words are left out.
    """
    words = list(words)
    known = {part for entry in words for part in _parts(entry)}
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for kind, things in KINDS.items():
        names = [[name for name in thing.split(", ") if known.issuperset(_parts(name))] for thing in things]
        names = [thing for thing in names if thing]
        groups[kind] = [thing[0] for thing in names], [name for thing in names for name in thing[1:]]
    groups["tempo"][0].extend(f"{bpm} bpm" for bpm in tempi_bpm)
    used = {part for pair in groups.values() for names in pair for name in names for part in _parts(name)} | FILLERS
    groups[OTHERS] = [entry for entry in words if not used.issuperset(_parts(entry))], []
    return {kind: pair for kind, pair in groups.items() if any(pair)}


def _parts(name: str) -> list[str]:
    return _WORD.findall(name.lower())
