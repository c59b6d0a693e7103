"""Walks between prompts and seeds, clip by clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .checks import Order, Source, check_order, check_settings, remark
from .clip import Clip
from .denoise import Job
from .edit import for_model
from .generate import Task, make_clips, make_job
from .models import Pipeline
from .prompts import Prompt, of_one_length
from .values import as_list, check_number, check_whole

STRENGTH = 0.75  # of prompts that say none, where there is a seed clip: the original's
PARALLEL = 0.9995  # cosine above which the arc is as good as a line


def slerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Go along the arc from one noise to another: spherical interpolation (https://doi.org/10.1145/325165.325242).

    Noise in many dimensions lies close to a sphere; what lies between on a straight line is too short, and no noise.

    Parameters
    ----------
    start, end : Tensor
        Of one shape. Calculated in float64 and on the CPU, whatever their type and device.
    alpha : float
        0 gives `start`, 1 `end`, to the bit.

    Returns
    -------
    Tensor
        Of `start`'s type and device. Where both point the same way, or exactly opposite ways, the line is taken.

    Taught in: 04
    """
    if alpha in (0, 1):
        return (end if alpha else start).clone()
    a, b = (noise.cpu().double() for noise in (start, end))  # GPUs of Macs have no float64
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if not abs(cosine) < PARALLEL:  # or a zero vector: the cosine is NaN
        return torch.lerp(a, b, alpha).to(start)
    angle = math.acos(cosine)
    between = (math.sin((1 - alpha) * angle) * a + math.sin(alpha * angle) * b) / math.sin(angle)
    return between.to(start)


def lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Go along the line; 0 gives `start`, 1 `end`, to the bit.

    Taught in: 04
    """
    return (end if alpha else start).clone() if alpha in (0, 1) else torch.lerp(start, end, alpha)


def lerp_number(start: float, end: float, alpha: float) -> float:
    """Go along the line from one number to another; 0 gives `start`, 1 `end`, and nothing leaves the range between.

    So equal ends give that number everywhere: by the sum alone, 0.75 to 0.75 is 0.7499999999999999 at 0.3.
    """
    between = (1 - alpha) * start + alpha * end
    return min(max(between, min(start, end)), max(start, end))


def interpolate(
    pipe: Pipeline,
    start: Prompt,
    end: Prompt | Sequence[Prompt],
    *,
    num_clips: int,
    seed_clip: Clip | None = None,
    curve: Callable[[float], float] | None = None,
    num_inference_steps: int | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
) -> Iterator[Clip]:
    """Walk from one prompt and seed to another.

    The vectors of prompts and negative prompts, guidance scales and strengths are interpolated along a line, the
    noise along an arc (`slerp`). The first and the last clip are those that `text_to_audio` makes of `start` and
    `end`, to the bit where `batch_size` is 1.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    start : Prompt
    end : Prompt or sequence of Prompt
        Of many, go from each to the next (see `walk`).
    num_clips : int
        From each prompt to the next, both included; 1 gives the start alone. A prompt in between is passed once, so
        there are ``(num_clips - 1) * legs + 1`` clips.
    seed_clip : Clip, optional
        Begin from this clip instead of pure noise (see `audio_to_audio`), by the prompts' `strength` (default: 0.75).
        Strength 1 is the walk without it. It sets duration and loop.
    curve : callable, optional
        From the share of the walk, 0…1, to alpha, 0…1. Default: the share itself. ``lambda x: x**2`` leaves the start
        more slowly.
    num_inference_steps, duration_s, loop, batch_size
        As in `text_to_audio`.

    Returns
    -------
    iterator of Clip
        Each is made when it is asked for, `batch_size` at a time. The arguments are checked at once.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; at once.

    Notes
    -----
    Taught in: 04
    """
    num_clips = check_whole("num_clips", num_clips, 1, math.inf)
    ends = as_list(end)
    ends = [end] if ends is None else ends
    points = [check_point(pipe, prompt) for prompt in [start, *ends]]
    if len(points) < 2:
        raise ValueError(f"a walk needs two prompts at least, not {len(points)}")
    if seed_clip is not None and duration_s is not None:
        raise ValueError(f"duration_s={duration_s!r} and seed_clip exclude each other: the clip says how long")
    source = None if seed_clip is None else Source(for_model(seed_clip))
    settings = check_settings(pipe, num_inference_steps, duration_s, loop, batch_size, source)
    shares = [i / max(1, num_clips - 1) for i in range(num_clips)]
    alphas = [check_number("what curve returns", curve(share) if curve else share, 0, 1) for share in shares]
    remark(pipe, points)
    legs = list(pairwise(points))[: None if num_clips > 1 else 1]
    tasks = [
        step_task(pipe, start, end, alpha, settings.n_columns)
        for leg, (start, end) in enumerate(legs)
        for alpha in alphas[leg > 0 :]  # the first clip of a leg is the last one of the leg before
    ]
    return make_clips(pipe, "interpolate", tasks, settings)


def walk(pipe: Pipeline, prompts: Sequence[Prompt], *, closed: bool = False, **options: Any) -> Iterator[Clip]:
    """Walk through many prompts and seeds: `interpolate` from each to the next.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompts : sequence of Prompt
        At least two.
    closed : bool
        Go back to the first prompt at the end; the last clip is then the first one again.
    **options
        As in `interpolate`: `num_clips` (needed), `seed_clip`, `curve`, `num_inference_steps`, `duration_s`, `loop`,
        `batch_size`.

    Returns
    -------
    iterator of Clip

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; at once.

    Notes
    -----
    Taught in: 04
    """
    start, *rest = list(prompts) or [None]
    return interpolate(pipe, start, [*rest, start] if closed else rest, **options)


def check_point(pipe: Pipeline, prompt: object) -> Order:
    """Check an end of a walk and fill in the model's defaults."""
    if not isinstance(prompt, Prompt):
        raise TypeError(f"{prompt!r} is no Prompt: give Prompt('piano', seed=1)")
    return check_order(pipe, replace(prompt, strength=STRENGTH if prompt.strength is None else prompt.strength))


def step_task(pipe: Pipeline, start: Order, end: Order, alpha: float, n_columns: int) -> Task:
    """Say what the clip is made from that lies at `alpha`, 0…1, between two ends."""
    return Task(
        job=partial(_job, pipe, start, end, alpha, n_columns),
        guidance_scale=lerp_number(start.guidance_scale, end.guidance_scale, alpha),
        strength=lerp_number(start.strength, end.strength, alpha),
        facts={"start": start.given(), "end": end.given(), "alpha": alpha},
    )


def _job(pipe: Pipeline, start: Order, end: Order, alpha: float, n_columns: int) -> Job:
    a, b = (make_job(pipe, order, n_columns) for order in (start, end))
    if alpha in (0, 1):  # to the bit, also where the prompts are of unlike length
        return b if alpha else a
    return Job(
        words=lerp(*of_one_length(pipe, [a.words, b.words]), alpha),
        no_words=lerp(*of_one_length(pipe, [a.no_words, b.no_words]), alpha),
        noise=slerp(a.noise, b.noise, alpha),
        generator=a.generator,
        guidance_scale=lerp_number(a.guidance_scale, b.guidance_scale, alpha),
    )
