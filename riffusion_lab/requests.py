"""What a call asks for, checked before the first step: points (prompts with their noise) and options."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

import diffusers
import numpy as np
import torch

from .blending import weighted_mean
from .clip import Clip
from .hints import few_step_hints, notation_hints, scheduler_hints, tempo_hints, vocabulary_hints
from .latents import latent_size
from .models import Pipeline, model_settings
from .params import COLUMNS_PER_S, PARAMS
from .prompts import Prompt, check_prompt
from .sampling import Callback, check_scheduler
from .values import as_list, as_scalar, check_number, check_seed, check_whole, warn

LONG_S, LONGEST_S = 60, 3600  # above the first there is a warning, above the second an error
NO_WORDS = "(no words)"  # label of an empty prompt
SEED_CLIP_STRENGTH = 0.75  # of prompts without a strength, where there is a seed clip: the original's


@dataclass(frozen=True)
class Point:
    """Where a clip lies among prompts and noises: at one prompt, or at a weighted mix of several.

    prompts : tuple of Prompt
    weights : tuple of float
        One per prompt, in [0, 1]; they add up to 1. On a walk between two prompts they are (1 - alpha, alpha).
    generator : torch.Generator, optional
        Draws the noise instead of the seed; only for a single prompt.
    """

    prompts: tuple[Prompt, ...]
    weights: tuple[float, ...] = (1.0,)
    generator: torch.Generator | None = None

    @classmethod
    def between(cls, start: Prompt, end: Prompt, alpha: float) -> Point:
        """Point on the walk between two prompts: at `alpha` 0 lies the first, at 1 the second."""
        return cls(prompts=(start, end), weights=(1 - alpha, alpha))

    @property
    def start(self) -> Prompt:
        """The first prompt."""
        return self.prompts[0]

    @property
    def end(self) -> Prompt:
        """The last prompt."""
        return self.prompts[-1]

    @property
    def alpha(self) -> float:
        """Weight of the last prompt."""
        return self.weights[-1]

    @property
    def nearest(self) -> Prompt:
        """The prompt that is heard most; of equal ones the last."""
        heaviest = max(range(len(self.prompts)), key=lambda i: (self.weights[i], i))
        return self.prompts[heaviest]

    @property
    def changes_only_seed(self) -> bool:
        """Whether the prompts differ in their seeds at most."""
        return len({replace(prompt, seed=0) for prompt in self.prompts}) == 1

    @property
    def label(self) -> str:
        """What is heard, in words."""
        names = {prompt: prompt.text.strip() or NO_WORDS for prompt in self.prompts}
        if len(set(names.values())) == 1 or max(self.weights) == 1:
            return names[self.nearest]
        if len(self.prompts) == 2:
            return f"{names[self.start]} → {names[self.end]} ({self.alpha:.0%})"
        weighted = zip(self.prompts, self.weights, strict=True)
        return " + ".join(f"{names[prompt]} ({weight:.0%})" for prompt, weight in weighted if weight > 0)

    @property
    def guidance_scale(self) -> float:
        """Weighted mean of the prompts' guidance scales, which must be known (`check_point`)."""
        return weighted_mean([_known(prompt.guidance_scale) for prompt in self.prompts], self.weights)

    @property
    def strength(self) -> float:
        """Weighted mean of the prompts' strengths, which must be known (`check_point`)."""
        return weighted_mean([_known(prompt.strength) for prompt in self.prompts], self.weights)

    def to_recipe(self) -> dict[str, Any]:
        """Arguments that make the same point again; fits into JSON.

        Of a single prompt those of `text_to_audio`, of two those of `interpolate`.
        """
        if len(self.prompts) == 1:
            facts = asdict(self.prompts[0])
            return {"prompt": facts.pop("text"), **facts}
        if len(self.prompts) == 2:
            return {"start": asdict(self.prompts[0]), "end": asdict(self.prompts[1]), "alpha": self.alpha}
        return {"prompts": [asdict(prompt) for prompt in self.prompts], "weights": list(self.weights)}


