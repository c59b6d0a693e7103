"""From a clip to another one: restyled, partly made anew, or longer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .checks import (
    LONGEST_S,
    Order,
    Settings,
    Source,
    check_prompt,
    check_settings,
    is_list,
    line_up,
    one_or_list,
    remark,
)
from .clip import Clip
from .denoise import Callback, begins_in_the_middle, check_scheduler, from_clip, left_as_found
from .generate import make_job, make_ordered
from .image import Picture
from .loops import clip_size, decode, encode
from .masks import as_mask
from .models import Pipeline
from .params import COLUMNS_PER_S, PARAMS
from .recipes import make_recipe
from .values import check_number

GRID = 8  # columns of the picture in one of the latents


def audio_to_audio(
    pipe: Pipeline,
    clip: Clip,
    prompt: str | Sequence[str],
    *,
    strength: float = 0.55,
    end_prompt: str | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Restyle a clip: keep its outline, and let the prompt fill it anew.

    The clip's latents are noised up to `strength` and denoised with the prompt (SDEdit,
    https://arxiv.org/abs/2108.01073). A long clip is denoised in overlapping windows, whose predictions are averaged
    at every step, so there are no joins; nothing of its end is lost.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of any length. One of other params is converted to the model's first: mono, up to 10 kHz.
    prompt : str or list of str
        What to hear. A list of prompts, seeds or generators gives a list of clips.
    strength : float
        From 0 (the clip, through the autoencoder) to 1 (nothing of it is left).
    end_prompt : str, optional
        What to hear at the end: over the clip's length the sound changes from `prompt` to this.
    negative_prompt, seed, num_inference_steps, guidance_scale, batch_size, generator, callback_on_step_end
        As in `text_to_audio`. Of the steps, ``int(strength * num_inference_steps)`` are taken (see
        `denoise.first_step`).
    loop : bool, optional
        Whether the end leads into the beginning. Default: as the clip, where its length allows it.

    Returns
    -------
    Clip or list of Clip
        As long and, where it is known, as loud as the given one.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; before the first step.

    Notes
    -----
    Taught in: 07
    """
    if end_prompt is not None:
        end_prompt = check_prompt(end_prompt, "end_prompt")
    source = Source(for_model(clip), end_prompt=end_prompt)
    orders = line_up(pipe, prompt, negative_prompt, seed, generator, guidance_scale, strength)
    settings = check_settings(pipe, num_inference_steps, None, loop, batch_size, source, callback_on_step_end)
    return one_or_list(make_ordered(pipe, "audio_to_audio", orders, settings), prompt, seed, generator)


