"""Walks between prompts and seeds, clip by clip."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import (
    COLUMNS_PER_S,
    Order,
    check_guidance,
    check_length,
    check_pipe,
    check_steps,
    check_strength,
    line_up,
    remarks,
)
from .clip import Clip
from .denoise import Job, begins_in_the_middle, first_step, from_clip, from_noise, left_as_found
from .edit import encode_clip, for_model, picture_hash
from .generate import clip_from_latents, make_job
from .prompts import Prompt, of_one_length
from .recipes import make_recipe
from .values import check_number, check_whole

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STRENGTH = 0.75  # of prompts that say none, where there is a seed clip: the original's
PARALLEL = 0.9995  # cosine above which the arc is as good as a line


def slerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Go along the arc from one noise to another: spherical interpolation (https://doi.org/10.1145/325165.325242).

    Noise in many dimensions lies close to a sphere; what lies between on a straight line is too short, and no noise.

    Parameters
    ----------
    start, end : Tensor
        Of one shape. Calculated in float64, whatever their type.
    alpha : float
        0 gives `start`, 1 `end`, to the bit.

    Returns
    -------
    Tensor
        Of `start`'s type. Where both point the same way, or exactly opposite ways, the line is taken.

    Taught in: 04
    """
    if alpha in (0, 1):
        return (end if alpha else start).clone()
    a, b = start.double(), end.double()
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if not abs(cosine) < PARALLEL:  # or a zero vector: the cosine is NaN
        return torch.lerp(a, b, alpha).to(start.dtype)
    angle = math.acos(cosine)
    return ((math.sin((1 - alpha) * angle) * a + math.sin(alpha * angle) * b) / math.sin(angle)).to(start.dtype)


def lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Go along the line; 0 gives `start`, 1 `end`, to the bit.

    Taught in: 04
    """
    return (end if alpha else start).clone() if alpha in (0, 1) else torch.lerp(start, end, alpha)


def interpolate(
    pipe: StableDiffusionPipeline,
    start: Prompt,
    end: Prompt,
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
    start, end : Prompt
    num_clips : int
        Both ends included; 1 gives the start alone.
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
    return walk(
        pipe,
        [start, end],
        num_clips=num_clips,
        seed_clip=seed_clip,
        curve=curve,
        num_inference_steps=num_inference_steps,
        duration_s=duration_s,
        loop=loop,
        batch_size=batch_size,
    )


def walk(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[Prompt],
    *,
    num_clips: int,
    closed: bool = False,
    seed_clip: Clip | None = None,
    curve: Callable[[float], float] | None = None,
    num_inference_steps: int | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
) -> Iterator[Clip]:
    """Walk through many prompts and seeds: `interpolate` from each to the next.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompts : sequence of Prompt
        At least two.
    num_clips : int
        From each prompt to the next, both included; a prompt in between is passed once. So there are
        ``(num_clips - 1) * legs + 1`` clips.
    closed : bool
        Go back to the first prompt at the end; the last clip is then the first one again.
    seed_clip, curve, num_inference_steps, duration_s, loop, batch_size
        As in `interpolate`.

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
    check_pipe(pipe)
    points = _check_points(pipe, prompts)
    points += points[:1] if closed else []
    num_clips = check_whole("num_clips", num_clips, 1, math.inf)
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    clip = None if seed_clip is None else for_model(seed_clip)
    if clip is not None and duration_s is not None:
        raise ValueError(f"duration_s={duration_s!r} and seed_clip exclude each other: the clip says how long")
    by_default = None if clip is None else clip.loop
    n_columns, loop = check_length(
        pipe, duration_s if clip is None else clip.duration_s, loop, loop_by_default=by_default
    )
    settings = {"num_inference_steps": check_steps(pipe, num_inference_steps), "loop": loop}
    for remark in dict.fromkeys(r for p in points for r in remarks(pipe, [p.order], p.guidance_scale)):
        warnings.warn(remark, stacklevel=2)
    stations = list(_stations(len(points), num_clips, curve))
    return _walk(pipe, points, stations, clip, n_columns, settings, batch_size)


@dataclass(frozen=True)
class _Point:
    """A prompt, checked, with the model's defaults filled in."""

    order: Order
    guidance_scale: float
    strength: float

    def given(self) -> dict:
        """What a recipe keeps of it: the arguments of `Prompt`."""
        given = self.order.given()
        return {"text": given.pop("prompt"), **given, "guidance_scale": self.guidance_scale, "strength": self.strength}


