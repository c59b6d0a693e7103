"""Notation of other tools, which prompts are not read for here: what it means there, and what does the same here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_END = r"(?=[\s,.;)]|$)"


@dataclass(frozen=True)
class Notation:
    """One notation: how it is recognized, what it means elsewhere, and what does the same here."""

    pattern: re.Pattern[str]
    meaning: str
    advice: str
    is_word: bool = False  # a word in capitals: it means something only where other words are not in capitals


# In this order: what one of them recognizes, the later ones do not see.
NOTATIONS = (
    Notation(
        re.compile(r"<(?:lora|lyco|lycoris|locon|hypernet):[^<>]*>", re.IGNORECASE),
        "loads a LoRA in AUTOMATIC1111's web UI",
        "give the LoRA to load_pipeline(lora=...)",
    ),
    Notation(  # [from:to:when] with any number; [to:when] with a fraction: "[tempo: 120]" is none
        re.compile(rf"(?<!\\)\[(?:[^\[\]]*:[^\[\]:]*:\s*{_NUMBER}|[^\[\]:]+:\s*0?\.\d+)\s*\]"),
        "changes the words after some of the steps in AUTOMATIC1111's web UI",
        "interpolate() walks from one prompt to another, end_prompt= of audio_to_audio() changes it along a clip, "
        "and (words:0.5) is a weight",
    ),
    Notation(
        re.compile(r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]"),
        "alternates between words from step to step in AUTOMATIC1111's web UI",
        "name both, or let interpolate() make clips between the two prompts",
    ),
    Notation(
        re.compile(r"\{[^{}]*\|[^{}]*\}|(?<!\w)__\w{1,60}?__(?!\w)"),
        "is a wildcard of Dynamic Prompts, which picks one of several words",
        "give a list of prompts",
    ),
    Notation(
        re.compile(r"\{[^{}]*\}"),
        "makes words stronger in NovelAI",
        "write (words), or (words:1.3)",
    ),
    Notation(
        re.compile(rf"(?<!\\)(?:\([^()]*|\)):\s*-\s*{_NUMBER}\s*\)"),
        "is a negative weight in other tools",
        "name what you do not want to hear in negative_prompt=, or weaken it with a weight below 1, as in (words:0.5)",
    ),
    Notation(
        re.compile(r"(?<!\S)(?:--|—)no\b(?:\s+[^\s-]\S*)?", re.IGNORECASE),
        "says in Midjourney what is not wanted",
        "name it in negative_prompt=, for in the prompt these words ask for it",
    ),
    Notation(
        re.compile(r"(?<!\S)--[a-z][\w-]*(?:\s+[\d.:]+)?", re.IGNORECASE),
        "is an option of Midjourney",
        "give options as arguments: seed=, duration_s=, num_inference_steps=, guidance_scale=",
    ),
    Notation(
        re.compile(rf"(?<![\w)])[\w)]+::(?:\s*-?{_NUMBER})?"),
        "weights a part of the prompt in Midjourney",
        "write (words:1.3), and name what you do not want to hear in negative_prompt=",
    ),
    Notation(  # not "C++" or "F--", not "jazz--slow", not "jazz-->slow"
        re.compile(
            rf"\b(?![A-Z][+-])[^\W_][\w'’]*(?:\+\+|--)[+-]*(?![\w>+-])|(?:(?:\([^()]*)?\)|\"[^\"]*\")(?:\+|--)[+-]*{_END}"
        ),
        "makes words stronger (+) or weaker (-) in Compel and InvokeAI",
        "write (words:1.3) or (words:0.7)",
    ),
    Notation(
        re.compile(r"(?<=\S)\s+AND\s+(?=\S)"),
        "combines the predictions for two prompts in AUTOMATIC1111's web UI",
        "interpolate() makes clips between two prompts",
        is_word=True,
    ),
    Notation(
        re.compile(r"(?<!\S)BREAK(?![^\s,])"),
        "begins a new piece of 75 tokens in AUTOMATIC1111's web UI",
        "leave it out: long prompts are cut into pieces that fit",
        is_word=True,
    ),
)


def notation_remarks(texts: Iterable[str]) -> list[str]:
    """Remark on notation of other tools in prompts.

    Parameters
    ----------
    texts : iterable of str
        Prompts and negative prompts of one call.

    Returns
    -------
    list of str
        At most one remark on each of `NOTATIONS`, with the first place where it was found.
    """
    found: dict[Notation, str] = {}
    for text in texts:
        is_in_capitals = not any(letter.isalpha() and not letter.isupper() for letter in text)
        for notation in NOTATIONS:
            if notation.is_word and is_in_capitals:
                continue
            if match := notation.pattern.search(text):
                found.setdefault(notation, match[0].strip())
                text = notation.pattern.sub(" , ", text)
    return [
        f"{place!r} {notation.meaning}, but is read as plain words here: {notation.advice}"
        for notation, place in found.items()
    ]
