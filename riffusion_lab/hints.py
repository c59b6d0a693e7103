"""Hints on what is allowed but likely not meant: unknown words, tempi, schedulers, notation of other tools."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from diffusers import SchedulerMixin

from .models import Pipeline, missing_few_step_loras, model_name, model_settings
from .prompts import plain_text
from .recipes import scheduler_parameters

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BPM = re.compile(r"\b(\d+(?:\.\d+)?)(?=\s*bpm\b)", re.IGNORECASE)

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_END = r"(?=[\s,.;)]|$)"


@dataclass(frozen=True)
class Notation:
    """A notation of another tool: its pattern, its meaning there, and what to do here instead."""

    pattern: re.Pattern[str]
    meaning: str
    advice: str
    is_word: bool = False  # a word in capitals: ignored in prompts that are all in capitals


# In this order: what one of them matches, the later ones do not see.
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
        "name it in negative_prompt=, since in the prompt these words ask for it",
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


def notation_hints(texts: Iterable[str]) -> list[str]:
    """Hints on notation of other tools in prompts.

    Parameters
    ----------
    texts : iterable of str
        Prompts and negative prompts of one call.

    Returns
    -------
    list of str
        At most one hint per notation of `NOTATIONS`, with the first place where it was found.
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


def scheduler_hints(scheduler: SchedulerMixin) -> list[str]:
    """Hint on a scheduler that adds noise in another way than the model was trained with."""
    name = type(scheduler).__name__
    advice = "take DDIM, Euler, DPM++ 2M or UniPC"
    if not hasattr(scheduler, "alphas_cumprod"):
        return [f"{name} is made for models of another kind than Stable Diffusion: {advice}"]
    # diffusers hands settings on from one scheduler to the next, also those that a scheduler ignores
    is_wanted = scheduler.config.get("rescale_betas_zero_snr")
    is_ignored = "rescale_betas_zero_snr" not in scheduler_parameters(type(scheduler))
    if is_wanted and is_ignored:
        return [f"{name} ignores this model's noise schedule (rescale_betas_zero_snr): {advice}"]
    return []


def few_step_hints(pipe: Pipeline) -> list[str]:
    """Hint on scheduler and settings for a LoRA of few steps that was removed since the model was loaded."""
    missing = missing_few_step_loras(pipe)
    if not missing:
        return []
    settings = model_settings(pipe)
    defaults = f"{settings.num_inference_steps} steps and guidance {settings.guidance_scale:g}"
    return [
        f"the LoRA {', '.join(missing)} is not active, but the model still has its scheduler and its defaults "
        f"({defaults}): load the model again without it"
    ]


def vocabulary_hints(pipe: Pipeline, prompt: str) -> list[str]:
    """Hint on the words of a prompt that the model was not trained on, with the nearest known words.

    Empty if the model's vocabulary is not known.
    """
    vocabulary = model_settings(pipe).vocabulary
    if not vocabulary:
        return []
    known = {word for entry in vocabulary for word in _WORD.findall(entry.lower())} | {"bpm"}
    words = dict.fromkeys(_WORD.findall(plain_text(prompt).lower()))
    unknown = [word for word in words if word not in known]
    if not unknown:
        return []
    named = []
    for word in unknown:
        nearest = difflib.get_close_matches(word, sorted(known))
        named.append(f"{word} (nearest: {', '.join(nearest)})" if nearest else word)
    return [f"{model_name(pipe)} was not taught these words, and guesses: {'; '.join(named)}"]


def tempo_hints(pipe: Pipeline, prompt: str) -> list[str]:
    """Hint on tempi that `snap_tempo` changes."""
    hints = []
    for match in _BPM.finditer(prompt):
        tempo = _nearest_tempo(pipe, match[1])
        if float(tempo) != float(match[1]):
            hints.append(f"{model_name(pipe)} was not taught {match[1]} bpm: it takes the nearest, {tempo} bpm")
    return hints


def snap_tempo(pipe: Pipeline, prompt: str) -> str:
    """Replace each tempo of a prompt, such as "100 bpm", by the nearest one that the model was trained on.

    riffling's clips close on the beat, which only some tempi do. A model without a list of tempi keeps the prompt.
    """
    return _BPM.sub(lambda match: _nearest_tempo(pipe, match[1]), prompt)


def named_tempi(pipe: Pipeline, prompt: str) -> list[float]:
    """Tempi that a prompt names, in bpm, after `snap_tempo`."""
    return [float(bpm) for bpm in _BPM.findall(snap_tempo(pipe, prompt))]


def _nearest_tempo(pipe: Pipeline, bpm: str) -> str:
    """The nearest tempo that the model knows; the same text where it is known, or no tempi are."""
    tempi_bpm = model_settings(pipe).tempi_bpm
    if not tempi_bpm:
        return bpm
    nearest = min(tempi_bpm, key=lambda tempo: abs(tempo - float(bpm)))
    return bpm if nearest == float(bpm) else str(nearest)
