"""From noise to latents with the stock pipeline; from a clip, or inside a mask, with our own denoising loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .injected_noise import mix_injected_noise
from .latents import latent_size
from .models import Pipeline, execution_device, model_settings
from .networks import circular_time, locked, perturbed_attention, sliding_windows
from .prompts import pad_to_same_length
from .torch_defaults import torch_defaults
from .values import check_finite

if TYPE_CHECKING:  # importing it makes transformers print
    from diffusers import SchedulerMixin

CIRCULAR_SHARE = 0.334  # share of the steps that are circular: the last third
ROUNDING = 1e-7  # relative: a strength that was a float32 is off by up to 6e-8, a float64 by far less
SAME_LEVEL = 0.99  # noise levels with a ratio above this are equal except for rounding
RECOMMENDED = ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler")  # work for every Stable Diffusion

Callback = Callable[[Pipeline, int, Tensor, dict[str, Any]], dict[str, Any] | None]
Predict = Callable[[Tensor, Tensor, float], Tensor]  # latents, timestep, share of the steps that is left -> prediction


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network needs to denoise one clip.

    prompt_embeds, negative_prompt_embeds : Tensor [shape=(1, tokens, width)]
    noise : Tensor [shape=(1, 4, 64, columns)]
    generator : torch.Generator
        For schedulers that add noise during sampling; a `MixedGenerator` for a clip between several seeds.
    guidance_scale : float
        At 1 or less there is no classifier-free guidance.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    noise: Tensor
    generator: torch.Generator
    guidance_scale: float


def draw_noise(pipe: Pipeline, generator: torch.Generator, n_columns: int) -> Tensor:
    """Draw the initial noise of a clip as diffusers does: on the generator's own device.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    generator : torch.Generator
    n_columns : int
        Number of latent columns.

    Returns
    -------
    Tensor [shape=(1, 4, 64, n_columns)]
    """
    shape = (1, pipe.unet.config.in_channels, latent_size(pipe)[0], n_columns)
    return randn_tensor(shape, generator=generator, device=execution_device(pipe), dtype=pipe.unet.dtype)


def scale_static_noise(pipe: Pipeline, noise: Tensor) -> Tensor:
    """Scale the part of the initial noise that is constant over time by the model's `steady_noise_gain`.

    The mean of the noise over time has the most influence on register, timbre and loudness, as the low frequencies of
    the noise have in video (https://arxiv.org/abs/2312.07537). Guidance makes clips of one prompt too similar in these
    respects; a larger gain makes them differ more. For most models the gain is 1, and the noise is returned unchanged.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    noise : Tensor [shape=(n, 4, 64, columns)]
        If it has more columns than the model's own clips, all components with a period longer than such a clip are
        scaled, the slowest ones most.

    Returns
    -------
    Tensor [like noise]

    Taught in: 03, 09
    """
    gain = model_settings(pipe).steady_noise_gain
    if gain == 1:
        return noise
    n_columns = noise.shape[-1]
    cycles_per_clip = torch.fft.rfftfreq(n_columns, 1 / latent_size(pipe)[1], device=noise.device)
    waves = torch.fft.rfft(noise.float()) * (1 + (gain - 1) * (1 - cycles_per_clip).clamp(min=0))
    return torch.fft.irfft(waves, n=n_columns).to(noise.dtype)


def isolated_pipeline(pipe: Pipeline) -> Pipeline:
    """Shallow copy of a pipeline with a scheduler of its own; the networks are shared.

    Attributes that a user sets on `pipe` meanwhile stay set, but do not affect the generation in progress.
    """
    isolated = copy.copy(pipe)
    isolated.scheduler = copy.deepcopy(pipe.scheduler)
    return isolated


def from_noise(
    pipe: Pipeline,
    batch: Sequence[Conditioning],
    *,
    num_inference_steps: int,
    loop: bool,
    callback: Callback | None = None,
) -> Tensor:
    """Run the stock pipeline from noise to latents.

    If the picture wraps around in time from the first step, the network cannot tell where the bar starts. So a loop
    begins with zero padding, and only the last third of the steps is circular, which closes the seam.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As `isolated_pipeline` returns it.
    batch : sequence of Conditioning
        All with the same guidance scale.
    num_inference_steps : int
    loop : bool
    callback : callable, optional
        As diffusers' ``callback_on_step_end``, but it need not return anything.

    Returns
    -------
    Tensor [shape=(batch, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite after a step.

    Taught in: 03
    """
    noise = torch.cat([conditioning.noise for conditioning in batch])
    negative_prompt_embeds, prompt_embeds = _concatenate_embeds(pipe, batch, is_guided=True).chunk(2)
    generators = [conditioning.generator for conditioning in batch]
    _seed_own_noise(pipe.scheduler, generators)
    with locked(pipe.unet), ExitStack() as stack:
        close_loop = _prepare_unet(pipe, stack, batch, loop=loop)

        def on_step_end(pipe: Pipeline, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            close_loop(1 - (step + 1) / pipe.num_timesteps)
            return _end_step(pipe, callback, step, timestep, tensors)

        return pipe(
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            latents=scale_static_noise(pipe, noise),
            height=noise.shape[-2] * pipe.vae_scale_factor,
            width=noise.shape[-1] * pipe.vae_scale_factor,
            num_inference_steps=num_inference_steps,
            guidance_scale=batch[0].guidance_scale,
            generator=generators,
            output_type="latent",
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=list({"latents", *getattr(callback, "tensor_inputs", [])}),
        ).images


@torch.no_grad()
def from_clip(
    pipe: Pipeline,
    batch: Sequence[Conditioning],
    init_latents: Tensor,
    *,
    num_inference_steps: int,
    strength: float,
    loop: bool,
    mask: Tensor | None = None,
    end_prompt_embeds: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Noise the latents of a clip and denoise them with other prompts: SDEdit (https://arxiv.org/abs/2108.01073).

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As `isolated_pipeline` returns it, with a scheduler from `img2img_scheduler`.
    batch : sequence of Conditioning
    init_latents : Tensor [shape=(1, 4, 64, columns)]
        Latents of the clip.
    num_inference_steps : int
        Counted from pure noise; of these, ``int(strength * num_inference_steps)`` are taken (see `first_step`).
    strength : float
        In [0, 1]. At 1 nothing of the clip is kept, as if generated from noise; at 0 nothing changes.
    loop : bool
    mask : Tensor [shape=(64, columns), bool], optional
        Where to inpaint. Outside, the latents are the clip's own, at the noise level of each step.
    end_prompt_embeds : Tensor [shape=(1, tokens, width)], optional
        Embeddings for the clip's end. The weight of their prediction rises linearly from 0 in the first column to 1 in
        the last.
    callback : callable, optional
        As diffusers' ``callback_on_step_end``, but it need not return anything.

    Returns
    -------
    Tensor [shape=(batch, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite after a step.

    Taught in: 05, 07
    """
    init_latents = init_latents.expand(len(batch), -1, -1, -1)
    noise = torch.cat([conditioning.noise for conditioning in batch])
    if strength == 1 and mask is None:  # with a mask, the clip around it decides register and timbre
        noise = scale_static_noise(pipe, noise)
    guided_unet = _guided_unet(pipe, batch, end_prompt_embeds)
    with locked(pipe.unet), ExitStack() as stack:
        close_loop = _prepare_unet(pipe, stack, batch, loop=loop)

        def predict(latents: Tensor, timestep: Tensor, share_left: float) -> Tensor:
            close_loop(share_left)
            return guided_unet(latents, timestep)

        return _denoise(
            pipe,
            predict,
            init_latents,
            noise,
            num_inference_steps=num_inference_steps,
            strength=strength,
            generators=[conditioning.generator for conditioning in batch],
            mask=mask,
            callback=callback,
        )


@torch_defaults()
def check_scheduler(pipe: Pipeline, num_inference_steps: int, *, from_clip: bool) -> None:
    """Refuse a scheduler that cannot do the job; to find out, run all its steps once without the networks.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its scheduler is copied first and stays as it is.
    num_inference_steps : int
    from_clip : bool
        Whether to start from a clip (`from_clip`) or from noise.

    Raises
    ------
    ValueError
        If the scheduler fails, adds noise instead of removing it, or leads to NaN or infinity; the message names
        schedulers that work.

    Notes
    -----
    The latents are 64 numbers, so a step takes a fraction of a millisecond.
    """
    scheduler = pipe.scheduler
    try:
        for strength in (0.5, 1) if from_clip else (1,):
            trial_scheduler = img2img_scheduler(scheduler) if from_clip else scheduler
            _try_scheduler(
                pipe,
                copy.deepcopy(trial_scheduler),
                num_inference_steps=num_inference_steps,
                strength=strength,
                with_mask=from_clip,
            )
    except Exception as error:  # each scheduler fails in its own way
        name = type(scheduler).__name__
        action = "change" if from_clip else "make"
        cannot = f"{name} cannot {action} a clip with num_inference_steps={num_inference_steps}"
        first, second, *_ = [other for other in RECOMMENDED if other != name]
        advice = f"take diffusers' {first} or {second}, by from_config with the config of the model's own scheduler"
        raise ValueError(f"{cannot} ({type(error).__name__}: {error}): {advice}") from error


def _try_scheduler(
    pipe: Pipeline, scheduler: SchedulerMixin, *, num_inference_steps: int, strength: float, with_mask: bool
) -> None:
    """Run all steps with 64 numbers as latents and a network that predicts zero."""
    trial = copy.copy(pipe)
    trial.scheduler = scheduler
    init_latents = torch.zeros(1, 1, 8, 8)
    noise = torch.randn(init_latents.shape, generator=torch.Generator().manual_seed(0))
    _denoise(
        trial,
        lambda latents, _timestep, _share_left: torch.zeros_like(latents),
        init_latents,
        noise,
        num_inference_steps=num_inference_steps,
        strength=strength,
        generators=[torch.Generator().manual_seed(0)],
        mask=torch.arange(8).expand(8, 8) < 4 if with_mask else None,
    )
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise ValueError("its timesteps rise, so it adds noise instead of removing it")


def skipped_steps(pipe: Pipeline, num_inference_steps: int, strength: float) -> int:
    """Number of steps that a strength skips, or of start levels if a few-step model has `start_sigmas`."""
    start_sigmas = model_settings(pipe).start_sigmas
    return first_step(len(start_sigmas) or num_inference_steps, strength)


def first_step(num_inference_steps: int, strength: float) -> int:
    """Number of steps to skip at the beginning.

    ``int(num_inference_steps * strength)`` steps are taken, as by diffusers, unless the product is whole except for
    rounding: ``100 * 0.29`` is 28.999999999999996 in floating point, and 29 steps are taken.
    """
    n_steps = num_inference_steps * strength
    if math.isclose(n_steps, round(n_steps), rel_tol=ROUNDING):
        n_steps = round(n_steps)
    return num_inference_steps - min(int(n_steps), num_inference_steps)


def img2img_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return a scheduler that can start at any step: for PNDM, DDIM with the same noise schedule, else the same.

    PNDM (Riffusion v1's own) repeats its second step to warm up; if it started later, it would lag one step behind.
    """
    if isinstance(scheduler, diffusers.PNDMScheduler):
        return diffusers.DDIMScheduler.from_config(scheduler.config)
    return scheduler


def _denoise(
    pipe: Pipeline,
    predict: Predict,
    init_latents: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    strength: float,
    generators: list[torch.Generator],
    mask: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Noise latents by `strength` and let the pipeline's scheduler denoise them with the network `predict`."""
    scheduler = pipe.scheduler
    _seed_own_noise(scheduler, generators)
    timesteps, n_timesteps = _set_timesteps(pipe, num_inference_steps, strength, device=init_latents.device)
    if strength == 1:
        latents = noise * scheduler.init_noise_sigma
    elif len(timesteps) == 0:
        return init_latents.clone()
    else:
        latents = scheduler.add_noise(init_latents, noise, timesteps[:1])
    step_options = pipe.prepare_extra_step_kwargs(generators, 0.0)
    for step, timestep in enumerate(timesteps):
        share_left = (len(timesteps) - step) / n_timesteps
        prediction = predict(scheduler.scale_model_input(latents, timestep), timestep, share_left)
        latents = scheduler.step(prediction, timestep, latents, **step_options, return_dict=False)[0]
        if mask is not None:
            next_timesteps = timesteps[step + 1 : step + 2]  # none after the last step
            is_last = len(next_timesteps) == 0
            outside = init_latents if is_last else scheduler.add_noise(init_latents, noise, next_timesteps)
            latents = torch.where(mask, latents, outside)
        latents = _end_step(pipe, callback, step, timestep, {"latents": latents})["latents"]
    return latents


def _set_timesteps(
    pipe: Pipeline, num_inference_steps: int, strength: float, *, device: torch.device
) -> tuple[Tensor, int]:
    """Set the scheduler's steps; return the timesteps to run, and how many there are from pure noise."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_inference_steps, device=device)
    n_timesteps = len(scheduler.timesteps)
    n_skipped = skipped_steps(pipe, num_inference_steps, strength)
    start_sigmas = model_settings(pipe).start_sigmas
    begin = n_skipped * scheduler.order
    if start_sigmas and n_skipped:
        levels = [*start_sigmas, 0.0][n_skipped:]
        later = [sigma for sigma in scheduler.sigmas.tolist() if sigma < SAME_LEVEL * levels[0]]
        scheduler.set_timesteps(sigmas=[levels[0], *later], device=device)
        begin = 0
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:], n_timesteps


def _end_step(
    pipe: Pipeline, callback: Callback | None, step: int, timestep: Tensor, tensors: dict[str, Any]
) -> dict[str, Any]:
    """Check the latents of a step, and let a callback change them."""
    n_steps = len(pipe.scheduler.timesteps)
    check_finite(f"{type(pipe.scheduler).__name__}, latents after step {step + 1} of {n_steps}", tensors["latents"])
    changed = callback(pipe, step, timestep, tensors) if callback else None
    if changed is None:
        return tensors
    if "latents" in changed:
        check_finite(f"callback_on_step_end, latents of step {step + 1} of {n_steps}", changed["latents"])
    return changed


def _seed_own_noise(scheduler: SchedulerMixin, generators: Sequence[torch.Generator]) -> None:
    """Make a scheduler draw the noise that it adds at its steps from the clips' own seeds."""
    mix_injected_noise(scheduler, generators)
    if getattr(scheduler, "noise_sampler_seed", False) is None:  # it draws without a generator (DPM++ SDE)
        scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]


def _guided_unet(
    pipe: Pipeline, batch: Sequence[Conditioning], end_prompt_embeds: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the U-Net with classifier-free guidance (https://arxiv.org/abs/2207.12598), as in the stock pipeline.

    With `end_prompt_embeds`, predictions for both prompts are mixed, column by column.
    """
    # At 1 or less there is no guidance, as in the stock pipeline.
    scales = [max(1.0, conditioning.guidance_scale) for conditioning in batch]
    is_guided = max(scales) > 1
    guidance_scale = batch[0].noise.new_tensor(scales)[:, None, None, None]
    embeds = _concatenate_embeds(pipe, batch, is_guided=is_guided)

    def predict(latents: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        if not is_guided:
            return pipe.unet(latents, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
        twice = torch.cat([latents, latents])
        predictions = pipe.unet(twice, timestep, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
        unconditional, conditional = predictions.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    if end_prompt_embeds is None:
        return lambda latents, timestep: predict(latents, timestep, embeds)

    end_batch = [replace(conditioning, prompt_embeds=end_prompt_embeds) for conditioning in batch]
    end_embeds = _concatenate_embeds(pipe, end_batch, is_guided=is_guided)

    def predict_both(latents: Tensor, timestep: Tensor) -> Tensor:
        start = predict(latents, timestep, embeds)
        end = predict(latents, timestep, end_embeds)
        share_of_end = torch.linspace(0, 1, latents.shape[-1], device=latents.device, dtype=latents.dtype)
        return torch.lerp(start, end, share_of_end)

    return predict_both


def _concatenate_embeds(pipe: Pipeline, batch: Sequence[Conditioning], *, is_guided: bool) -> Tensor:
    """Embeddings for the U-Net: with guidance the negative prompts' first, then the prompts'."""
    embeds = [conditioning.prompt_embeds for conditioning in batch]
    if is_guided:
        embeds = [conditioning.negative_prompt_embeds for conditioning in batch] + embeds
    return torch.cat(pad_to_same_length(pipe, embeds))


def _prepare_unet(
    pipe: Pipeline, stack: ExitStack, batch: Sequence[Conditioning], *, loop: bool
) -> Callable[[float], None]:
    """Prepare the U-Net for guidance and width; call the returned function with the share of steps left."""
    if any(conditioning.guidance_scale > 1 for conditioning in batch):
        stack.enter_context(perturbed_attention(pipe))
    width = latent_size(pipe)[1]
    n_columns = batch[0].noise.shape[-1]
    if n_columns > width:
        stack.enter_context(sliding_windows(pipe.unet, width=width, hop=width // 2, loop=loop))

    def close_loop(share_left: float) -> None:
        if loop and n_columns <= width and share_left <= CIRCULAR_SHARE:
            stack.enter_context(circular_time(pipe.unet))  # layers that are circular already stay as they are

    return close_loop