def _known(setting: float | None) -> float:
    if setting is None:
        raise ValueError("a prompt has no guidance scale or strength yet: call check_point first")
    return setting


class CommonOptions(TypedDict, total=False):
    """Keyword arguments that all generating functions have; for type checkers."""

    num_inference_steps: int | None
    guidance_scale: float | None
    loop: bool | None
    batch_size: int
    callback_on_step_end: Callback | None


@dataclass(frozen=True, eq=False)
class Options:
    """Settings shared by all clips of a call.

    num_inference_steps : int
    n_columns : int
        Width of the picture.
    loop : bool
    batch_size : int
    source : Clip, optional
        The clip that others are generated from.
    mask : np.ndarray [shape=(512, columns), bool], optional
        Where `source` is inpainted.
    end_prompt : str, optional
        What to hear at the end of `source`.
    callback : callable, optional
        As diffusers' ``callback_on_step_end``.
    """

    num_inference_steps: int
    n_columns: int
    loop: bool
    batch_size: int
    source: Clip | None = None
    mask: np.ndarray | None = None
    end_prompt: str | None = None
    callback: Callback | None = None

    def to_recipe(self) -> dict[str, Any]:
        """Arguments for a recipe; of clips and masks their hashes. Fits into JSON."""
        facts: dict[str, Any] = {
            "num_inference_steps": self.num_inference_steps,
            "duration_s": self.n_columns / COLUMNS_PER_S,
            "loop": self.loop,
        }
        if self.mask is not None:
            facts["mask_sha256"] = hashlib.sha256(self.mask.data).hexdigest()
        if self.end_prompt is not None:
            facts["end_prompt"] = self.end_prompt
        return facts | source_facts(self.source)


def source_facts(source: Clip | None) -> dict[str, str]:
    """What a recipe holds of the clip that others are generated from: the hash of its picture."""
    if source is None:
        return {}
    return {"source_sha256": hashlib.sha256(source.image.tobytes()).hexdigest()}


def is_list(values: object) -> bool:
    """Tell whether there is one value per clip."""
    return as_list(values) is not None


def one_or_list(clips: list[Clip], *arguments: object) -> Clip | list[Clip]:
    """Return the list if one of the arguments was a list, else the single clip in it."""
    return clips if any(is_list(values) for values in arguments) else clips[0]


def check_pipeline(pipe: object) -> None:
    """Raise a TypeError if it is not a StableDiffusionPipeline."""
    if not isinstance(pipe, diffusers.StableDiffusionPipeline):
        raise TypeError(f"pipe must be a StableDiffusionPipeline, as load_pipeline() gives it, not {pipe!r}")


