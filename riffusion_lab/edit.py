"""From a clip to another one: restyled, partly made anew, or longer."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .checks import (
    COLUMNS_PER_S,
    LONGEST_S,
    PARAMS,
    Order,
    check_guidance,
    check_length,
    check_pipe,
    check_prompt,
    check_steps,
    check_strength,
    line_up,
    one_or_list,
    remarks,
    taught_prompt,
)
from .clip import Clip
from .denoise import Callback, Job, begins_in_the_middle, from_clip, left_as_found
from .generate import make_job
from .loops import clip_columns, decode, encode, latent_columns
from .masks import as_mask, latent_mask, paste
from .prompts import encode_prompt
from .recipes import Recipe, make_recipe
from .values import check_number, check_whole

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GRID = 8  # columns of the picture in one of the latents


def audio_to_audio(
    pipe: StableDiffusionPipeline,
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
        As in `text_to_audio`. Of the steps, ``int(strength * num_inference_steps)`` are taken.
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
    check_pipe(pipe)
    if end_prompt is not None:
        check_prompt(end_prompt, "end_prompt")
    clips = _edit(
        pipe,
        "audio_to_audio",
        for_model(clip),
        line_up(prompt, negative_prompt, seed, generator),
        strength=strength,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        loop=loop,
        batch_size=batch_size,
        callback=callback_on_step_end,
        end_prompt=end_prompt,
    )
    return one_or_list(clips, prompt, seed, generator)


def inpaint(
    pipe: StableDiffusionPipeline,
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
    check_pipe(pipe)
    clips = _edit(
        pipe,
        "inpaint",
        _check_model_params(clip),
        line_up(prompt, negative_prompt, seed, generator),
        strength=strength,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        loop=loop,
        batch_size=batch_size,
        callback=callback_on_step_end,
        mask=as_mask(mask, clip),
    )
    return one_or_list(clips, prompt, seed, generator)


def extend(
    pipe: StableDiffusionPipeline,
    clip: Clip,
    prompt: str,
    *,
    seconds: float,
    before: bool = False,
    memory_s: float = 2.56,
    negative_prompt: str | None = None,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: torch.Generator | None = None,
    callback_on_step_end: Callback | None = None,
) -> Clip:
    """Go on where a clip ends, or begin before it does: outpainting in time.

    Window after window, the last `memory_s` seconds are kept and the rest of the model's 5.12 s is made anew, so that
    each window hears the one before it. What was there stays bit for bit. Memory grows with the picture only.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    clip : Clip
        Of the model's params, and at least 0.08 s long.
    prompt : str
        What to hear.
    seconds : float
        How much to add, in (0, 3600].
    before : bool
        Add it before the beginning instead of behind the end.
    memory_s : float
        What each window hears of the one before it, in [0.08, 4.48].
    negative_prompt, seed, num_inference_steps, guidance_scale, generator, callback_on_step_end
        As in `text_to_audio`.

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
    check_pipe(pipe)
    clip = _check_model_params(clip)
    order = line_up(prompt, negative_prompt, seed, generator)[0]
    if not 0 < check_number("seconds", seconds) <= LONGEST_S:
        raise ValueError(f"seconds must be above 0 and at most {LONGEST_S}, not {seconds!r}")
    window = clip_columns(pipe) * pipe.vae_scale_factor
    memory = round(check_number("memory_s", memory_s) * COLUMNS_PER_S) // GRID * GRID
    if not GRID <= memory <= window - 64:
        raise ValueError(f"memory_s must be from 0.08 to {(window - 64) / COLUMNS_PER_S:g}, not {memory_s!r}")
    memory = min(memory, clip.image.width // GRID * GRID)
    if memory == 0:
        raise ValueError(f"the clip lasts {clip.duration_s:g} s: to go on from it, it must last at least 0.08 s")
    steps, guidance_scale = check_steps(pipe, num_inference_steps), check_guidance(pipe, guidance_scale)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "seconds": float(seconds)}
    settings |= {"before": bool(before), "memory_s": memory / COLUMNS_PER_S}
    for remark in dict.fromkeys(remarks(pipe, [order], guidance_scale)):
        warnings.warn(remark, stacklevel=2)
    picture, n_columns = np.asarray(clip.image), clip.image.width + max(1, round(seconds * COLUMNS_PER_S))
    with left_as_found(pipe):
        pipe.scheduler = begins_in_the_middle(pipe.scheduler)
        own = order.noise()
        while picture.shape[1] < n_columns:
            job = make_job(pipe, order, guidance_scale, window, own)
            known = picture[:, :memory] if before else picture[:, -memory:]
            new = _go_on(pipe, job, known, window, steps, callback_on_step_end, before=before)
            picture = np.concatenate([new, picture] if before else [picture, new], axis=1)
        recipe = make_recipe(pipe, "extend", **order.given(), **settings, source_sha256=picture_hash(clip))
    picture = picture[:, -n_columns:] if before else picture[:, :n_columns]
    return _same_level(Image.fromarray(picture), clip, loop=False, recipe=recipe)


