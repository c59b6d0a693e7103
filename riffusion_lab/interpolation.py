"""Walks between prompts and seeds, clip by clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from .blending import lerp, slerp
from .clip import Clip
from .generate import generate_clips
from .models import Pipeline
from .prompts import Prompt
from .requests import Options, Point, as_model_clip, check_options, check_walk_prompt, warn_of_hints
from .sampling import isolated_pipeline
from .spacing import EVEN_RATIO, even_clips
from .values import as_list, check_number, check_whole, warn

__all__ = ["interpolate", "lerp", "slerp", "walk"]


def interpolate(
    pipe: Pipeline,
    start: Prompt,
    end: Prompt | Sequence[Prompt],
    *,
    num_clips: int,
    seed_clip: Clip | None = None,
    curve: Callable[[float], float] | None = None,
    spacing: str = "linear",
    max_extra_clips: int | None = None,
    num_inference_steps: int | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
) -> Iterator[Clip]:
    """Walk from one prompt and seed to another.

    Embeddings, guidance scales and strengths are interpolated along a line, the noise along an arc (`slerp`). The first
    and the last clip are those that `text_to_audio` generates from `start` and `end`; with ``batch_size=1`` they are
    bit-identical.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    start : Prompt
    end : Prompt or sequence of Prompt
        Several prompts are visited one after the other (see `walk`).
    num_clips : int
        Number of clips from each prompt to the next, counting both ends; 1 gives the start alone. Neighbouring legs
        share the clip at the prompt between them, so there are ``(num_clips - 1) * legs + 1`` clips.
    seed_clip : Clip, optional
        Start from this clip instead of pure noise (see `audio_to_audio`), with the prompts' `strength` (default: 0.75).
        At strength 1 the walk is the same as without it. It sets the duration, and the default of `loop`.
    curve : callable, optional
        Maps the position between one prompt and the next, in [0, 1], to alpha, in [0, 1]. Default: the position itself.
        ``lambda x: x**2`` leaves the start more slowly.
    spacing : str
        ``"linear"``: equal steps of alpha (or those of `curve`). ``"even"``: alphas at which neighbouring clips differ
        by about the same amount. The step between two clips is the mean absolute difference of their pictures
        (`spacing.picture_distance`), and the largest step is at most twice the smallest. From each prompt to the next,
        `num_clips` clips are first generated at equal steps of alpha, then more between the neighbours that differ
        most. Extra clips take as long to generate as any others, even those that are not returned. If `max_extra_clips`
        are not enough, for example because the picture jumps, the most even steps found are used, and a warning states
        their ratio. Both ends stay bit-identical.
    max_extra_clips : int, optional
        For ``spacing="even"``: how many clips may be generated beyond `num_clips`, from each prompt to the next.
        Default: `num_clips`.
    num_inference_steps, duration_s, loop, batch_size
        As in `text_to_audio`.

    Returns
    -------
    iterator of Clip
        Clips are generated on demand, `batch_size` at a time; with ``spacing="even"``, all clips up to the next prompt
        are generated together. The arguments are checked immediately, at the call.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; raised at the call.
    FloatingPointError
        If latents or picture are not finite; raised when the clip is requested.

    Notes
    -----
    Taught in: 04
    """
    num_clips = check_whole("num_clips", num_clips, 1, math.inf)
    ends = as_list(end)
    prompts = [check_walk_prompt(pipe, prompt) for prompt in [start, *([end] if ends is None else ends)]]
    if len(prompts) < 2:
        raise ValueError(f"a walk needs at least two prompts, not {len(prompts)}")
    if seed_clip is not None and duration_s is not None:
        raise ValueError(
            f"pass duration_s={duration_s!r} or seed_clip, not both: the clips are as long as the seed clip"
        )
    options = check_options(
        pipe,
        num_inference_steps=num_inference_steps,
        duration_s=duration_s,
        loop=loop,
        batch_size=batch_size,
        source=None if seed_clip is None else as_model_clip(seed_clip),
    )
    max_extra_clips = _check_spacing(spacing, curve, max_extra_clips, num_clips=num_clips)
    alphas = _alphas(num_clips, curve)
    warn_of_hints(pipe, [Point((prompt,)) for prompt in prompts])
    if spacing == "even" and num_clips > 2:  # two clips have only one step between them
        isolated = isolated_pipeline(pipe)
        return _even_walk(isolated, prompts, options, num_clips=num_clips, max_extra_clips=max_extra_clips)
    return generate_clips(pipe, "interpolate", _points_of_walk(prompts, alphas), options)


def _check_spacing(
    spacing: object, curve: Callable[[float], float] | None, max_extra_clips: int | None, *, num_clips: int
) -> int:
    """Check the arguments that depend on `spacing`; return the number of extra clips that are allowed."""
    if spacing not in ("linear", "even"):
        raise ValueError(f"spacing must be 'linear' or 'even', not {spacing!r}")
    if spacing == "even" and curve is not None:
        raise ValueError("spacing='even' chooses the alphas, so it does not go with curve: pass one of them")
    if spacing == "linear" and max_extra_clips is not None:
        raise ValueError(f"max_extra_clips={max_extra_clips!r} is for spacing='even': leave it out, or ask for that")
    if max_extra_clips is None:
        return num_clips
    return check_whole("max_extra_clips", max_extra_clips, 0, math.inf)


def _even_walk(
    pipe: Pipeline, prompts: Sequence[Prompt], options: Options, *, num_clips: int, max_extra_clips: int
) -> Iterator[Clip]:
    """Walk with even steps from each prompt to the next; neighbouring legs share a clip."""
    arrived: Clip | None = None
    for start, end in pairwise(prompts):
        found = even_clips(
            partial(_clips_between, pipe, start, end, options),
            num_clips,
            max_extra_clips=max_extra_clips,
            batch_size=options.batch_size,
            first=arrived,
        )
        if found.ratio > EVEN_RATIO:
            warn(
                f"the largest step from {start.text!r} to {end.text!r} is {found.ratio:.1f} times the smallest one, "
                f"after {found.n_extra} extra clips: allow more by max_extra_clips, or ask for fewer clips"
            )
        yield from found.clips if arrived is None else found.clips[1:]
        arrived = found.clips[-1]


def _clips_between(pipe: Pipeline, start: Prompt, end: Prompt, options: Options, alphas: Sequence[float]) -> list[Clip]:
    points = [Point.between(start, end, alpha) for alpha in alphas]
    return list(generate_clips(pipe, "interpolate", points, options))


def _alphas(num_clips: int, curve: Callable[[float], float] | None) -> list[float]:
    """Alpha of each clip between two prompts."""
    alphas = []
    for i in range(num_clips):
        share = i / max(1, num_clips - 1)
        alpha = curve(share) if curve else share
        alphas.append(check_number("what curve returns", alpha, 0, 1))
    return alphas


def _points_of_walk(prompts: Sequence[Prompt], alphas: Sequence[float]) -> list[Point]:
    """Points from each prompt to the next; neighbouring legs share a point."""
    first_leg, *other_legs = pairwise(prompts)
    points = [Point.between(*first_leg, alpha) for alpha in alphas]
    if len(alphas) == 1:
        return points  # the start alone
    for leg in other_legs:
        points += [Point.between(*leg, alpha) for alpha in alphas[1:]]  # the leg before ended with its first clip
    return points


def walk(pipe: Pipeline, prompts: Sequence[Prompt], *, closed: bool = False, **options: Any) -> Iterator[Clip]:
    """Walk through several prompts and seeds: `interpolate` from each to the next.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompts : sequence of Prompt
        At least two.
    closed : bool
        Return to the first prompt at the end, so that the last clip is the first one again.
    **options
        As in `interpolate`: `num_clips` (required), `seed_clip`, `curve`, `spacing`, `max_extra_clips`,
        `num_inference_steps`, `duration_s`, `loop`, `batch_size`.

    Returns
    -------
    iterator of Clip

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; raised at the call.

    Notes
    -----
    Taught in: 04
    """
    prompts = list(prompts)
    if closed:
        prompts += prompts[:1]
    if len(prompts) < 2:
        raise ValueError(f"a walk needs at least two prompts, not {len(prompts)}")
    return interpolate(pipe, prompts[0], prompts[1:], **options)