def check_point(pipe: Pipeline, point: Point) -> Point:
    """Check the prompts of a point and fill in the model's defaults.

    Raises
    ------
    TypeError, ValueError
        If the pipeline, a prompt or the generator is wrong, or there is not one weight per prompt.
    """
    check_pipeline(pipe)
    if len(point.weights) != len(point.prompts):
        raise ValueError(f"a point needs one weight per prompt, not {len(point.weights)} for {len(point.prompts)}")
    if point.generator is not None and len(point.prompts) > 1:
        raise ValueError("a generator goes with a single prompt: use seeds for several")
    if point.generator is not None and not isinstance(point.generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, not {point.generator!r}")
    has_seed = point.generator is None
    return replace(point, prompts=tuple(_filled_prompt(pipe, prompt, has_seed=has_seed) for prompt in point.prompts))


def check_walk_prompt(pipe: Pipeline, prompt: object) -> Prompt:
    """Check one end of a walk and fill in the model's defaults."""
    check_pipeline(pipe)
    if not isinstance(prompt, Prompt):
        raise TypeError(f"{prompt!r} is not a Prompt: use Prompt('piano', seed=1)")
    return check_point(pipe, Point((prompt,))).start


def _filled_prompt(pipe: Pipeline, prompt: Prompt, *, has_seed: bool = True) -> Prompt:
    check_prompt(prompt.text)
    if prompt.negative_prompt is not None:
        check_prompt(prompt.negative_prompt, "negative_prompt")
    guidance_scale = prompt.guidance_scale
    if guidance_scale is None:
        guidance_scale = model_settings(pipe).guidance_scale
    strength = SEED_CLIP_STRENGTH if prompt.strength is None else prompt.strength
    return replace(
        prompt,
        seed=check_seed(prompt.seed) if has_seed else prompt.seed,
        guidance_scale=check_number("guidance_scale", guidance_scale, 0),
        strength=check_number("strength", strength, 0, 1),
    )


def broadcast_arguments(
    pipe: Pipeline,
    *,
    prompt: object,
    negative_prompt: object = None,
    seed: object = None,
    generator: object = None,
    guidance_scale: float | None = None,
    strength: float = 1.0,
) -> list[Point]:
    """Check the arguments of each clip; single values are repeated to the length of the lists.

    Raises
    ------
    TypeError, ValueError
        If one is wrong, or the lists are not equally long.
    """
    check_pipeline(pipe)
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator cannot both be given: pass one of them")
    if seed is None and generator is None:
        seed = 0
    strength = check_number("strength", strength, 0, 1)
    arguments = {"prompt": prompt, "seed": seed, "negative_prompt": negative_prompt, "generator": generator}
    lists = {name: as_list(values) for name, values in arguments.items()}
    n_clips = _common_length({name: len(values) for name, values in lists.items() if values is not None})

    def value(name: str, i: int) -> Any:
        values = lists[name]
        return arguments[name] if values is None else values[i]

    points = []
    for i in range(n_clips):
        one_prompt = Prompt(
            text=value("prompt", i),
            seed=value("seed", i),
            negative_prompt=value("negative_prompt", i),
            guidance_scale=guidance_scale,
            strength=strength,
        )
        points.append(check_point(pipe, Point((one_prompt,), generator=value("generator", i))))
    return points


def _common_length(lengths: dict[str, int]) -> int:
    """Number of clips, from the lengths of the arguments that are lists."""
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"lists must have the same length and must not be empty; the lengths are {lengths}")
    n_clips = max((length for name, length in lengths.items() if name != "negative_prompt"), default=1)
    n_negative = lengths.get("negative_prompt", n_clips)
    if n_negative != n_clips:
        raise ValueError(f"{n_negative} negative prompts for one clip: give one")
    return n_clips


def check_options(
    pipe: Pipeline,
    *,
    num_inference_steps: int | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    source: Clip | None = None,
    mask: np.ndarray | None = None,
    end_prompt: str | None = None,
    callback: Callback | None = None,
) -> Options:
    """Check the settings shared by all clips of a call, and fill in the model's defaults.

    Clips generated from a source are as long as the source. ``loop=None`` stands for the source's loop, else for the
    model's own, where the length allows it.
    """
    check_pipeline(pipe)
    settings = model_settings(pipe)
    if num_inference_steps is None:
        num_inference_steps = settings.num_inference_steps
    n_train_steps = pipe.scheduler.config.get("num_train_timesteps", 1_000)
    num_inference_steps = check_whole("num_inference_steps", num_inference_steps, 1, n_train_steps)
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    n_columns = _check_duration(pipe, duration_s, source)
    loop = _check_loop(pipe, loop, n_columns=n_columns, source=source)
    if source is None and n_columns > LONG_S * COLUMNS_PER_S:
        warn(f"{n_columns / COLUMNS_PER_S:g} s are more than {LONG_S} s: this will take a while")
    check_scheduler(pipe, num_inference_steps, from_clip=source is not None)
    return Options(
        num_inference_steps=num_inference_steps,
        n_columns=n_columns,
        loop=loop,
        batch_size=batch_size,
        source=source,
        mask=mask,
        end_prompt=end_prompt,
        callback=callback,
    )