def _check_points(pipe: StableDiffusionPipeline, prompts: Sequence[Prompt]) -> list[_Point]:
    prompts = list(prompts)
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise TypeError(f"{prompt!r} is no Prompt: give Prompt('piano', seed=1)")
    if len(prompts) < 2:
        raise ValueError(f"a walk needs two prompts at least, not {len(prompts)}")
    return [
        _Point(
            order=line_up(prompt.text, prompt.negative_prompt, prompt.seed, None)[0],
            guidance_scale=check_guidance(pipe, prompt.guidance_scale),
            strength=check_strength(STRENGTH if prompt.strength is None else prompt.strength),
        )
        for prompt in prompts
    ]


def _stations(n_points: int, num_clips: int, curve: Callable[[float], float] | None) -> Iterator[tuple[int, float]]:
    """(leg, alpha) of every clip."""
    for leg in range(n_points - 1 if num_clips > 1 else 1):
        for i in range(0 if leg == 0 else 1, num_clips):
            share = i / max(1, num_clips - 1)
            alpha = check_number("what curve returns", share if curve is None else curve(share))
            if not 0 <= alpha <= 1:
                raise ValueError(f"curve must return alphas from 0 to 1, not {alpha!r} for {share:g}")
            yield leg, alpha


def _walk(
    pipe: StableDiffusionPipeline,
    points: list[_Point],
    stations: list[tuple[int, float]],
    clip: Clip | None,
    n_columns: int,
    settings: dict,
    batch_size: int,
) -> Iterator[Clip]:
    """Make the clips: those that a batch can hold together, `batch_size` at a time."""

    def kind(station: tuple[int, float]) -> tuple:
        guidance_scale, strength = _between(points, *station)
        return guidance_scale, clip and (strength == 1, first_step(settings["num_inference_steps"], strength))

    for _, group in groupby(stations, kind):
        alike = list(group)
        for first in range(0, len(alike), batch_size):
            with left_as_found(pipe):  # not across a yield: in between, the pipe is the caller's
                clips = _make(pipe, points, alike[first : first + batch_size], clip, n_columns, settings)
            yield from clips


def _between(points: list[_Point], leg: int, alpha: float) -> tuple[float, float]:
    """Guidance scale and strength of a station."""
    a, b = points[leg], points[leg + 1]
    return _line(a.guidance_scale, b.guidance_scale, alpha), _line(a.strength, b.strength, alpha)


def _line(start: float, end: float, alpha: float) -> float:
    return start + alpha * (end - start)


def _make(
    pipe: StableDiffusionPipeline,
    points: list[_Point],
    stations: list[tuple[int, float]],
    clip: Clip | None,
    n_columns: int,
    settings: dict,
) -> list[Clip]:
    """Make one batch."""
    if clip is not None:
        pipe.scheduler = begins_in_the_middle(pipe.scheduler)
    jobs = [_job(pipe, points[leg], points[leg + 1], alpha, n_columns) for leg, alpha in stations]
    if clip is None:
        latents = from_noise(pipe, jobs, **settings)
    else:
        strength = _between(points, *stations[0])[1]
        latents = from_clip(pipe, jobs, encode_clip(pipe, clip, loop=settings["loop"]), strength=strength, **settings)
    clips = []
    for (leg, alpha), latent in zip(stations, latents.split(1), strict=True):
        ends = {"start": points[leg].given(), "end": points[leg + 1].given(), "alpha": alpha}
        if clip is not None:
            ends["source_sha256"] = picture_hash(clip)
        recipe = make_recipe(pipe, "interpolate", **ends, **settings, duration_s=n_columns / COLUMNS_PER_S)
        maximum = None if clip is None else clip.maximum
        clips.append(clip_from_latents(pipe, latent, n_columns, loop=settings["loop"], recipe=recipe, maximum=maximum))
    return clips


def _job(pipe: StableDiffusionPipeline, start: _Point, end: _Point, alpha: float, n_columns: int) -> Job:
    a, b = (make_job(pipe, point.order, point.guidance_scale, n_columns) for point in (start, end))
    if alpha in (0, 1):
        return b if alpha else a
    return Job(
        words=lerp(*of_one_length(pipe, [a.words, b.words]), alpha),
        no_words=lerp(*of_one_length(pipe, [a.no_words, b.no_words]), alpha),
        noise=slerp(a.noise, b.noise, alpha),
        generator=a.generator,
        guidance_scale=_line(a.guidance_scale, b.guidance_scale, alpha),
    )
