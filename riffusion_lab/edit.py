"""From a clip to another one: restyled, inpainted, or longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, overload

import numpy as np
import torch
from PIL import Image

from .clip import Clip
from .conditioning import encode_point, noise_generator
from .generate import generate_clips
from .image import Picture
from .latents import decode, encode
from .masks import as_mask
from .models import Pipeline
from .params import COLUMNS_PER_S, PARAMS
from .prompts import check_prompt
from .recipes import make_recipe
from .requests import (
    LONGEST_S,
    CommonOptions,
    Options,
    Point,
    as_model_clip,
    broadcast_arguments,
    check_model_clip,
    check_options,
    clip_width,
    is_list,
    one_or_list,
    source_facts,
    warn_of_hints,
)
from .sampling import Callback, check_scheduler, from_clip, img2img_scheduler, isolated_pipeline
from .torch_defaults import torch_defaults
from .values import check_number

FEWEST_NEW = 64  # the fewest columns that a window of `extend` may add


@overload
def audio_to_audio(
    pipe: Pipeline,
    clip: Clip,
    prompt: str,
    *,
    strength: float = 0.55,
    end_prompt: str | None = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[CommonOptions],
) -> Clip: ...
@overload
def audio_to_audio(
    pipe: Pipeline,
    clip: Clip,
    prompt: str | Sequence[str],
    *,
    strength: float = 0.55,
    end_prompt: str | None = None,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    **options: Unpack[CommonOptions],
) -> list[Clip]: ...
def audio_to_audio(
    pipe: Pipeline,
    clip: Clip,
    prompt: str | Sequence[str],
    *,
    strength: float = 0.55,
    end_prompt: str | None = None,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Restyle a clip: keep its outline, and fill it in with another prompt.

    The clip's latents are noised by `strength` and denoised with the prompt (SDEdit, https://arxiv.org/abs/2108.01073).
    A long clip is denoised in overlapping windows whose predictions are averaged at every step, so it is not cut into
    pieces that would have to be joined. It keeps its full length.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of any length. A clip with other params is first converted to the model's: mono, up to 10 kHz.
    prompt : str or list of str
        What to hear. A list of prompts, seeds or generators gives a list of clips.
    strength : float
        In [0, 1]; 0 gives the clip as the autoencoder reproduces it, 1 keeps nothing of it.
    end_prompt : str, optional
        What to hear at the end: over the clip's length the sound changes from `prompt` to this one.
    negative_prompt, seed, num_inference_steps, guidance_scale, batch_size, generator, callback_on_step_end
        As in `text_to_audio`. ``int(strength * num_inference_steps)`` steps are taken (see `sampling.first_step`).
    loop : bool, optional
        Whether the end leads into the beginning. Default: as in the clip, where its length allows it.

    Returns
    -------
    Clip or list of Clip
        As long as the clip. If the amplitude of the clip's loudest point is known, the result has the same; its average
        level may still differ.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; raised before the first step.
    FloatingPointError
        If latents or picture are not finite.

    Notes
    -----
    Taught in: 07
    """
    if end_prompt is not None:
        end_prompt = check_prompt(end_prompt, "end_prompt")
    source = as_model_clip(clip)
    points = broadcast_arguments(
        pipe,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        generator=generator,
        guidance_scale=guidance_scale,
        strength=strength,
    )
    options = check_options(
        pipe,
        num_inference_steps=num_inference_steps,
        loop=loop,
        batch_size=batch_size,
        source=source,
        end_prompt=end_prompt,
        callback=callback_on_step_end,
    )
    warn_of_hints(pipe, points, end_prompt)
    clips = list(generate_clips(pipe, "audio_to_audio", points, options))
    return one_or_list(clips, prompt, seed, generator)


