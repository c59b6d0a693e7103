"""From the facts about a clip to words: short, long, and with synonyms."""

from __future__ import annotations

import numpy as np

from .vocabulary import (
    DRUM_NAMES,
    EFFECT_NAMES,
    FUSION,
    INSTRUMENTS,
    MODE_WORDS,
    STYLE_NAMES,
    TEMPO_WORDS,
    tempo_of,
)


def _name(facts: dict, pick) -> str:
    label = facts["label"]
    if facts["kind"] == "solo":
        return label if pick(range(2)) else pick(INSTRUMENTS[label].names)
    if facts["kind"] == "style":
        return label if pick(range(2)) else pick(STYLE_NAMES[label])
    if facts["kind"] == "effect":
        return pick(EFFECT_NAMES[label])
    if facts["kind"] == FUSION:
        first, second = (pick(STYLE_NAMES[style]) for style in facts["styles"])
        pairs = (f"{first} {second}", f"{second} {first}", f"{first} and {second}", f"{first}, {second}")
        return pick((*pairs, f"{second} with {first} drums"))
    drums, style = pick(DRUM_NAMES), facts["style"]
    return pick((drums, f"{drums}, {style}", f"{style} {drums}" if drums != "drums only" else f"{style} drums"))


def _details(facts: dict, pick) -> list[str]:
    details = []
    if facts.get("bpm"):
        times = 3 if facts.get("drums") else 1  # a beat shows its tempo best
        details.append(pick((pick(TEMPO_WORDS[tempo_of(facts["bpm"])]), *[f"{facts['bpm']} bpm"] * times)))
    if facts.get("texture"):
        details.append(facts["texture"])
    if facts.get("register") in ("high", "low"):
        details.append(f"{facts['register']} notes")
    if facts.get("lead"):
        details.append(pick((f"with {facts['lead']}", f"{facts['lead']} {pick(('lead', 'solo', 'melody'))}")))
    elif facts.get("with"):
        details.append(f"with {facts['with']}")
    if facts["kind"] in ("style", FUSION):
        details.append("with drums" if facts["drums"] else "no drums")
    if facts["kind"] == "solo":
        details.append("solo")
    if facts.get("metre") == 3:
        details.append("waltz")
    return details


def _said(words: str, facts: dict, pick) -> str:
    """Words as they are, or now and then as a sentence."""
    if pick(range(5)):
        return words
    of = "the sound of" if facts["kind"] == "effect" else pick(("a piece of", "some", "a loop of", "the sound of"))
    return pick((f"{of} {words}", f"play {words}", f"play {of} {words}", f"{words} music", f"I want to hear {words}"))


def caption(facts: dict, rng: np.random.Generator, *, full: bool = False) -> str:
    """One of the many ways to say what a clip is.

    Parameters
    ----------
    facts : dict
        As `Composer` writes them: kind, label, and where they apply mode, bpm, texture, register, lead, drums, metre.
    rng : np.random.Generator
    full : bool
        Tell all that is known, save now and then the mode.
    """

    def pick(options):
        return options[int(rng.integers(len(options)))]

    words = _name(facts, pick)
    if rng.random() < 0.25 and not full:
        return _said(words, facts, pick)
    if facts.get("mode") and rng.random() < 0.5:
        words = f"{pick(MODE_WORDS[facts['mode']])} {words}"
    details = _details(facts, pick)
    rng.shuffle(details)
    for detail in details if full else details[: int(rng.integers(0, 4))]:
        words += (
            f" {detail}"
            if detail.startswith("with") or detail in ("melody", "chords", "arpeggio", "solo")
            else f", {detail}"
        )
    return _said(words, facts, pick)
