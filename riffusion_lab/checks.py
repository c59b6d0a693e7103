"""Arguments, checked before the first step: errors say what would do, remarks what is likely not meant."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin

from .loops import clip_columns
from .models import model_name, model_settings
from .params import SpectrogramParams
from .recipes import scheduler_parameters

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PARAMS = SpectrogramParams()  # of the pictures that the models were trained on
COLUMNS_PER_S = PARAMS.sample_rate / PARAMS.hop_length
LONGEST_S = 3600

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BPM = re.compile(r"\b(\d+(?:\.\d+)?)(?=\s*bpm\b)", re.IGNORECASE)


def check_prompt(
    pipe: StableDiffusionPipeline, prompt: str, name: str = "prompt", *, may_be_empty: bool = False
) -> None:
    """Refuse a prompt that the model cannot read whole.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its tokenizer and text encoder set the limit: 75 tokens, as a rule.
    prompt : str
        The prompt.
    name : str
        What an error calls it.
    may_be_empty : bool
        A negative prompt may.

    Raises
    ------
    TypeError, ValueError
        If it is no text; if it is empty, or longer than the model reads.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be a str such as 'solo piano, slow', not {prompt!r}")
    if not prompt.strip() and not may_be_empty:
        raise ValueError(f"{name} is empty: {prompt!r}; describe a sound, such as 'solo piano, slow'")
    # two tokens mark start and end; CLIP would cut off the rest without an error
    limit = min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings) - 2
    n_tokens = len(pipe.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
    if n_tokens > limit:
        raise ValueError(f"{name} '{prompt[:40]}...' has {n_tokens} tokens, the model reads {limit}: shorten it")


def taught_prompt(pipe: StableDiffusionPipeline, prompt: str) -> tuple[str, list[str]]:
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
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


@dataclass(frozen=True)
class Order:
    """What one clip is to be made from."""

    prompt: str
    negative_prompt: str | None
    seed: int | None
    generator: torch.Generator | None  # instead of a seed

    def noise(self) -> torch.Generator:
        """Give the source of noise: on the CPU, so that every device gets the same."""
        return self.generator or torch.Generator("cpu").manual_seed(self.seed)


def line_up(pipe: StableDiffusionPipeline, prompt: Any, negative: Any, seed: Any, generator: Any) -> list[Order]:
    """Check what is given for each clip, and repeat single values as often as the lists are long."""
    given = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "generator": generator}
    lengths = {name: len(values) for name, values in given.items() if is_list(values)}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"lists must be equally long and not empty; their lengths: {lengths}")
    n_clips = next((length for name, length in lengths.items() if name != "negative_prompt"), 1)
    if lengths.get("negative_prompt", n_clips) != n_clips:
        raise ValueError(f"{lengths['negative_prompt']} negative prompts for one clip: give one")
    repeated = [values if is_list(values) else [values] * n_clips for values in given.values()]
    return [_check_order(pipe, *each) for each in zip(*repeated, strict=True)]


def _check_order(pipe: StableDiffusionPipeline, prompt: Any, negative: Any, seed: Any, generator: Any) -> Order:
    check_prompt(pipe, prompt)
    if negative is not None:
        check_prompt(pipe, negative, "negative_prompt", may_be_empty=True)
    if generator is None:
        seed = check_whole("seed", seed, 0, 2**64 - 1)
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {generator!r}")
    return Order(prompt, negative, seed, generator)


def check_whole(name: str, value: object, least: float, most: float) -> int:
    """Give back a whole number that lies between the two limits."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= operator.index(value) <= most:
        raise ValueError(f"{name} must be between {least} and {most}, not {value!r}")
    return operator.index(value)


def check_number(name: str, value: object) -> float:
    """Give back a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return float(value)


def check_steps(pipe: StableDiffusionPipeline, steps: int | None) -> int:
    """Give the number of denoising steps; None: the model's own."""
    steps = model_settings(pipe).num_inference_steps if steps is None else steps
    return check_whole("num_inference_steps", steps, 1, pipe.scheduler.config.num_train_timesteps)


def check_guidance(pipe: StableDiffusionPipeline, guidance: float | None) -> float:
    """Give the guidance scale; None: the model's own."""
    guidance = check_number("guidance_scale", model_settings(pipe).guidance_scale if guidance is None else guidance)
    if guidance < 0:
        raise ValueError(f"guidance_scale must be 0 or more, not {guidance}; 1 is none, 5 to 9 are usual")
    return guidance


def check_length(pipe: StableDiffusionPipeline, duration_s: float | None, loop: bool | None) -> tuple[int, bool]:
    """Give the clip's columns, and whether it is to close into a loop; None: the model's own way."""
    clip_width = clip_columns(pipe) * pipe.vae_scale_factor
    wanted_s = clip_width / COLUMNS_PER_S if duration_s is None else check_number("duration_s", duration_s)
    if not 0 < wanted_s <= LONGEST_S:
        raise ValueError(f"duration_s must be above 0 and at most {LONGEST_S} (an hour), not {duration_s!r}")
    if not isinstance(loop, bool | None):
        raise TypeError(f"loop must be True, False or None, not {loop!r}")
    n_columns = max(1, round(wanted_s * COLUMNS_PER_S))
    is_whole = n_columns % clip_width == 0
    if loop and not is_whole:
        clip_s, near = clip_width / COLUMNS_PER_S, max(1, round(n_columns / clip_width))
        raise ValueError(
            f"a loop takes a whole number of clips of {clip_s:g} s, not duration_s={wanted_s:g}: "
            f"take {near * clip_s:g}, or loop=False"
        )
    return n_columns, (is_whole and model_settings(pipe).loop if loop is None else loop)


def scheduler_remarks(scheduler: SchedulerMixin) -> list[str]:
    """Remark on a scheduler that ignores how a model with zero terminal SNR adds its noise."""
    wanted = scheduler.config.get("rescale_betas_zero_snr")  # diffusers hands on what a scheduler ignores
    if not wanted or "rescale_betas_zero_snr" in scheduler_parameters(scheduler):
        return []
    better = "take DDIM, Euler, DPM++ 2M or UniPC"
    return [f"{type(scheduler).__name__} ignores this model's noise schedule (rescale_betas_zero_snr): {better}"]


def _unknown_words(prompt: str, vocabulary: tuple[str, ...], model: str) -> list[str]:
    known = {word for entry in vocabulary for word in _WORD.findall(entry.lower())} | {"bpm"}
    unknown = [word for word in dict.fromkeys(_WORD.findall(prompt.lower())) if word not in known]
    if not vocabulary or not unknown:
        return []
    nearest = {word: difflib.get_close_matches(word, sorted(known)) for word in unknown}
    named = [f"{word} (nearest: {', '.join(near)})" if near else word for word, near in nearest.items()]
    return [f"{model} was not taught these words, and guesses: {'; '.join(named)}"]
