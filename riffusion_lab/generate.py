"""From a prompt to a clip, and the same clip again."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

from .checks import (
    COLUMNS_PER_S,
    PARAMS,
    Order,
    check_guidance,
    check_length,
    check_steps,
    check_whole,
    is_list,
    line_up,
    scheduler_remarks,
    taught_prompt,
)
from .clip import Clip
from .loops import circular_time, clip_columns, decode, sliding_windows
from .models import load_pipeline
from .recipes import Recipe, check_recipe, make_recipe, scheduler_from_recipe, weights_hash

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Callback = Callable[["StableDiffusionPipeline", int, Tensor, dict[str, Any]], dict[str, Any] | None]

COLUMN_STEP = 64  # pictures are made in multiples of so many columns, then trimmed
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
    if not isinstance(pipe, diffusers.StableDiffusionPipeline):
        raise TypeError(f"pipe must be a StableDiffusionPipeline, as load_pipeline() gives it, not {pipe!r}")
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator exclude each other: give one of them")
    seed = 0 if seed is None and generator is None else seed
    orders = line_up(pipe, prompt, negative_prompt, seed, generator)
    n_columns, loop = check_length(pipe, duration_s, loop)
    settings = {
        "num_inference_steps": check_steps(pipe, num_inference_steps),
        "guidance_scale": check_guidance(pipe, guidance_scale),
        "duration_s": n_columns / COLUMNS_PER_S,
        "loop": loop,
    }
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    for remark in dict.fromkeys(_remarks(pipe, orders, settings)):
        warnings.warn(remark, stacklevel=2)
    clips = []
    with _left_as_found(pipe):
        for batch in range(0, len(orders), batch_size):
            clips += _make(pipe, orders[batch : batch + batch_size], settings, callback_on_step_end)
    return clips if is_list(prompt) or is_list(seed) or is_list(generator) else clips[0]


def replay(clip_or_recipe: Clip | Recipe, pipe: StableDiffusionPipeline | None = None) -> Clip:
    """Make a generated clip again from its recipe.

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
        If there is no recipe, or none that can be followed.

    Notes
    -----
    Taught in: 03
    """
    arguments = ["prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "duration_s", "loop"]
    recipe = check_recipe(getattr(clip_or_recipe, "recipe", clip_or_recipe), "text_to_audio", arguments)
    scheduler = scheduler_from_recipe(recipe)
    pipe = load_pipeline(recipe["model"]) if pipe is None else pipe
    if weights_hash(pipe) != recipe["weights_sha256"]:
        warnings.warn(f"the clip was made with other weights of {recipe['model']}: it will differ", stacklevel=2)
    with _left_as_found(pipe):
        pipe.scheduler = scheduler
        return text_to_audio(pipe, **{name: recipe[name] for name in arguments})


def _remarks(pipe: StableDiffusionPipeline, orders: list[Order], settings: dict[str, Any]) -> Iterator[str]:
    """Tell what is likely not meant, but can be done."""
    for order in orders:
        for text in (order.prompt, order.negative_prompt or ""):
            yield from taught_prompt(pipe, text)[1]
        if order.negative_prompt and settings["guidance_scale"] <= 1:
            yield f"negative_prompt has no effect at guidance_scale={settings['guidance_scale']:g}: take more than 1"
    if settings["duration_s"] > LONG_S:
        yield f"{settings['duration_s']:g} s are more than {LONG_S} s: this will take a while"
    yield from scheduler_remarks(pipe.scheduler)


@contextmanager
def _left_as_found(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """Work on a copy of the scheduler; on leaving, whatever happened, all is as before."""
    found = dict(vars(pipe))
    try:
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        yield
    finally:
        vars(pipe).clear()
        vars(pipe).update(found)


def _make(
    pipe: StableDiffusionPipeline, orders: list[Order], settings: dict[str, Any], callback: Callback | None
) -> list[Clip]:
    """Denoise a batch, decode its clips one by one."""
    n_columns = round(settings["duration_s"] * COLUMNS_PER_S)
    latents = _denoise(pipe, orders, settings, n_columns, callback)
    clips = []
    for order, latent in zip(orders, latents.split(1), strict=True):
        picture = decode(pipe, latent, loop=settings["loop"])
        given = {
            "prompt": order.prompt,
            "negative_prompt": order.negative_prompt,
            "seed": order.seed if order.seed is None else int(order.seed),
        }
        recipe = make_recipe(pipe, "text_to_audio", **given, **settings)
        picture = picture.crop((0, 0, n_columns, picture.height))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the picture lasts")  # said before the work
            clips.append(Clip.from_image(picture, params=PARAMS, loop=settings["loop"], recipe=recipe))
    return clips


def _denoise(
    pipe: StableDiffusionPipeline,
    orders: list[Order],
    settings: dict[str, Any],
    n_columns: int,
    callback: Callback | None,
) -> Tensor:
    """Run the stock pipeline; latents of shape (clips, 4, 64, columns).

    A network circular in time cannot know where the bar begins. So a loop is laid out with
    ordinary padding, and circular only in the last third of the steps, which closes the seam.
    """
    clip_width, loop = clip_columns(pipe), settings["loop"]
    width = math.ceil(n_columns / COLUMN_STEP) * COLUMN_STEP
    is_long = width > clip_width * pipe.vae_scale_factor
    negatives = [taught_prompt(pipe, order.negative_prompt or "")[0] for order in orders]
    with ExitStack() as stack:
        if is_long:
            stack.enter_context(sliding_windows(pipe.unet, width=clip_width, hop=clip_width // 2, loop=loop))

        def on_step_end(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            steps_left = pipe.num_timesteps - 1 - step
            if loop and not is_long and steps_left == pipe.num_timesteps // 3:
                stack.enter_context(circular_time(pipe.unet))
            changed = callback(pipe, step, timestep, tensors) if callback else None
            return tensors if changed is None else changed

        return pipe(
            [taught_prompt(pipe, order.prompt)[0] for order in orders],
            negative_prompt=negatives if any(negatives) else None,
            height=PARAMS.num_frequencies,
            width=width,
            num_inference_steps=settings["num_inference_steps"],
            guidance_scale=settings["guidance_scale"],
            generator=[order.noise() for order in orders],
            output_type="latent",
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=getattr(callback, "tensor_inputs", ["latents"]),
        ).images