def inpaint(
    pipe: Pipeline,
    clip: Clip,
    mask: np.ndarray | Image.Image | tuple[float, ...],
    prompt: str | Sequence[str],
    *,
    strength: float = 1.0,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    loop: bool | None = None,
    batch_size: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip | list[Clip]:
    """Make a part of a clip anew; the rest of its picture stays bit for bit.

    After every step, the latents outside the mask are the clip's own again, at that step's noise (RePaint,
    https://arxiv.org/abs/2201.09865, without its resampling); at the end the clip's own pixels are put back.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of the model's params; `audio_to_audio` says how to convert others.
    mask : array, PIL.Image.Image or tuple
        Of the picture's size: True or white is made anew, row 0 is the highest frequency. Or a box: (start_s, stop_s)
        or (start_s, stop_s, low_hz, high_hz). See `masks.box_mask`.
    prompt : str or list of str
        What to hear, the whole of it.
    strength : float
        Of the noise inside the mask, from 0 to 1 (nothing of the clip is left there).
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
        If an argument is wrong, or the mask is empty or of another size; before the first step.

    Notes
    -----
    Taught in: 05
    """
    source = Source(for_model(clip, keep=True), as_mask(mask, clip))
    orders = line_up(pipe, prompt, negative_prompt, seed, generator, guidance_scale, strength)
    settings = check_settings(pipe, num_inference_steps, None, loop, batch_size, source, callback_on_step_end)
    return one_or_list(make_ordered(pipe, "inpaint", orders, settings), prompt, seed, generator)


def extend(
    pipe: Pipeline,
    clip: Clip,
    prompt: str | Sequence[str],
    *,
    seconds: float,
    before: bool = False,
    memory_s: float = 2.56,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: torch.Generator | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip:
    """Go on where a clip ends, or begin before it does: outpainting in time.

    Window after window, the last `memory_s` seconds are kept and the rest of the model's 5.12 s is made anew, so that
    each window hears the one before it. What was there stays bit for bit; of a window that another one follows, the
    last 80 ms are made again. Memory grows with the picture only.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of the model's params, and at least 0.08 s long.
    prompt : str or list of str
        What to hear. The prompts of a list follow one another in time, each for an equal part of `seconds`: of two
        prompts and 10 seconds the first one is heard for 5 s, then the second one. Each part hears the end of the part
        before it (with `before`, the beginning of the part after it), so the sound changes without a break.
    seconds : float
        How much to add, in [0.01, 3600].
    before : bool
        Add it before the beginning instead of behind the end.
    memory_s : float
        What each window hears of the one before it, in [0.08, 4.48].
    negative_prompt : str or list of str, optional
        What not to hear: one for all parts, or one for each.
    seed, num_inference_steps, guidance_scale, generator, callback_on_step_end
        As in `text_to_audio`, but one seed or one generator: it is one clip. For several takes call `extend` for each.

    Returns
    -------
    Clip
        With the clip's level; no loop.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; before the first step.

    Notes
    -----
    Taught in: 05
    """
    clip = for_model(clip, keep=True)
    for name, value in {"seed": seed, "generator": generator}.items():
        if is_list(value):
            raise TypeError(f"{name} must be a single one, not {value!r}: for several takes call extend for each")
    orders = line_up(pipe, prompt, negative_prompt, seed, generator, guidance_scale)
    seconds = check_number("seconds", seconds, 1 / COLUMNS_PER_S, LONGEST_S)
    n_new = max(1, round(seconds * COLUMNS_PER_S))
    if len(orders) > n_new:
        raise ValueError(f"{len(orders)} prompts for {seconds:g} s: give each at least {1 / COLUMNS_PER_S:g} s")
    window = clip_size(pipe)[1] * pipe.vae_scale_factor
    memory_s = check_number("memory_s", memory_s, GRID / COLUMNS_PER_S, (window - 64) / COLUMNS_PER_S)
    memory = min(round(memory_s * COLUMNS_PER_S), clip.image.width) // GRID * GRID
    if memory == 0:
        raise ValueError(f"the clip lasts {clip.duration_s:g} s: to go on from it, it must last at least 0.08 s")
    settings = check_settings(pipe, num_inference_steps, None, False, 1, callback=callback_on_step_end)
    check_scheduler(pipe, settings.num_inference_steps, from_clip=True)
    remark(pipe, orders)
    facts = {"seconds": seconds, "before": bool(before), "memory_s": memory / COLUMNS_PER_S}
    facts |= orders[0].given("prompt")
    if is_list(prompt):
        facts["prompt"] = [order.text for order in orders]
    if is_list(negative_prompt):
        facts["negative_prompt"] = [order.negative_prompt for order in orders]
    turn = slice(None, None, -1 if before else 1)  # before the beginning is behind the end of the mirror image
    picture = np.asarray(clip.image)[:, turn]
    with left_as_found(pipe):
        pipe.scheduler = begins_in_the_middle(pipe.scheduler)
        generator = orders[0].noise()
        for part, order in enumerate(orders[turn], start=1):
            end = clip.image.width + round(n_new * part / len(orders))
            # the open end of a window sounds like one: no part ends there but the last
            n_columns = end if part == len(orders) else end + GRID
            picture = _go_on(
                pipe,
                picture,
                order,
                settings,
                n_columns=n_columns,
                memory=memory,
                before=bool(before),
                generator=generator,
            )
            picture = picture[:, :end]
        facts["num_inference_steps"] = settings.num_inference_steps
        recipe = make_recipe(pipe, "extend", **facts, **Source(clip).given())
    made = Image.fromarray(picture[:, turn])
    return Clip.from_picture(Picture(made, PARAMS, clip.maximum, loop=False, recipe=recipe))


def _go_on(
    pipe: Pipeline,
    picture: np.ndarray,
    order: Order,
    settings: Settings,
    *,
    n_columns: int,
    memory: int,
    before: bool,
    generator: torch.Generator,
) -> np.ndarray:
    """Add windows to a picture until it has `n_columns` or more; each keeps the last `memory` columns before it.

    Parameters
    ----------
    picture : np.ndarray [shape=(512, columns, 3), uint8]
        With `before`, mirrored in time.
    order : Order
        What to hear in the new columns.
    generator : torch.Generator
        Each window goes on drawing where the one before it has stopped.

    Returns
    -------
    np.ndarray [shape=(512, n_columns or more, 3), uint8]
        Mirrored if the picture was.
    """
    window = clip_size(pipe)[1] * pipe.vae_scale_factor
    turn = slice(None, None, -1 if before else 1)
    n_given = picture.shape[1]
    while picture.shape[1] < n_columns:
        if picture.shape[1] > n_given:
            picture = picture[:, :-GRID]  # the open end of a window sounds like one
        job = make_job(pipe, order, window, generator)
        # what is not known is no silence either, which the encoder would smear into what is
        known = np.pad(picture[:, -memory:], ((0, 0), (0, window - memory), (0, 0)), mode="reflect")
        clean = encode(pipe, Image.fromarray(known[:, turn]), loop=False)
        is_new = torch.arange(clean.shape[-1], device=clean.device) >= memory // GRID
        mask = (is_new.flip(0) if before else is_new).expand(clean.shape[-2], -1)
        latents = from_clip(
            pipe,
            [job],
            clean,
            num_inference_steps=settings.num_inference_steps,
            strength=1.0,
            loop=False,
            mask=mask,
            callback=settings.callback,
        )
        made = np.asarray(decode(pipe, latents, loop=False))[:, turn]
        picture = np.concatenate([picture, made[:, memory:]], axis=1)
    return picture


def for_model(clip: object, *, keep: bool = False) -> Clip:
    """Give a clip as the models know it: mono, 44,100 Hz, up to 10 kHz. `keep`: refuse others."""
    if not isinstance(clip, Clip):
        raise TypeError(f"clip must be a Clip, not {clip!r}: make one with Clip.from_audio or Clip.from_image")
    if clip.params == PARAMS:
        return clip
    if keep:
        advice = f"convert it first with Clip.from_audio(clip.waveform, {clip.sample_rate})"
        raise ValueError(f"the clip's params are not the model's, so its picture cannot be kept: {advice}")
    return Clip.from_audio(clip.waveform, clip.sample_rate, loop=clip.loop)
