"""From a prompt to a clip, and the same clip again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import (
    COLUMNS_PER_S,
    PARAMS,
    Order,
    check_guidance,
    check_length,
    check_pipe,
    check_steps,
    line_up,
    one_or_list,
    remarks,
    taught_prompt,
)
from .clip import Clip
from .denoise import Callback, Job, draw_noise, from_noise, left_as_found
from .loops import decode, latent_columns
from .models import load_pipeline
from .prompts import Prompt, encode_prompt
from .recipes import FOLLOWED, Recipe, check_recipe, make_recipe, scheduler_from_recipe, weights_hash
from .values import check_whole

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

LONG_S = 60  # above this, a warning


def text_to_audio(
    pipe: StableDiffusionPipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Turn a prompt into a clip.

    With ``loop=False`` and the model's own duration the picture is, bit for bit, the one that
    ``pipe(prompt)`` itself makes. The pipeline is left as it was found, also after an error.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As ``load_pipeline`` gives it.
    prompt : str or list of str
        What to hear. A list of prompts, seeds or generators gives a list of clips.
    negative_prompt : str or list of str, optional
        What not to hear.
    seed : int or list of int, optional
        Where the noise comes from: the same seed gives the same noise, whatever else is in the
        batch. Default: 0, unless there is a generator.
    num_inference_steps, guidance_scale : int, float, optional
        Default: the model's own.
    duration_s : float, optional
        In (0, 3600]. Default: one clip of the model, 5.12 s. Longer ones are denoised in
        overlapping windows.
    loop : bool, optional
        Whether the end leads into the beginning; the duration must then be a whole number of the
        model's clips. Default: the model's own, where the duration allows it.
    batch_size : int
        How many clips to denoise at once: faster on a GPU, but it takes more memory.
    generator : torch.Generator or list of torch.Generator, optional
        Instead of a seed. Such a clip cannot be replayed.
    callback_on_step_end : callable, optional
        Called after each step of each batch as ``callback(pipe, step, timestep, tensors)``, as by
        diffusers, but need not return anything. An exception it raises ends the work.

    Returns
    -------
    Clip or list of Clip
        Without a level of their own.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; before the first step.

    Notes
    -----
    Taught in: 00, 03
    """
    check_pipe(pipe)
    orders = line_up(prompt, negative_prompt, seed, generator)
    n_columns, loop = check_length(pipe, duration_s, loop)
    settings = {
        "num_inference_steps": check_steps(pipe, num_inference_steps),
        "guidance_scale": check_guidance(pipe, guidance_scale),
        "duration_s": n_columns / COLUMNS_PER_S,
        "loop": loop,
    }
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    for remark in dict.fromkeys(remarks(pipe, orders, settings["guidance_scale"])):
        warnings.warn(remark, stacklevel=2)
    if settings["duration_s"] > LONG_S:
        warnings.warn(f"{settings['duration_s']:g} s are more than {LONG_S} s: this will take a while", stacklevel=2)
    clips = []
    with left_as_found(pipe):
        for batch in range(0, len(orders), batch_size):
            clips += _make(pipe, orders[batch : batch + batch_size], settings, callback_on_step_end)
    return one_or_list(clips, prompt, seed, generator)


def replay(clip_or_recipe: Clip | Recipe, pipe: StableDiffusionPipeline | None = None) -> Clip:
    """Make a clip of `text_to_audio` or `interpolate` again from its recipe.

    On the same weights, device and versions it is the same clip; other weights are said.

    Parameters
    ----------
    clip_or_recipe : Clip or dict
        A generated clip (also one opened from a PNG), or its recipe.
    pipe : StableDiffusionPipeline, optional
        Default: the recipe's model is loaded.

    Returns
    -------
    Clip

    Raises
    ------
    OSError
        If the recipe's model cannot be found.
    TypeError, ValueError
        If there is no recipe, or none that can be followed: one of a clip made from another clip does not hold that.

    Notes
    -----
    Taught in: 03
    """
    from .interpolation import interpolate  # which builds on this module

    recipe = check_recipe(getattr(clip_or_recipe, "recipe", clip_or_recipe))
    scheduler = scheduler_from_recipe(recipe)
    pipe = load_pipeline(recipe["model"]) if pipe is None else pipe
    if weights_hash(pipe) != recipe["weights_sha256"]:
        warnings.warn(f"the clip was made with other weights of {recipe['model']}: it will differ", stacklevel=2)
    given = {name: recipe[name] for name in FOLLOWED[recipe["kind"]]}
    with left_as_found(pipe):
        pipe.scheduler = scheduler
        if recipe["kind"] == "text_to_audio":
            return text_to_audio(pipe, **given)
        start, end, alpha = Prompt(**given.pop("start")), Prompt(**given.pop("end")), given.pop("alpha")
        return next(interpolate(pipe, start, end, num_clips=1, curve=lambda _: alpha, **given))


def _make(
    pipe: StableDiffusionPipeline, orders: list[Order], settings: dict[str, Any], callback: Callback | None
) -> list[Clip]:
    """Denoise a batch, decode its clips one by one."""
    n_columns = round(settings["duration_s"] * COLUMNS_PER_S)
    jobs = [make_job(pipe, order, settings["guidance_scale"], n_columns) for order in orders]
    options = {"num_inference_steps": settings["num_inference_steps"], "loop": settings["loop"]}
    latents = from_noise(pipe, jobs, **options, callback=callback)
    recipes = [make_recipe(pipe, "text_to_audio", **order.given(), **settings) for order in orders]
    return [
        clip_from_latents(pipe, latent, n_columns, loop=settings["loop"], recipe=recipe)
        for latent, recipe in zip(latents.split(1), recipes, strict=True)
    ]


def make_job(
    pipe: StableDiffusionPipeline,
    order: Order,
    guidance_scale: float,
    n_columns: int,
    generator: torch.Generator | None = None,
) -> Job:
    """Encode an order's words and draw its noise, for a picture of `n_columns`.

    `generator` goes on drawing where another window of the same clip has stopped; default: the order's own, anew.
    """
    generator = generator or order.noise()
    return Job(
        words=encode_prompt(pipe, taught_prompt(pipe, order.prompt)[0]),
        no_words=encode_prompt(pipe, taught_prompt(pipe, order.negative_prompt or "")[0]),
        noise=draw_noise(pipe, generator, latent_columns(pipe, n_columns)),
        generator=generator,
        guidance_scale=guidance_scale,
    )


def clip_from_latents(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    n_columns: int,
    *,
    loop: bool,
    recipe: Recipe,
    maximum: float | None = None,
) -> Clip:
    """Decode latents [shape=(1, 4, 64, columns)] into a clip of `n_columns` columns of the picture."""
    picture = decode(pipe, latents, loop=loop)
    picture = picture.crop((0, 0, n_columns, picture.height))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the picture lasts")  # said before the work
        return Clip.from_image(picture, params=PARAMS, loop=loop, recipe=recipe, maximum=maximum)
