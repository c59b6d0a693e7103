"""Noise that a scheduler adds at its steps, for a clip between several seeds: along the arcs between their noises.

LCM, the ancestral and the SDE schedulers draw noise at every step. On a walk that noise must be interpolated like the
initial noise, or the clip would jump where one seed takes over from another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .blending import mix, slerp

if TYPE_CHECKING:  # importing it makes transformers print
    from diffusers import SchedulerMixin


class MixedGenerator(torch.Generator):
    """Generators of several seeds, for a clip that lies between them.

    Inside a scheduler's step (`mix_injected_noise`), ``torch.randn`` draws from each of them and mixes what they give
    by their weights, along arcs. Elsewhere nothing may be drawn from it.

    generators : list of torch.Generator
    weights : list of float
        One per generator; they add up to 1.
    """

    generators: list[torch.Generator]
    weights: list[float]

    def __new__(cls, generators: Sequence[torch.Generator], weights: Sequence[float]) -> Self:
        """Make a generator on the device of the others."""
        mixed = super().__new__(cls, generators[0].device)  # type: ignore[call-arg]  # not in torch's stubs
        mixed.generators = list(generators)
        mixed.weights = list(weights)
        return mixed

    def initial_seed(self) -> int:
        """Seed of the first generator."""
        return self.generators[0].initial_seed()

    def mixed(self, noises: Sequence[Tensor]) -> Tensor:
        """Mix one noise per generator by the weights."""
        return mix(noises, self.weights, slerp)


class _MixedDraws(TorchFunctionMode):
    """While it is active, in this thread, ``torch.randn`` understands a `MixedGenerator`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ARG002 - torch passes it
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        generator = kwargs.get("generator")
        if not isinstance(generator, MixedGenerator):
            return func(*args, **kwargs)
        if func is not torch.randn:
            raise ValueError(f"only normal noise can be mixed from several seeds, not that of torch.{func.__name__}")
        noises = []
        for each in generator.generators:
            kwargs["generator"] = each
            noises.append(func(*args, **kwargs))
        return generator.mixed(noises)


def mix_injected_noise(scheduler: SchedulerMixin, generators: Sequence[torch.Generator]) -> None:
    """Let a scheduler's steps mix the noise of clips that lie between seeds.

    Parameters
    ----------
    scheduler : SchedulerMixin
        Of one batch only: its `step` is replaced. Without a `MixedGenerator` it is not changed.
    generators : sequence of torch.Generator
        One per clip of the batch.
    """
    if not any(isinstance(generator, MixedGenerator) for generator in generators):
        return
    take_step = type(scheduler).step

    @wraps(take_step)  # the stock pipeline looks at the signature
    def step(scheduler: SchedulerMixin, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        if getattr(scheduler, "noise_sampler", False) is None:  # DPM++ SDE, before its first step
            scheduler.noise_sampler = _mixed_brownian_noise(scheduler, sample, generators)
        with _MixedDraws():
            return take_step(scheduler, model_output, timestep, sample, **options)

    scheduler.step = MethodType(step, scheduler)  # a deep copy of the scheduler gets a method of its own


def _mixed_brownian_noise(
    scheduler: SchedulerMixin, sample: Tensor, generators: Sequence[torch.Generator]
) -> Callable[[Any, Any], Tensor]:
    """Noise of DPM++ SDE, which is the increment of a Brownian motion with a seed of its own for each clip."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler  # needs torchsde

    parts = [getattr(generator, "generators", [generator]) for generator in generators]
    seeds = [part.initial_seed() for clip_parts in parts for part in clip_parts]
    sigmas = scheduler.sigmas[scheduler.sigmas > 0]
    one_per_seed = sample[:1].expand(len(seeds), *sample.shape[1:])
    draw = BrownianTreeNoiseSampler(one_per_seed, sigmas.min().item(), sigmas.max().item(), seeds)

    def draw_mixed(sigma: Any, sigma_next: Any) -> Tensor:
        by_clip = draw(sigma, sigma_next).split([len(clip_parts) for clip_parts in parts])
        noises = []
        for generator, noise in zip(generators, by_clip, strict=True):
            noises.append(generator.mixed(noise.split(1)) if isinstance(generator, MixedGenerator) else noise)
        return torch.cat(noises)

    return draw_mixed