def _go_on(
    pipe: StableDiffusionPipeline,
    job: Job,
    known: np.ndarray,
    window: int,
    steps: int,
    callback: Callback | None,
    *,
    before: bool,
) -> np.ndarray:
    """Make a window of which one end is known; pixels [shape=(512, columns, 3), uint8] of the new part."""
    n_known = known.shape[1]
    blank = np.full((known.shape[0], window - n_known, 3), 255, np.uint8)
    clean = encode(
        pipe, Image.fromarray(np.concatenate([blank, known] if before else [known, blank], axis=1)), loop=False
    )
    is_new = torch.arange(clean.shape[-1], device=clean.device) * pipe.vae_scale_factor >= n_known
    mask = (is_new.flip(0) if before else is_new).expand(clean.shape[-2], -1)
    options = {"num_inference_steps": steps, "strength": 1.0, "loop": False, "callback": callback}
    made = np.asarray(decode(pipe, from_clip(pipe, [job], clean, mask=mask, **options), loop=False))
    return made[:, : window - n_known] if before else made[:, n_known:]


def _edit(
    pipe: StableDiffusionPipeline,
    kind: str,
    clip: Clip,
    orders: list[Order],
    *,
    strength: float,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    loop: bool | None,
    batch_size: int,
    callback: Callback | None,
    mask: np.ndarray | None = None,
    end_prompt: str | None = None,
) -> list[Clip]:
    """Noise a clip and denoise it again: all of it, or what a mask marks."""
    settings = {
        "strength": check_strength(strength),
        "num_inference_steps": check_steps(pipe, num_inference_steps),
        "guidance_scale": check_guidance(pipe, guidance_scale),
        "loop": check_length(pipe, clip.duration_s, loop, loop_by_default=clip.loop)[1],
    }
    batch_size = check_whole("batch_size", batch_size, 1, math.inf)
    for remark in dict.fromkeys(remarks(pipe, orders, settings["guidance_scale"])):
        warnings.warn(remark, stacklevel=3)
    old, extra = clip.image, {} if mask is None else {"mask_sha256": hashlib.sha256(mask).hexdigest()}
    options = {name: settings[name] for name in ("strength", "num_inference_steps", "loop")}
    clips = []
    with left_as_found(pipe):
        pipe.scheduler = begins_in_the_middle(pipe.scheduler)
        clean = encode_clip(pipe, clip, loop=settings["loop"])
        if end_prompt is not None:
            extra["end_prompt"] = end_prompt
            options["end_words"] = encode_prompt(pipe, taught_prompt(pipe, end_prompt)[0])
        if mask is not None:
            options["mask"] = latent_mask(mask, clean.shape[-1]).to(clean.device)
        for start in range(0, len(orders), batch_size):
            batch = orders[start : start + batch_size]
            jobs = [make_job(pipe, order, settings["guidance_scale"], old.width) for order in batch]
            latents = from_clip(pipe, jobs, clean, **options, callback=callback)
            for order, latent in zip(batch, latents.split(1), strict=True):
                new = decode(pipe, latent, loop=settings["loop"]).crop((0, 0, *old.size))
                picture = new if mask is None else paste(old, new, mask)
                recipe = make_recipe(pipe, kind, **order.given(), **settings, **extra, source_sha256=picture_hash(clip))
                clips.append(_same_level(picture, clip, loop=settings["loop"], recipe=recipe))
    return clips


def _same_level(picture: Image.Image, clip: Clip, *, loop: bool, recipe: Recipe) -> Clip:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the picture lasts")  # the clip has said so already
        return Clip.from_image(picture, params=PARAMS, loop=loop, recipe=recipe, maximum=clip.maximum)


def picture_hash(clip: Clip) -> str:
    """SHA-256 (hexadecimal) of a clip's pixels."""
    return hashlib.sha256(clip.image.tobytes()).hexdigest()


def encode_clip(pipe: StableDiffusionPipeline, clip: Clip, *, loop: bool) -> Tensor:
    """Latents of a clip [shape=(1, 4, 64, columns)], filled up with silence to a width that the U-Net takes."""
    picture = clip.image
    width = latent_columns(pipe, picture.width) * pipe.vae_scale_factor
    return encode(pipe, ImageOps.expand(picture, (0, 0, width - picture.width, 0), fill="white"), loop=loop)


def _check_clip(clip: object) -> Clip:
    if not isinstance(clip, Clip):
        raise TypeError(f"clip must be a Clip, not {clip!r}: make one with Clip.from_audio or Clip.from_image")
    return clip


def for_model(clip: Clip) -> Clip:
    """A clip as the models know it: mono, 44,100 Hz, up to 10 kHz."""
    if _check_clip(clip).params == PARAMS:
        return clip
    return Clip.from_audio(clip.waveform, clip.sample_rate, loop=clip.loop)


def _check_model_params(clip: Clip) -> Clip:
    if _check_clip(clip).params != PARAMS:
        raise ValueError(
            "the clip's params are not the model's, so its picture cannot be kept: convert it first with "
            f"Clip.from_audio(clip.waveform, {clip.sample_rate})"
        )
    return clip
