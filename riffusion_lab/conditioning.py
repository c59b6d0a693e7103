"""From a point to what the network needs: embeddings and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from .blending import lerp, mix, slerp
from .hints import snap_tempo
from .injected_noise import MixedGenerator
from .latents import n_latent_columns
from .models import Pipeline
from .prompts import Prompt, encode_prompt, pad_to_same_length
from .requests import Point
from .sampling import Conditioning, draw_noise


def encode_point(
    pipe: Pipeline, point: Point, n_columns: int, *, generator: torch.Generator | None = None
) -> Conditioning:
    """Encode the prompts of a point and draw its noise.

    Embeddings are mixed along lines, noises along arcs; a single prompt is not changed by a bit.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    point : Point
        As `check_point` gives it.
    n_columns : int
        Width of the picture.
    generator : torch.Generator, optional
        Goes on drawing where another window of the same clip has stopped. Default: begin with the point's own.

    Returns
    -------
    Conditioning
    """
    weighted = [(prompt, weight) for prompt, weight in zip(point.prompts, point.weights, strict=True) if weight > 0]
    prompts = [prompt for prompt, _ in weighted]
    weights = [weight for _, weight in weighted]
    generators = [generator or noise_generator(point, prompt) for prompt in prompts]
    noises = [draw_noise(pipe, each, n_latent_columns(pipe, n_columns)) for each in generators]
    prompt_embeds = [encode_text(pipe, prompt.text) for prompt in prompts]
    negative_prompt_embeds = [encode_text(pipe, prompt.negative_prompt or "") for prompt in prompts]
    return Conditioning(
        prompt_embeds=mix(pad_to_same_length(pipe, prompt_embeds), weights, lerp),
        negative_prompt_embeds=mix(pad_to_same_length(pipe, negative_prompt_embeds), weights, lerp),
        noise=mix(noises, weights, slerp),
        generator=generators[0] if len(generators) == 1 else MixedGenerator(generators, weights),
        guidance_scale=point.guidance_scale,
    )


def encode_text(pipe: Pipeline, text: str) -> Tensor:
    """Embeddings of a text whose tempo is snapped to those that the model knows."""
    return encode_prompt(pipe, snap_tempo(pipe, text))


def noise_generator(point: Point, prompt: Prompt) -> torch.Generator:
    """Source of a prompt's noise; on the CPU, so that every device gets the same noise."""
    return point.generator or torch.Generator("cpu").manual_seed(prompt.seed)
