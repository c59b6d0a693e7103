"""Arguments, checked before the first step: errors say what would do, remarks what is likely not meant."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin

from .denoise import check_scheduler
from .loops import clip_size
from .models import Pipeline, model_name, model_settings
from .notation import notation_remarks
from .params import COLUMNS_PER_S
from .prompts import Prompt, plain_text
from .recipes import scheduler_parameters
from .values import as_list, as_scalar, check_number, check_seed, check_whole, warn

if TYPE_CHECKING:
    from .clip import Clip
    from .denoise import Callback

LONG_S, LONGEST_S = 60, 3600  # above the first there is a warning, above the second an error
LONGEST_PROMPT = 4_000  # characters

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BPM = re.compile(r"\b(\d+(?:\.\d+)?)(?=\s*bpm\b)", re.IGNORECASE)


def check_prompt(prompt: object, name: str = "prompt", *, may_be_empty: bool = True) -> str:
    """Give back a prompt as a str, and refuse what is none.

    Parameters
    ----------
    prompt : str
        What does not fit into the text encoder is cut into pieces; see `prompts.encode_prompt`.
    name : str
        What an error calls it.
    may_be_empty : bool
        An empty prompt is the unconditional model; an empty text box in a panel is likely an oversight.

    Raises
    ------
    TypeError, ValueError
        If it is no text, longer than `LONGEST_PROMPT`, or empty although it must not be.
    """
    text = as_scalar(prompt)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str such as 'solo piano, slow', not {prompt!r}")
    if not may_be_empty and not plain_text(text).strip():
        raise ValueError(f"{name} is empty: {text!r}; describe a sound, such as 'solo piano, slow'")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} '{text[:40]}...' has {len(text):,} characters: give at most {LONGEST_PROMPT:,}")
    return text


def taught_prompt(pipe: Pipeline, prompt: str) -> tuple[str, list[str]]:
    """Set the nearest tempo the model was taught, and remark on what it was not.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its settings name the words and tempi it was taught, if anybody wrote them down.
    prompt : str
        The prompt.

    Returns
    -------
    prompt : str
        Unchanged but for a tempo such as "100 bpm": riffling's clips close on the beat, which
        only some tempi do.
    remarks : list of str
        One on all unknown words with the nearest known ones, one on each unknown tempo.
    """
    settings, name = model_settings(pipe), model_name(pipe)
    remarks = _unknown_words(prompt, settings.vocabulary, name)

    def nearest(match: re.Match[str]) -> str:
        tempo = min(settings.tempi_bpm, key=lambda known: abs(known - float(match[1])))
        if tempo == float(match[1]):
            return match[1]
        remarks.append(f"{name} was not taught {match[1]} bpm: it takes the nearest, {tempo} bpm")
        return str(tempo)

    return (_BPM.sub(nearest, prompt) if settings.tempi_bpm else prompt), remarks


def is_list(values: object) -> bool:
    """Tell whether one value per clip is given."""
    return as_list(values) is not None


def one_or_list(clips: list, *given: object) -> Any:
    """Give the list where one of the arguments was a list, else the single clip in it."""
    return clips if any(is_list(values) for values in given) else clips[0]


@dataclass(frozen=True)
class Order(Prompt):
    """A prompt, checked, with the model's defaults filled in."""

    generator: torch.Generator | None = None  # instead of the seed

    def noise(self) -> torch.Generator:
        """Give the source of noise: on the CPU, so that every device gets the same."""
        return self.generator or torch.Generator("cpu").manual_seed(self.seed)

    def given(self, text: str = "text") -> dict[str, Any]:
        """Give what a recipe keeps of it: the arguments of `Prompt`; `text` is the name of the words."""
        return {text if field.name == "text" else field.name: getattr(self, field.name) for field in fields(Prompt)}


def check_order(pipe: Pipeline, prompt: Prompt, generator: object = None) -> Order:
    """Check a prompt and fill in the model's defaults."""
    if not isinstance(pipe, diffusers.StableDiffusionPipeline):
        raise TypeError(f"pipe must be a StableDiffusionPipeline, as load_pipeline() gives it, not {pipe!r}")
    check_prompt(prompt.text)
    if prompt.negative_prompt is not None:
        check_prompt(prompt.negative_prompt, "negative_prompt")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {generator!r}")
    seed = None if generator else check_seed(prompt.seed)
    guidance_scale = prompt.guidance_scale
    guidance_scale = model_settings(pipe).guidance_scale if guidance_scale is None else guidance_scale
    guidance_scale = check_number("guidance_scale", guidance_scale, 0)
    strength = check_number("strength", prompt.strength, 0, 1)
    return Order(prompt.text, seed, prompt.negative_prompt, guidance_scale, strength, generator)


def line_up(pipe: Pipeline, prompt, negative_prompt, seed, generator, guidance_scale, strength=1.0) -> list[Order]:
    """Check what is given for each clip, and repeat single values as often as the lists are long."""
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator exclude each other: give one of them")
    seed = 0 if seed is None and generator is None else seed
    given = {"prompt": prompt, "seed": seed, "negative_prompt": negative_prompt, "generator": generator}
    lists = {name: as_list(values) for name, values in given.items()}
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"lists must be equally long and not empty; their lengths: {lengths}")
    n_clips = next((length for name, length in lengths.items() if name != "negative_prompt"), 1)
    if lengths.get("negative_prompt", n_clips) != n_clips:
        raise ValueError(f"{lengths['negative_prompt']} negative prompts for one clip: give one")
    repeated = [[given[name]] * n_clips if values is None else values for name, values in lists.items()]
    return [
        check_order(pipe, Prompt(*each, guidance_scale, strength), source)
        for *each, source in zip(*repeated, strict=True)
    ]


