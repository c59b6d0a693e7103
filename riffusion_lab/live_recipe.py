"""Regenerate what was heard in a session from its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .clip import Clip
from .generate import generate_clips
from .join import CROSSFADE_S, loop_from
from .models import Pipeline
from .recipes import prompt_from_recipe, warn_of_other_weights
from .requests import Options, Point, as_model_clip, check_options, check_point, source_facts
from .values import check_number


def generate_point(pipe: Pipeline, point: Point, options: Options) -> Clip:
    """Generate the clip at a point between two prompts."""
    return next(generate_clips(pipe, "interpolate", [check_point(pipe, point)], options))


def replay_session(recipe: Mapping[str, Any], pipe: Pipeline, *, seed_clip: Clip | None = None) -> Iterator[Clip]:
    """Regenerate what was heard in a session, clip by clip; `stitch` joins the clips.

    Parameters
    ----------
    recipe : mapping
        As `Session.recipe` returns it.
    pipe : StableDiffusionPipeline
        With the same weights; there is a warning if they differ.
    seed_clip : Clip, optional
        The seed clip of the session, if it had one.

    Returns
    -------
    iterator of Clip
        A clip that was cut is not a loop, and is 0.03 s longer than what was heard: `stitch` fades it out under the
        next one.

    Raises
    ------
    TypeError, ValueError
        If it is not a session's recipe, or the seed clip is missing or differs; raised at the call.

    Notes
    -----
    Taught in: 08
    """
    source = None if seed_clip is None else as_model_clip(seed_clip)
    heard = points_heard(recipe, pipe, source)
    options = check_options(pipe, num_inference_steps=recipe["num_inference_steps"], loop=True, source=source)
    return _repeated_clips(pipe, heard, options)


def points_heard(recipe: Mapping[str, Any], pipe: Pipeline, source: Clip | None) -> list[tuple[Point, float]]:
    """Points of a session's recipe, and how many times in a row each was heard; all checked."""
    if not isinstance(recipe, Mapping) or recipe.get("kind") != "live":
        raise ValueError(f"this is not a session's recipe: {recipe!r:.60}; use Session.recipe")
    if source_facts(source).get("source_sha256") != recipe.get("source_sha256"):
        raise ValueError("the session's seed clip and seed_clip are not the same: give the one that the session had")
    warn_of_other_weights(recipe, pipe, "the session was played")
    try:
        return [(_point_from_recipe(facts), check_number("times", facts["times"], 0)) for facts in recipe["heard"]]
    except KeyError as error:
        raise ValueError(f"the recipe lacks {error}: take one that Session.recipe has returned") from error


def _repeated_clips(pipe: Pipeline, heard: list[tuple[Point, float]], options: Options) -> Iterator[Clip]:
    for point, times in heard:
        clip = generate_point(pipe, point, options)
        for _ in range(int(times)):
            yield clip
        n_heard = round((times - int(times)) * clip.waveform.shape[1])
        if n_heard:
            n_fade = round(CROSSFADE_S * clip.sample_rate)
            yield clip.with_waveform(loop_from(clip, 0, n_heard + n_fade))


def _point_from_recipe(facts: Mapping[str, Any]) -> Point:
    start = prompt_from_recipe(facts["start"])
    end = prompt_from_recipe(facts["end"])
    return Point.between(start, end, check_number("alpha", facts["alpha"], 0, 1))
