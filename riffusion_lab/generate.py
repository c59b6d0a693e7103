"""From a prompt to a clip: `text_to_audio`, and the engine that all generating functions share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Unpack, overload

import torch
from PIL import Image

from .clip import Clip
from .conditioning import encode_point, encode_text
from .deprecation import moved
from .image import Picture
from .latents import decode, encode, latent_mask
from .masks import paste
from .models import Pipeline
from .params import PARAMS
from .recipes import make_recipe
from .requests import (
    CommonOptions,
    Options,
    Point,
    broadcast_arguments,
    check_options,
    one_or_list,
    warn_of_hints,
)
from .sampling import Callback, from_clip, from_noise, img2img_scheduler, isolated_pipeline, skipped_steps
from .torch_defaults import torch_defaults


@overload
def text_to_audio(
    pipe: Pipeline,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    duration_s: float | None = None,
    **options: Unpack[CommonOptions],
) -> Clip: ...
@overload
def text_to_audio(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    duration_s: float | None = None,
    **options: Unpack[CommonOptions],
) -> list[Clip]: ...
def text_to_audio(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    duration_s: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Generate a clip from a prompt.

    With ``loop=False`` and the model's own duration, the picture is bit-identical to the one that ``pipe(prompt)``
    generates, unless the model's settings also scale the noise or perturb attention (`sampling.scale_static_noise`,
    `networks.perturbed_attention`). The pipeline is not changed, even if an error occurs.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As ``load_pipeline`` returns it.
    prompt : str or list of str
        What to hear; an empty prompt asks for the unconditional model. A list of prompts, seeds or generators gives a
        list of clips.
    negative_prompt : str or list of str, optional
        What not to hear.
    seed : int or list of int, optional
        Seed of the noise, in [0, 2**32 - 1]. The same seed gives the same noise, whatever else is in the batch. A
        range, or an array of NumPy or torch, is a list as well. Default: 0, unless there is a generator.
    num_inference_steps, guidance_scale : int, float, optional
        Default: the model's own.
    duration_s : float, optional
        In [0.01, 3600]. Default: the length of the model's own clips, 5.12 s. Longer clips are denoised in overlapping
        windows.
    loop : bool, optional
        Whether the end leads into the beginning; the duration must then be a multiple of the model's own. Default: the
        model's own, where the duration allows it.
    batch_size : int
        How many clips to denoise at once: faster on a GPU, but it takes more memory.
    generator : torch.Generator or list of torch.Generator, optional
        Instead of a seed. Such a clip cannot be replayed.
    callback_on_step_end : callable, optional
        Called after each step of each batch as ``callback(pipe, step, timestep, tensors)``, as by diffusers, but it
        need not return anything. `pipe` is a shallow copy. If it raises, generation stops with that exception.

    Returns
    -------
    Clip or list of Clip
        Its level is not known; see `Clip.maximum`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; raised before the first step.
    FloatingPointError
        If latents or picture are not finite.

    Notes
    -----
    Taught in: 00, 03
    """
    points = broadcast_arguments(
        pipe,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        generator=generator,
        guidance_scale=guidance_scale,
    )
    options = check_options(
        pipe,
        num_inference_steps=num_inference_steps,
        duration_s=duration_s,
        loop=loop,
        batch_size=batch_size,
        callback=callback_on_step_end,
    )
    warn_of_hints(pipe, points)
    clips = list(generate_clips(pipe, "text_to_audio", points, options))
    return one_or_list(clips, prompt, seed, generator)


def generate_clips(pipe: Pipeline, kind: str, points: Sequence[Point], options: Options) -> Iterator[Clip]:
    """Generate the clip at each point, `batch_size` at a time, with the settings that `pipe` has at the call.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    kind : str
        Name of the public function that was called, for the recipe.
    points : sequence of Point
        As `check_point` returns them.
    options : Options

    Returns
    -------
    iterator of Clip
        Each batch is prepared when its first clip is requested, since embeddings and noise take memory.
    """
    return _generate_in_batches(isolated_pipeline(pipe), kind, points, options)


def _generate_in_batches(pipe: Pipeline, kind: str, points: Sequence[Point], options: Options) -> Iterator[Clip]:
    for _, group in groupby(points, key=lambda point: _batch_key(pipe, point, options)):
        similar = list(group)
        for start in range(0, len(similar), options.batch_size):
            batch = similar[start : start + options.batch_size]
            with torch_defaults():  # not across the yield: between batches, the caller's own defaults apply
                clips = _generate_batch(isolated_pipeline(pipe), kind, batch, options)
            yield from clips


def _batch_key(pipe: Pipeline, point: Point, options: Options) -> tuple[float, int, bool]:
    """Return what the clips of a batch share: guidance scale, first step, and whether they start from noise."""
    if options.source is None:
        return point.guidance_scale, 0, True
    skipped = skipped_steps(pipe, options.num_inference_steps, point.strength)
    return point.guidance_scale, skipped, point.strength == 1


def _generate_batch(pipe: Pipeline, kind: str, points: Sequence[Point], options: Options) -> list[Clip]:
    """Denoise a batch, then decode its clips one by one."""
    if options.source is not None:
        pipe.scheduler = img2img_scheduler(pipe.scheduler)
    latents = _denoise_batch(pipe, points, options)
    clips = []
    for point, clip_latents in zip(points, latents.split(1), strict=True):
        picture = decode(pipe, clip_latents, loop=options.loop)
        picture = picture.crop((0, 0, options.n_columns, picture.height))
        if options.source is not None and options.mask is not None:
            picture = paste(options.source.image, picture, options.mask)
        recipe = make_recipe(pipe, kind, **_recipe_facts(point, options))
        clips.append(_generated_clip(picture, options, recipe))
    return clips


def _denoise_batch(pipe: Pipeline, points: Sequence[Point], options: Options) -> torch.Tensor:
    batch = [encode_point(pipe, point, options.n_columns) for point in points]
    if options.source is None:
        return from_noise(
            pipe,
            batch,
            num_inference_steps=options.num_inference_steps,
            loop=options.loop,
            callback=options.callback,
        )
    init_latents = encode(pipe, options.source.image, loop=options.loop)
    mask = None
    if options.mask is not None:
        mask = latent_mask(options.mask, init_latents.shape[-1], vae_scale_factor=pipe.vae_scale_factor)
        mask = mask.to(init_latents.device)
    end_prompt_embeds = None
    if options.end_prompt is not None:
        end_prompt_embeds = encode_text(pipe, options.end_prompt)
    return from_clip(
        pipe,
        batch,
        init_latents,
        num_inference_steps=options.num_inference_steps,
        strength=points[0].strength,
        loop=options.loop,
        mask=mask,
        end_prompt_embeds=end_prompt_embeds,
        callback=options.callback,
    )


def _recipe_facts(point: Point, options: Options) -> dict[str, object]:
    facts = point.to_recipe()
    if options.source is None:
        facts.pop("strength", None)  # it has no effect
    return facts | options.to_recipe()


def _generated_clip(picture: Image.Image, options: Options, recipe: dict[str, object]) -> Clip:
    maximum = options.source.maximum if options.source else None
    return Clip.from_picture(Picture(picture, PARAMS, maximum, options.loop, recipe))


__getattr__ = moved(__name__, {"replay": "replaying.replay"})