def remark(pipe: Pipeline, orders: Sequence[Order], end_prompt: str | None = None) -> None:
    """Warn of what `remarks` finds."""
    for text in remarks(pipe, orders, end_prompt):
        warn(text)


def remarks(pipe: Pipeline, orders: Sequence[Order], end_prompt: str | None = None) -> list[str]:
    """Say, once each, what is likely not meant, but can be done."""
    found = scheduler_remarks(pipe.scheduler)
    texts = [text for order in orders for text in (order.text, order.negative_prompt) if text]
    if end_prompt:
        texts.append(end_prompt)
    found += notation_remarks(texts)
    for text in texts:
        found += taught_prompt(pipe, text)[1]
    for order in orders:
        if order.negative_prompt and order.guidance_scale <= 1:
            found.append(f"negative_prompt has no effect at guidance_scale={order.guidance_scale:g}: take more than 1")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Source:
    """The clip that others are made from."""

    clip: Clip
    mask: np.ndarray | None = None  # where they are made anew
    end_prompt: str | None = None  # what to hear at the end

    def given(self) -> dict[str, str]:
        """Give what a recipe keeps of it."""
        mask = {} if self.mask is None else {"mask_sha256": hashlib.sha256(self.mask).hexdigest()}
        end = {} if self.end_prompt is None else {"end_prompt": self.end_prompt}
        return {**mask, **end, "source_sha256": hashlib.sha256(self.clip.image.tobytes()).hexdigest()}


@dataclass(frozen=True)
class Settings:
    """What all clips of a call have in common."""

    num_inference_steps: int
    n_columns: int  # of the picture
    loop: bool
    batch_size: int
    source: Source | None = None
    callback: Callback | None = None

    def given(self) -> dict[str, Any]:
        """Give what a recipe keeps of it."""
        given = {"num_inference_steps": self.num_inference_steps, "duration_s": self.n_columns / COLUMNS_PER_S}
        return {**given, "loop": self.loop, **(self.source.given() if self.source else {})}


def check_settings(pipe: Pipeline, steps, duration_s, loop, batch_size, source=None, callback=None) -> Settings:
    """Check what all clips have in common. Those made from another clip are as long as that one.

    ``loop=None``: as that clip, or else the model's own way, where the length allows it.
    """
    steps = model_settings(pipe).num_inference_steps if steps is None else steps
    most = pipe.scheduler.config.get("num_train_timesteps", 1_000)
    steps = check_whole("num_inference_steps", steps, 1, most)
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    clip_width = clip_size(pipe)[1] * pipe.vae_scale_factor
    if duration_s is None:
        duration_s = source.clip.duration_s if source else clip_width / COLUMNS_PER_S
    duration_s = check_number("duration_s", duration_s, 1 / COLUMNS_PER_S, LONGEST_S)
    loop = as_scalar(loop)
    if not isinstance(loop, bool | None):
        raise TypeError(f"loop must be True, False or None, not {loop!r}")
    n_columns = max(1, round(duration_s * COLUMNS_PER_S))
    is_whole = n_columns % clip_width == 0
    if loop and not is_whole:
        clip_s, near = clip_width / COLUMNS_PER_S, max(1, round(n_columns / clip_width))
        advice = f"take {near * clip_s:g}, or loop=False"
        raise ValueError(f"a loop takes a whole number of clips of {clip_s:g} s, not {duration_s:g} s: {advice}")
    if duration_s > LONG_S and not source:
        warn(f"{duration_s:g} s are more than {LONG_S} s: this will take a while")
    wish = source.clip.loop if source else model_settings(pipe).loop
    loop = is_whole and wish if loop is None else loop
    check_scheduler(pipe, steps, from_clip=source is not None)
    return Settings(steps, n_columns, loop, batch_size, source, callback)


def scheduler_remarks(scheduler: SchedulerMixin) -> list[str]:
    """Remark on a scheduler that adds noise in another way than the model was trained with."""
    if not hasattr(scheduler, "alphas_cumprod"):
        better = "take DDIM, Euler, DPM++ 2M or UniPC"
        return [f"{type(scheduler).__name__} is made for models of another kind than Stable Diffusion: {better}"]
    wanted = scheduler.config.get("rescale_betas_zero_snr")  # diffusers hands on what a scheduler ignores
    if not wanted or "rescale_betas_zero_snr" in scheduler_parameters(type(scheduler)):
        return []
    better = "take DDIM, Euler, DPM++ 2M or UniPC"
    return [f"{type(scheduler).__name__} ignores this model's noise schedule (rescale_betas_zero_snr): {better}"]


def _unknown_words(prompt: str, vocabulary: tuple[str, ...], model: str) -> list[str]:
    known = {word for entry in vocabulary for word in _WORD.findall(entry.lower())} | {"bpm"}
    unknown = [word for word in dict.fromkeys(_WORD.findall(plain_text(prompt).lower())) if word not in known]
    if not vocabulary or not unknown:
        return []
    nearest = {word: difflib.get_close_matches(word, sorted(known)) for word in unknown}
    named = [f"{word} (nearest: {', '.join(near)})" if near else word for word, near in nearest.items()]
    return [f"{model} was not taught these words, and guesses: {'; '.join(named)}"]
