"""From a prompt to a clip, and the same clip again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch

from .checks import Order, Settings, check_settings, line_up, one_or_list, remark, taught_prompt
from .clip import Clip
from .denoise import Callback, Job, begins_in_the_middle, draw_noise, first_step, from_clip, from_noise, left_as_found
from .image import Picture
from .loops import decode, encode, latent_columns
from .masks import latent_mask, paste
from .models import Pipeline
from .params import PARAMS
from .prompts import encode_prompt
from .recipes import (
    FOLLOWED,
    Recipe,
    check_recipe,
    load_recipe_model,
    make_recipe,
    prompt_from_recipe,
    scheduler_from_recipe,
    seed_from_recipe,
    warn_of_other_weights,
)
from .torch_defaults import torch_defaults


def text_to_audio(
    pipe: Pipeline,
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
    ``pipe(prompt)`` itself makes, unless the model asks for more than that (`denoise.first_noise`,
    `denoise.perturbed_attention`). The pipeline is left as it was found, also after an error.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As ``load_pipeline`` gives it.
    prompt : str or list of str
        What to hear; an empty one asks for the unconditional model. A list of prompts, seeds or generators gives a list
        of clips.
    negative_prompt : str or list of str, optional
        What not to hear.
    seed : int or list of int, optional
        Where the noise comes from, from 0 to 2**32 - 1: the same seed gives the same noise, whatever else is in the
        batch. A range, or an array of NumPy or torch, is a list as well. Default: 0, unless there is a generator.
    num_inference_steps, guidance_scale : int, float, optional
        Default: the model's own.
    duration_s : float, optional
        In [0.01, 3600]. Default: one clip of the model, 5.12 s. Longer ones are denoised in
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
    orders = line_up(pipe, prompt, negative_prompt, seed, generator, guidance_scale)
    settings = check_settings(pipe, num_inference_steps, duration_s, loop, batch_size, callback=callback_on_step_end)
    return one_or_list(make_ordered(pipe, "text_to_audio", orders, settings), prompt, seed, generator)


@torch_defaults()
def replay(clip_or_recipe: Clip | Recipe, pipe: Pipeline | None = None) -> Clip:
    """Make a clip of `text_to_audio` or `interpolate` again from its recipe.

    On the same weights, device and versions it is the same clip; other weights, and other LoRAs, are said.

    Parameters
    ----------
    clip_or_recipe : Clip or dict
        A generated clip (also one opened from a PNG), or its recipe.
    pipe : StableDiffusionPipeline, optional
        Default: the recipe's model, if it is riffling or was downloaded from the Hugging Face Hub before. Any other is
        for you to load, since a recipe may be a stranger's: ``replay(clip, load_pipeline("owner/name"))``.

    Returns
    -------
    Clip

    Raises
    ------
    OSError
        If there is no pipeline and the recipe's model is not on this computer: nothing is downloaded.
    TypeError, ValueError
        If there is no recipe, or none that can be followed: one of a clip made from another clip does not hold that.
        Or if the clip was made with a LoRA, and there is no pipeline that has it.

    Notes
    -----
    Taught in: 03
    """
    from .interpolation import interpolate  # which builds on this module

    recipe = check_recipe(getattr(clip_or_recipe, "recipe", clip_or_recipe))
    scheduler = scheduler_from_recipe(recipe)
    pipe = load_recipe_model(recipe) if pipe is None else pipe
    warn_of_other_weights(recipe, pipe, "the clip was made")
    arguments = {name: recipe[name] for name in FOLLOWED[recipe["kind"]]}
    with left_as_found(pipe):
        pipe.scheduler = scheduler
        if recipe["kind"] == "text_to_audio":
            seed = seed_from_recipe(arguments.pop("seed"))
            return text_to_audio(pipe, seed=seed, **arguments)
        start = prompt_from_recipe(arguments.pop("start"))
        end = prompt_from_recipe(arguments.pop("end"))
        alpha = arguments.pop("alpha")
        return next(interpolate(pipe, start, end, num_clips=1, curve=lambda _: alpha, **arguments))


@dataclass(frozen=True)
class Task:
    """What one clip is to be made from."""

    job: Callable[[], Job]  # words and noise take memory: they are made when their turn comes
    guidance_scale: float
    strength: float  # counts only where there is a source
    facts: dict[str, Any]  # for the recipe


def make_ordered(pipe: Pipeline, kind: str, orders: list[Order], settings: Settings) -> list[Clip]:
    """Make a clip of each order, after the remarks on them."""
    remark(pipe, orders, settings.source.end_prompt if settings.source else None)
    tasks = []
    for order in orders:
        facts = order.given("prompt")
        if settings.source is None:
            del facts["strength"]
        job = partial(make_job, pipe, order, settings.n_columns)
        tasks.append(Task(job, order.guidance_scale, order.strength, facts))
    return list(make_clips(pipe, kind, tasks, settings))


def make_clips(pipe: Pipeline, kind: str, tasks: list[Task], settings: Settings) -> Iterator[Clip]:
    """Make clips, those that a batch can hold together, `batch_size` at a time; each is made when it is asked for."""

    def what_a_batch_shares(task: Task) -> tuple:
        first = settings.source and (task.strength == 1, first_step(settings.num_inference_steps, task.strength))
        return task.guidance_scale, first

    for _, group in groupby(tasks, what_a_batch_shares):
        alike = list(group)
        for start in range(0, len(alike), settings.batch_size):
            with left_as_found(pipe):  # not across a yield: in between, the pipe is the caller's
                clips = _make_batch(pipe, kind, alike[start : start + settings.batch_size], settings)
            yield from clips


def _make_batch(pipe: Pipeline, kind: str, tasks: list[Task], settings: Settings) -> list[Clip]:
    """Denoise a batch, decode its clips one by one."""
    jobs, loop, source = [task.job() for task in tasks], settings.loop, settings.source
    options = {"num_inference_steps": settings.num_inference_steps, "loop": loop, "callback": settings.callback}
    maximum, mask = (source.clip.maximum, source.mask) if source else (None, None)
    if source is None:
        latents = from_noise(pipe, jobs, **options)
    else:
        pipe.scheduler = begins_in_the_middle(pipe.scheduler)
        clean = encode(pipe, source.clip.image, loop=loop)
        if mask is not None:
            options["mask"] = latent_mask(mask, clean.shape[-1]).to(clean.device)
        if source.end_prompt is not None:
            options["end_words"] = _encode(pipe, source.end_prompt)
        latents = from_clip(pipe, jobs, clean, strength=tasks[0].strength, **options)
    clips = []
    for task, latent in zip(tasks, latents.split(1), strict=True):
        picture = decode(pipe, latent, loop=loop)
        picture = picture.crop((0, 0, settings.n_columns, picture.height))
        if mask is not None:
            picture = paste(source.clip.image, picture, mask)
        recipe = make_recipe(pipe, kind, **task.facts, **settings.given())
        clips.append(Clip.from_picture(Picture(picture, PARAMS, maximum, loop, recipe)))
    return clips


def make_job(pipe: Pipeline, order: Order, n_columns: int, generator: torch.Generator | None = None) -> Job:
    """Encode an order's words and draw its noise, for a picture of `n_columns`.

    `generator` goes on drawing where another window of the same clip has stopped; default: the order's own, anew.
    """
    generator = generator or order.noise()
    return Job(
        words=_encode(pipe, order.text),
        no_words=_encode(pipe, order.negative_prompt or ""),
        noise=draw_noise(pipe, generator, latent_columns(pipe, n_columns)),
        generator=generator,
        guidance_scale=order.guidance_scale,
    )


def _encode(pipe: Pipeline, text: str) -> torch.Tensor:
    return encode_prompt(pipe, taught_prompt(pipe, text)[0])
