"""From noise to latents: through the stock pipeline, or, from a clip and inside a mask, through a loop of our own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from .loops import circular_time, clip_size, sliding_windows
from .models import Pipeline, execution_device, model_settings
from .prompts import of_one_length
from .torch_defaults import torch_defaults
from .values import check_finite

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

CIRCULAR_SHARE = 0.334  # of the steps, the last ones: a third
ROUNDING = 1e-7  # relative: a strength that was a float32 is up to 6e-8 of itself off, a float64 far less
RECOMMENDED = ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler")  # work for every Stable Diffusion
_TURN = RLock()

Callback = Callable[[Pipeline, int, Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Job:
    """What one clip's latents are to be made from.

    words, no_words : Tensor [shape=(1, tokens, width)]
        Vectors of the prompt, and of what is not wanted.
    noise : Tensor [shape=(1, 4, 64, columns)]
    generator : torch.Generator
        For schedulers that draw more noise on the way.
    guidance_scale : float
    """

    words: Tensor
    no_words: Tensor
    noise: Tensor
    generator: torch.Generator
    guidance_scale: float


def draw_noise(pipe: Pipeline, generator: torch.Generator, n_columns: int) -> Tensor:
    """Draw the noise that a clip begins with, as diffusers does: on the generator's own device.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    generator : torch.Generator
    n_columns : int
        Of the latents.

    Returns
    -------
    Tensor [shape=(1, 4, 64, n_columns)]
    """
    shape = (1, pipe.unet.config.in_channels, clip_size(pipe)[0], n_columns)
    return randn_tensor(shape, generator=generator, device=execution_device(pipe), dtype=pipe.unet.dtype)


def first_noise(pipe: Pipeline, noise: Tensor) -> Tensor:
    """Make what lasts of the noise that a clip begins with as strong as the model wants it (`steady_noise_gain`).

    The mean of noise over a clip's time decides most about register, timbre and loudness, as slow waves do of a film
    (https://arxiv.org/abs/2312.07537). Guidance lets takes of one prompt differ too little in these; the stronger their
    noise, the more they do. For most models the gain is 1, and the noise is given back as it is.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    noise : Tensor [shape=(n, 4, 64, columns)]
        Of more columns than the model's own clips have, all waves that such a clip is too short for are made stronger,
        the slower the more.

    Returns
    -------
    Tensor [like noise]

    Taught in: 03
    """
    gain, n_columns = model_settings(pipe).steady_noise_gain, noise.shape[-1]
    if gain == 1:
        return noise
    turns = torch.fft.rfftfreq(n_columns, 1 / clip_size(pipe)[1], device=noise.device)  # in a clip of the model's own
    waves = torch.fft.rfft(noise.float()) * (1 + (gain - 1) * (1 - turns).clamp(min=0))
    return torch.fft.irfft(waves, n=n_columns).to(noise.dtype)


@contextmanager
def perturbed_attention(pipe: Pipeline) -> Iterator[None]:
    """Let a guided U-Net predict worse without the words, so that guidance leads away from what is badly made, too.

    In the blocks that the model names (`pag_applied_layers`) the first half of a batch, which is not given the prompt,
    has no self-attention: each place keeps its own value instead of looking at the others. This is perturbed-attention
    guidance (https://arxiv.org/abs/2403.17377), without the third prediction that it takes there. For most models there
    are no such blocks, and nothing changes. On leaving, whatever happened, the U-Net is as it was.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        To be called, or its U-Net, with guidance only: the first half of each batch without the words.

    Notes
    -----
    Taught in: 03
    """
    layers = model_settings(pipe).pag_applied_layers
    with ExitStack() as stack:
        for name, layer in pipe.unet.named_modules():
            if name.removeprefix("_orig_mod.").startswith(layers) and name.endswith(".attn1"):
                stack.callback(layer.set_processor, layer.processor)
                layer.set_processor(_OwnValues(layer.processor))
        yield


@dataclass(frozen=True)
class _OwnValues:
    """An attention processor, as diffusers calls it: the first half of the batch does not look around."""

    attend: Callable[..., Tensor]

    def __call__(self, attention: nn.Module, hidden_states: Tensor, **options: Any) -> Tensor:
        own = attention.to_out[0](attention.to_v(hidden_states[: len(hidden_states) // 2]))
        return torch.cat([own, self.attend(attention, hidden_states, **options)[len(own) :]])


@contextmanager
def left_as_found(pipe: Pipeline) -> Iterator[None]:
    """Work on a copy of the scheduler; on leaving, whatever happened, all is as before.

    Threads take turns: networks are made circular where they are, and a live session plays beside the notebook's cells.
    """
    with _TURN, torch_defaults():
        found = dict(vars(pipe))
        try:
            pipe.scheduler = copy.deepcopy(pipe.scheduler)
            yield
        finally:
            vars(pipe).update(found)  # first of all: another thread may be reading
            for name in vars(pipe).keys() - found.keys():
                del vars(pipe)[name]


def from_noise(
    pipe: Pipeline, jobs: Sequence[Job], *, num_inference_steps: int, loop: bool, callback: Callback | None = None
) -> Tensor:
    """Run the stock pipeline from noise to latents.

    A network circular in time cannot know where the bar begins. So a loop is laid out with
    ordinary padding, and circular only in the last third of the steps, which closes the seam.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    jobs : sequence of Job
        A batch, of one guidance scale.
    num_inference_steps : int
    loop : bool
    callback : callable, optional
        As diffusers' ``callback_on_step_end``, but need not return anything.

    Returns
    -------
    Tensor [shape=(jobs, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite after a step.

    Taught in: 03
    """
    noise = torch.cat([job.noise for job in jobs])
    no_words, words = _embeddings(pipe, jobs).chunk(2)
    generators = [job.generator for job in jobs]
    _seed_own_noise(pipe.scheduler, generators)
    with ExitStack() as stack:
        close_loop = _prepare_unet(pipe, stack, jobs, loop=loop)

        def on_step_end(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            close_loop(1 - (step + 1) / pipe.num_timesteps)
            return _end_step(pipe, callback, step, timestep, tensors)

        return pipe(
            prompt_embeds=words,
            negative_prompt_embeds=no_words,
            latents=first_noise(pipe, noise),
            height=noise.shape[-2] * pipe.vae_scale_factor,
            width=noise.shape[-1] * pipe.vae_scale_factor,
            num_inference_steps=num_inference_steps,
            guidance_scale=jobs[0].guidance_scale,
            generator=generators,
            output_type="latent",
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=list({"latents", *getattr(callback, "tensor_inputs", [])}),
        ).images


@torch.no_grad()
def from_clip(
    pipe: Pipeline,
    jobs: Sequence[Job],
    clean: Tensor,
    *,
    num_inference_steps: int,
    strength: float,
    loop: bool,
    mask: Tensor | None = None,
    end_words: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Noise a clip's latents a little or a lot, and denoise them with other words: SDEdit (https://arxiv.org/abs/2108.01073).

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its scheduler must be one of `begins_in_the_middle`.
    jobs : sequence of Job
        A batch.
    clean : Tensor [shape=(1, 4, 64, columns)]
        Latents of the clip.
    num_inference_steps : int
        For the whole way; ``int(strength * num_inference_steps)`` of them are taken (see `first_step`).
    strength : float
        In [0, 1]. 1: nothing of the clip is left, as if from noise; 0: nothing is changed.
    loop : bool
    mask : Tensor [shape=(64, columns), bool], optional
        Where to make latents anew; elsewhere they are the clip's own, at the noise of each step, and at the end.
    end_words : Tensor [shape=(1, tokens, width)], optional
        Words at the clip's end; from its beginning on they take over from the jobs', column by column.
    callback : callable, optional
        As diffusers' ``callback_on_step_end``, but need not return anything.

    Returns
    -------
    Tensor [shape=(jobs, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite after a step.

    Taught in: 05, 07
    """
    clean = clean.expand(len(jobs), -1, -1, -1)
    noise = torch.cat([job.noise for job in jobs])
    if strength == 1 and mask is None:  # inside a mask the clip says what lasts
        noise = first_noise(pipe, noise)
    guide = _guide(pipe, jobs, end_words)
    with ExitStack() as stack:
        close_loop = _prepare_unet(pipe, stack, jobs, loop=loop)

        def predict(latents: Tensor, timestep: Tensor, share_left: float) -> Tensor:
            close_loop(share_left)
            return guide(latents, timestep)

        return _denoise(
            pipe,
            predict,
            clean,
            noise,
            num_inference_steps=num_inference_steps,
            strength=strength,
            generators=[job.generator for job in jobs],
            mask=mask,
            callback=callback,
        )


@torch_defaults()
def check_scheduler(pipe: Pipeline, num_inference_steps: int, *, from_clip: bool) -> None:
    """Refuse a scheduler that cannot do what is asked for: let it take all steps once, without the networks.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its scheduler is copied first, and stays as it is.
    num_inference_steps : int
    from_clip : bool
        Whether a clip is to be changed (`from_clip`), or made from noise alone.

    Raises
    ------
    ValueError
        If the scheduler fails, leads from a clip to noise, or to NaN or infinity; the message says which ones do.

    Notes
    -----
    The latents are 64 numbers, so this takes a fraction of a millisecond a step.
    """
    scheduler, trial = pipe.scheduler, copy.copy(pipe)
    clean = torch.zeros(1, 1, 8, 8)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8).expand(8, 8) < 4 if from_clip else None
    try:
        for strength in (0.5, 1) if from_clip else (1,):
            trial.scheduler = copy.deepcopy(begins_in_the_middle(scheduler) if from_clip else scheduler)
            _denoise(
                trial,
                lambda latents, _timestep, _share_left: torch.zeros_like(latents),
                clean,
                noise,
                num_inference_steps=num_inference_steps,
                strength=strength,
                generators=[torch.Generator().manual_seed(0)],
                mask=mask,
            )
        if trial.scheduler.timesteps[0] < trial.scheduler.timesteps[-1]:
            raise ValueError("it leads from a clip to noise")
    except Exception as error:  # each scheduler fails in its own way
        name, done = type(scheduler).__name__, "change" if from_clip else "make"
        cannot = f"{name} cannot {done} a clip with num_inference_steps={num_inference_steps}"
        first, second, *_ = [other for other in RECOMMENDED if other != name]
        advice = f"take diffusers' {first} or {second}, by from_config with the config of the model's own scheduler"
        raise ValueError(f"{cannot} ({type(error).__name__}: {error}): {advice}") from error


def first_step(num_inference_steps: int, strength: float) -> int:
    """Count the steps to leave out at the beginning.

    Taken are ``int(num_inference_steps * strength)``, as by diffusers, unless the product is a whole number but for
    rounding: ``100 * 0.29`` is 28.999999999999996 in floating point, and 29 steps are taken.
    """
    n_steps = num_inference_steps * strength
    if math.isclose(n_steps, round(n_steps), rel_tol=ROUNDING):
        n_steps = round(n_steps)
    return num_inference_steps - min(int(n_steps), num_inference_steps)


def begins_in_the_middle(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Give back the scheduler, or DDIM on the same noise in place of one that must begin with its first step.

    PNDM (Riffusion v1's own) repeats its second step to warm up; a walk that begins later would trail one step behind.
    """
    if isinstance(scheduler, diffusers.PNDMScheduler):
        return diffusers.DDIMScheduler.from_config(scheduler.config)
    return scheduler


def _denoise(
    pipe: Pipeline,
    predict: Callable[[Tensor, Tensor, float], Tensor],
    clean: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    strength: float,
    generators: list[torch.Generator],
    mask: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Noise latents by `strength`, and let the pipeline's scheduler denoise them.

    `predict` is the network: from latents, timestep, and the share of the steps that is left, to a prediction.
    """
    scheduler = pipe.scheduler
    _seed_own_noise(scheduler, generators)
    scheduler.set_timesteps(num_inference_steps, device=clean.device)
    begin = first_step(num_inference_steps, strength) * scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if strength == 1:
        latents = noise * scheduler.init_noise_sigma
    elif len(timesteps) == 0:
        return clean.clone()
    else:
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    options = pipe.prepare_extra_step_kwargs(generators, 0.0)
    for step, timestep in enumerate(timesteps):
        share_left = (len(timesteps) - step) / len(scheduler.timesteps)
        prediction = predict(scheduler.scale_model_input(latents, timestep), timestep, share_left)
        latents = scheduler.step(prediction, timestep, latents, **options, return_dict=False)[0]
        if mask is not None:
            is_last = step == len(timesteps) - 1
            known = clean if is_last else scheduler.add_noise(clean, noise, timesteps[step + 1 : step + 2])
            latents = torch.where(mask, latents, known)
        latents = _end_step(pipe, callback, step, timestep, {"latents": latents})["latents"]
    return latents


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
    """Give a scheduler that draws its noise without a generator (DPM++ SDE) the seeds of the clips' own."""
    if getattr(scheduler, "noise_sampler_seed", False) is None:
        scheduler.noise_sampler_seed = [generator.initial_seed() for generator in generators]


def _guide(pipe: Pipeline, jobs: Sequence[Job], end_words: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Give the U-Net with classifier-free guidance (https://arxiv.org/abs/2207.12598), as the stock pipeline has it.

    Where there are end words, predictions with the jobs' and with these are mixed, column by column.
    """
    # below 1 there is no guidance, as in the stock pipeline
    scales = jobs[0].noise.new_tensor([max(1.0, job.guidance_scale) for job in jobs])[:, None, None, None]
    n_parts = 2 if bool((scales > 1).any()) else 1
    groups = [jobs] if end_words is None else [jobs, [replace(job, words=end_words) for job in jobs]]
    embeddings = [_embeddings(pipe, group, guided=n_parts == 2) for group in groups]

    def predict(latents: Tensor, timestep: Tensor, words: Tensor) -> Tensor:
        both = pipe.unet(torch.cat([latents] * n_parts), timestep, encoder_hidden_states=words, return_dict=False)[0]
        *without, with_words = both.chunk(n_parts)
        return without[0] + scales * (with_words - without[0]) if without else with_words

    def guide(latents: Tensor, timestep: Tensor) -> Tensor:
        predictions = [predict(latents, timestep, words) for words in embeddings]
        share = torch.linspace(0, 1, latents.shape[-1], device=latents.device, dtype=latents.dtype)
        return torch.lerp(predictions[0], predictions[-1], share) if end_words is not None else predictions[0]

    return guide


def _embeddings(pipe: Pipeline, jobs: Sequence[Job], *, guided: bool = True) -> Tensor:
    """Vectors for the U-Net: those of what is not wanted first."""
    words = [job.no_words for job in jobs] * guided + [job.words for job in jobs]
    return torch.cat(of_one_length(pipe, words))


def _prepare_unet(pipe: Pipeline, stack: ExitStack, jobs: Sequence[Job], *, loop: bool) -> Callable[[float], None]:
    """Prepare the U-Net for guidance and width; the function returned is told which share of the steps is left."""
    if any(job.guidance_scale > 1 for job in jobs):
        stack.enter_context(perturbed_attention(pipe))
    width, n_columns = clip_size(pipe)[1], jobs[0].noise.shape[-1]
    if n_columns > width:
        stack.enter_context(sliding_windows(pipe.unet, width=width, hop=width // 2, loop=loop))

    def close_loop(share_left: float) -> None:
        if loop and n_columns <= width and share_left <= CIRCULAR_SHARE:
            stack.enter_context(circular_time(pipe.unet))  # those that are circular already stay as they are

    return close_loop