@overload
def inpaint(
    pipe: Pipeline,
    clip: Clip,
    mask: np.ndarray | Image.Image | tuple[float, ...],
    prompt: str,
    *,
    strength: float = 1.0,
    negative_prompt: str | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[CommonOptions],
) -> Clip: ...
@overload
def inpaint(
    pipe: Pipeline,
    clip: Clip,
    mask: np.ndarray | Image.Image | tuple[float, ...],
    prompt: str | Sequence[str],
    *,
    strength: float = 1.0,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    **options: Unpack[CommonOptions],
) -> list[Clip]: ...
def inpaint(
    pipe: Pipeline,
    clip: Clip,
    mask: np.ndarray | Image.Image | tuple[float, ...],
    prompt: str | Sequence[str],
    *,
    strength: float = 1.0,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Inpaint (regenerate) a part of a clip; the rest of its picture stays bit-identical.

    After every step, the latents outside the mask are reset to the clip's own, at that step's noise level (RePaint,
    https://arxiv.org/abs/2201.09865, without its resampling). At the end the clip's own pixels are pasted back.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of the model's params; convert others with ``Clip.from_audio(clip.waveform, clip.sample_rate)``.
    mask : array, PIL.Image.Image or tuple
        An array or image of the size of the clip's picture: True or white is inpainted, and row 0 is the highest
        frequency. Or a box: (start_s, stop_s) or (start_s, stop_s, low_hz, high_hz). See `masks.box_mask`.
    prompt : str or list of str
        What to hear in the whole clip, not only inside the mask.
    strength : float
        Inside the mask, in [0, 1]; 1 keeps nothing of the clip there.
    negative_prompt, seed, num_inference_steps, guidance_scale, batch_size, generator, callback_on_step_end
        As in `text_to_audio`.
    loop : bool, optional
        As in `audio_to_audio`.

    Returns
    -------
    Clip or list of Clip
        With the clip's params and level.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the mask is empty or of another size; raised before the first step.
    FloatingPointError
        If latents or picture are not finite.

    Notes
    -----
    Taught in: 05
    """
    source = check_model_clip(clip)
    mask_array = as_mask(mask, source)
    points = broadcast_arguments(
        pipe,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        generator=generator,
        guidance_scale=guidance_scale,
        strength=strength,
    )
    options = check_options(
        pipe,
        num_inference_steps=num_inference_steps,
        loop=loop,
        batch_size=batch_size,
        source=source,
        mask=mask_array,
        callback=callback_on_step_end,
    )
    warn_of_hints(pipe, points)
    clips = list(generate_clips(pipe, "inpaint", points, options))
    return one_or_list(clips, prompt, seed, generator)


def extend(
    pipe: Pipeline,
    clip: Clip,
    prompt: str | Sequence[str],
    *,
    seconds: float,
    before: bool = False,
    memory_s: float = 2.56,
    negative_prompt: str | Sequence[str | None] | None = None,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: torch.Generator | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip:
    """Continue a clip beyond its end, or before its beginning: outpainting in time.

    The new part is generated window by window. Each window keeps the last `memory_s` seconds as context and generates
    the rest of the model's 5.12 s, so it continues the window before it. The clip itself stays bit-identical. The last
    80 ms of a generated window are regenerated by the next one. Memory use grows only with the picture.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of the model's params, and at least 0.08 s long.
    prompt : str or list of str
        What to hear. The prompts of a list follow one another in time, each for an equal part of `seconds`: with two
        prompts and 10 seconds, the first is heard for 5 s, then the second. Each part continues the part before it
        (with `before`, it leads into the part after it), so the sound changes without a break.
    seconds : float
        Seconds to add, in [0.01, 3600].
    before : bool
        Add it before the beginning instead of after the end.
    memory_s : float
        Seconds of the adjacent sound that each window gets as context, in [0.08, 4.48].
    negative_prompt : str or list of str, optional
        What not to hear: one for all parts, or one for each.
    seed, num_inference_steps, guidance_scale, generator, callback_on_step_end
        As in `text_to_audio`, but with a single seed or generator, since the result is one clip. For several takes,
        call `extend` several times.

    Returns
    -------
    Clip
        At the clip's level; not a loop.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; raised before the first step.
    FloatingPointError
        If latents or picture are not finite.

    Notes
    -----
    Taught in: 05
    """
    clip = check_model_clip(clip)
    for name, value in {"seed": seed, "generator": generator}.items():
        if is_list(value):
            raise TypeError(
                f"{name} must be a single value, not {value!r}: for several takes, call extend several times"
            )
    points = broadcast_arguments(
        pipe,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        generator=generator,
        guidance_scale=guidance_scale,
    )
    seconds = check_number("seconds", seconds, 1 / COLUMNS_PER_S, LONGEST_S)
    n_new = max(1, round(seconds * COLUMNS_PER_S))
    if len(points) > n_new:
        raise ValueError(f"{len(points)} prompts for {seconds:g} s: give each at least {1 / COLUMNS_PER_S:g} s")
    n_context = _check_memory(pipe, clip, memory_s)
    options = check_options(
        pipe,
        num_inference_steps=num_inference_steps,
        loop=False,
        callback=callback_on_step_end,
    )
    check_scheduler(pipe, options.num_inference_steps, from_clip=True)
    warn_of_hints(pipe, points)
    facts = points[0].to_recipe()
    if is_list(prompt):
        facts["prompt"] = [point.prompts[0].text for point in points]
    if is_list(negative_prompt):
        facts["negative_prompt"] = [point.prompts[0].negative_prompt for point in points]
    isolated = isolated_pipeline(pipe)
    with torch_defaults():
        isolated.scheduler = img2img_scheduler(isolated.scheduler)
        picture = _extend_picture(
            isolated,
            np.asarray(clip.image),
            points,
            options,
            n_new=n_new,
            n_context=n_context,
            before=bool(before),
        )
        recipe = make_recipe(
            isolated,
            "extend",
            seconds=seconds,
            before=bool(before),
            memory_s=n_context / COLUMNS_PER_S,
            **facts,
            num_inference_steps=options.num_inference_steps,
            **source_facts(clip),
        )
    return Clip.from_picture(Picture(Image.fromarray(picture), PARAMS, clip.maximum, loop=False, recipe=recipe))


def _check_memory(pipe: Pipeline, clip: Clip, memory_s: float) -> int:
    """Columns that each window gets as context: a whole number of latent columns, within the clip."""
    step = pipe.vae_scale_factor
    longest_s = (clip_width(pipe) - FEWEST_NEW) / COLUMNS_PER_S
    memory_s = check_number("memory_s", memory_s, step / COLUMNS_PER_S, longest_s)
    n_columns = min(round(memory_s * COLUMNS_PER_S), clip.image.width) // step * step
    if n_columns == 0:
        least_s = step / COLUMNS_PER_S
        raise ValueError(f"the clip lasts {clip.duration_s:g} s: to be extended, it must last at least {least_s:g} s")
    return n_columns


def _extend_picture(
    pipe: Pipeline,
    picture: np.ndarray,
    points: Sequence[Point],
    options: Options,
    *,
    n_new: int,
    n_context: int,
    before: bool,
) -> np.ndarray:
    """Add `n_new` columns to a picture, an equal part for each point.

    Parameters
    ----------
    picture : np.ndarray [shape=(512, columns, 3), uint8]
    n_context : int
        Columns that each window keeps of those before it.
    before : bool
        Add columns before the beginning.

    Returns
    -------
    np.ndarray [shape=(512, columns + n_new, 3), uint8]
    """
    if before:  # the same as after the end of the mirror image
        picture = _mirrored(picture)
        points = points[::-1]
    width = picture.shape[1]
    generator = noise_generator(points[0], points[0].prompts[0])
    for part, point in enumerate(points, start=1):
        end = width + round(n_new * part / len(points))
        is_last = part == len(points)
        picture = _add_windows(
            pipe,
            picture,
            point,
            options,
            # The open end of a window sounds like an ending, so only the last part may end with a window.
            n_columns=end if is_last else end + pipe.vae_scale_factor,
            n_context=n_context,
            before=before,
            generator=generator,
        )
        picture = picture[:, :end]
    return _mirrored(picture) if before else picture


def _add_windows(
    pipe: Pipeline,
    picture: np.ndarray,
    point: Point,
    options: Options,
    *,
    n_columns: int,
    n_context: int,
    before: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Add windows to a picture until it has `n_columns` or more; each keeps the last `n_context` columns before it.

    Parameters
    ----------
    picture : np.ndarray [shape=(512, columns, 3), uint8]
        With `before`, mirrored in time.
    generator : torch.Generator
        Each window continues drawing where the one before it stopped.

    Returns
    -------
    np.ndarray [shape=(512, n_columns or more, 3), uint8]
        Mirrored in time if the picture was.
    """
    is_first = True
    while picture.shape[1] < n_columns:
        if not is_first:
            picture = picture[:, : -pipe.vae_scale_factor]  # the open end of a window sounds like an ending
        context = picture[:, -n_context:]
        new_columns = _generate_window(pipe, context, point, options, before=before, generator=generator)
        picture = np.concatenate([picture, new_columns], axis=1)
        is_first = False
    return picture


def _generate_window(
    pipe: Pipeline,
    context: np.ndarray,
    point: Point,
    options: Options,
    *,
    before: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Generate what follows the context in a window of the model's own width.

    Parameters
    ----------
    context : np.ndarray [shape=(512, columns, 3), uint8]
        With `before`, mirrored in time.

    Returns
    -------
    np.ndarray [shape=(512, window - columns, 3), uint8]
        Mirrored in time if the context was.
    """
    n_context = context.shape[1]
    window = clip_width(pipe)
    conditioning = encode_point(pipe, point, window, generator=generator)
    # Mirrored context fills the rest: silence there would be smeared into the context by the encoder.
    filled = np.pad(context, ((0, 0), (0, window - n_context), (0, 0)), mode="reflect")
    init_latents = encode(pipe, Image.fromarray(_mirrored(filled) if before else filled), loop=False)
    latent_column = torch.arange(init_latents.shape[-1], device=init_latents.device)
    is_new = latent_column >= n_context // pipe.vae_scale_factor
    if before:
        is_new = is_new.flip(0)
    latents = from_clip(
        pipe,
        [conditioning],
        init_latents,
        num_inference_steps=options.num_inference_steps,
        strength=1.0,
        loop=False,
        mask=is_new.expand(init_latents.shape[-2], -1),
        callback=options.callback,
    )
    generated = np.asarray(decode(pipe, latents, loop=False))
    if before:
        generated = _mirrored(generated)
    return generated[:, n_context:]


def _mirrored(picture: np.ndarray) -> np.ndarray:
    """Mirror a picture in time."""
    return picture[:, ::-1]
