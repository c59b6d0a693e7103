"""Arguments, checked before the first step: errors say what would do, remarks what is likely not meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import SchedulerMixin

from .loops import clip_columns
from .models import model_name, model_settings
from .params import SpectrogramParams
from .prompts import plain_text
from .recipes import scheduler_parameters
from .values import check_number, check_whole

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PARAMS = SpectrogramParams()  # of the pictures that the models were trained on
COLUMNS_PER_S = PARAMS.sample_rate / PARAMS.hop_length
LONGEST_S = 3600
LONGEST_PROMPT = 4_000  # characters

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BPM = re.compile(r"\b(\d+(?:\.\d+)?)(?=\s*bpm\b)", re.IGNORECASE)


def check_pipe(pipe: object) -> None:
    """Refuse what is no pipeline."""
    if not isinstance(pipe, diffusers.StableDiffusionPipeline):
        raise TypeError(f"pipe must be a StableDiffusionPipeline, as load_pipeline() gives it, not {pipe!r}")


def check_prompt(prompt: object, name: str = "prompt", *, may_be_empty: bool = False) -> None:
    """Refuse what is no prompt.

    Parameters
    ----------
    prompt : str
        What does not fit into the text encoder is cut into pieces; see `prompts.encode_prompt`.
    name : str
        What an error calls it.
    may_be_empty : bool
        A negative prompt may.

    Raises
    ------
    TypeError, ValueError
        If it is no text, empty, or no prompt any more but a book.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be a str such as 'solo piano, slow', not {prompt!r}")
    if not plain_text(prompt).strip() and not may_be_empty:
        raise ValueError(f"{name} is empty: {prompt!r}; describe a sound, such as 'solo piano, slow'")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"{name} '{prompt[:40]}...' has {len(prompt):,} characters: give at most {LONGEST_PROMPT:,}")


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


def one_or_list(clips: list, *given: object) -> Any:
    """Give the list where one of the arguments was a list, else the single clip in it."""
    return clips if any(is_list(values) for values in given) else clips[0]


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

    def given(self) -> dict[str, Any]:
        """Give what a recipe keeps of it."""
        seed = self.seed if self.seed is None else int(self.seed)
        return {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "seed": seed}


def line_up(prompt: Any, negative: Any, seed: Any, generator: Any) -> list[Order]:
    """Check what is given for each clip, and repeat single values as often as the lists are long."""
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator exclude each other: give one of them")
    seed = 0 if seed is None and generator is None else seed
    given = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "generator": generator}
    lengths = {name: len(values) for name, values in given.items() if is_list(values)}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"lists must be equally long and not empty; their lengths: {lengths}")
    n_clips = next((length for name, length in lengths.items() if name != "negative_prompt"), 1)
    if lengths.get("negative_prompt", n_clips) != n_clips:
        raise ValueError(f"{lengths['negative_prompt']} negative prompts for one clip: give one")
    repeated = [values if is_list(values) else [values] * n_clips for values in given.values()]
    return [_check_order(*each) for each in zip(*repeated, strict=True)]


def _check_order(prompt: Any, negative: Any, seed: Any, generator: Any) -> Order:
    check_prompt(prompt)
    if negative is not None:
        check_prompt(negative, "negative_prompt", may_be_empty=True)
    if generator is None:
        seed = check_whole("seed", seed, 0, 2**64 - 1)
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {generator!r}")
    return Order(prompt, negative, seed, generator)


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


def check_strength(strength: object) -> float:
    """Give back a strength, from 0 (the clip as it is) to 1 (nothing of it is left)."""
    if not 0 <= check_number("strength", strength) <= 1:
        raise ValueError(f"strength must be between 0 (the clip as it is) and 1 (nothing of it left), not {strength!r}")
    return float(strength)


def remarks(pipe: StableDiffusionPipeline, orders: list[Order], guidance_scale: float) -> Iterator[str]:
    """Tell what is likely not meant, but can be done."""
    for order in orders:
        for text in (order.prompt, order.negative_prompt or ""):
            yield from taught_prompt(pipe, text)[1]
        if order.negative_prompt and guidance_scale <= 1:
            yield f"negative_prompt has no effect at guidance_scale={guidance_scale:g}: take more than 1"
    yield from scheduler_remarks(pipe.scheduler)


def check_length(
    pipe: StableDiffusionPipeline, duration_s: float | None, loop: bool | None, *, loop_by_default: bool | None = None
) -> tuple[int, bool]:
    """Give the clip's columns, and whether it is to close into a loop.

    ``loop=None``: as `loop_by_default` (default: the model's own way), where the length allows it.
    """
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
    wish = model_settings(pipe).loop if loop_by_default is None else loop_by_default
    return n_columns, (is_whole and wish if loop is None else loop)


def scheduler_remarks(scheduler: SchedulerMixin) -> list[str]:
    """Remark on a scheduler that ignores how a model with zero terminal SNR adds its noise."""
    wanted = scheduler.config.get("rescale_betas_zero_snr")  # diffusers hands on what a scheduler ignores
    if not wanted or "rescale_betas_zero_snr" in scheduler_parameters(scheduler):
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