def clip_width(pipe: Pipeline) -> int:
    """Width in pixels of the clips that the model was trained on: 512."""
    return latent_size(pipe)[1] * pipe.vae_scale_factor


def _check_duration(pipe: Pipeline, duration_s: float | None, source: Clip | None) -> int:
    """Number of columns of a clip."""
    if duration_s is None:
        duration_s = source.duration_s if source else clip_width(pipe) / COLUMNS_PER_S
    duration_s = check_number("duration_s", duration_s, 1 / COLUMNS_PER_S, LONGEST_S)
    return max(1, round(duration_s * COLUMNS_PER_S))


def _check_loop(pipe: Pipeline, loop: object, *, n_columns: int, source: Clip | None) -> bool:
    loop = as_scalar(loop)
    if not isinstance(loop, bool | None):
        raise TypeError(f"loop must be True, False or None, not {loop!r}")
    width = clip_width(pipe)
    is_whole = n_columns % width == 0
    if loop and not is_whole:
        clip_s = width / COLUMNS_PER_S
        nearest_s = max(1, round(n_columns / width)) * clip_s
        duration_s = n_columns / COLUMNS_PER_S
        advice = f"use duration_s={nearest_s:g} or loop=False"
        if source is not None:
            advice = "use a clip of such a length, or loop=False"
        raise ValueError(f"a loop must last a multiple of {clip_s:g} s, not {duration_s:g} s: {advice}")
    if loop is None:
        default = source.loop if source else model_settings(pipe).loop
        return is_whole and default
    return loop


def as_model_clip(clip: object) -> Clip:
    """Convert a clip to the models' params if it has others: mono, 44,100 Hz, up to 10 kHz."""
    clip = check_clip(clip)
    if clip.params == PARAMS:
        return clip
    return Clip.from_audio(clip.waveform, clip.sample_rate, loop=clip.loop)


def check_model_clip(clip: object) -> Clip:
    """Refuse a clip whose picture cannot be kept, since its params are not the models'."""
    clip = check_clip(clip)
    if clip.params != PARAMS:
        advice = f"convert it first with Clip.from_audio(clip.waveform, {clip.sample_rate})"
        raise ValueError(f"the clip's params are not the model's, so its picture cannot be kept: {advice}")
    return clip


def check_clip(clip: object) -> Clip:
    """Return a clip; raise a TypeError if it is not one."""
    if not isinstance(clip, Clip):
        raise TypeError(f"clip must be a Clip, not {clip!r}: make one with Clip.from_audio or Clip.from_image")
    return clip


def find_hints(pipe: Pipeline, points: Sequence[Point], end_prompt: str | None = None) -> list[str]:
    """Hints on what is allowed but likely not meant, each once."""
    prompts = [prompt for point in points for prompt in point.prompts]
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative_prompt) if text]
    if end_prompt:
        texts.append(end_prompt)
    found = scheduler_hints(pipe.scheduler) + few_step_hints(pipe) + notation_hints(texts)
    for text in texts:
        found += vocabulary_hints(pipe, text)
        found += tempo_hints(pipe, text)
    for prompt in prompts:
        guidance_scale = _known(prompt.guidance_scale)
        if prompt.negative_prompt and guidance_scale <= 1:
            found.append(f"negative_prompt has no effect at guidance_scale={guidance_scale:g}: take more than 1")
    return list(dict.fromkeys(found))


def warn_of_hints(pipe: Pipeline, points: Sequence[Point], end_prompt: str | None = None) -> None:
    """Warn of everything that `find_hints` finds."""
    for hint in find_hints(pipe, points, end_prompt):
        warn(hint)
