"""Measure over many seeds what lesson 09 shows on a few: riffusion_lab/training/data/lesson_09.json.

For each of three prompts and 16 seeds: clips by riffling as it is, without perturbed attention, and with other gains of
the static noise; and how far the estimates of the clean latents are from riffling's finished ones, step by step, for
riffling itself, for riffling-turbo, and for riffling taking riffling-turbo's three steps. One thread; about 15 minutes:

    python tools/lesson_networks.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riffusion_lab import load_pipeline, text_to_audio
from riffusion_lab.models import Pipeline, keep_settings, model_settings
from riffusion_lab.networks import perturbed_attention
from riffusion_lab.prompts import encode_prompt
from riffusion_lab.sampling import scale_static_noise
from riffusion_lab.training.classifier import classify, load_classifier, picture_tensor
from riffusion_lab.training.lesson import DATA
from riffusion_lab.training.metrics import column_steps, diversity

OUTPUT = DATA / "lesson_09.json"
PROMPTS = {"piano, slow": "piano", "church bells": "church bells", "techno": "techno"}  # and the class of each
SEEDS = range(16)
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no perturbed attention": {"pag_applied_layers": ()},
    "static noise × 1": {"steady_noise_gain": 1.0},
    "static noise × 1.5": {"steady_noise_gain": 1.5},
}


def measure_way(pipe: Pipeline, way: str, prompt: str) -> dict[str, Any]:
    """Make a clip for each seed, and measure it.

    Returns
    -------
    dict
        For each seed: ``steps``, the mean difference between neighbouring columns of the picture, in grey levels;
        ``loudness``, its mean darkness in grey levels; ``height``, the mean row of what is dark, 0 to 511;
        ``recognized``, whether the classifier names the prompt's class. And one number for all seeds: ``diversity``,
        the mean distance between the clips in the classifier's embedding.
    """
    settings = model_settings(pipe)
    keep_settings(pipe, "riffling", replace(settings, **WAYS[way]))
    try:
        clips = text_to_audio(pipe, prompt, seed=SEEDS)
    finally:
        keep_settings(pipe, "riffling", settings)
    classifier = load_classifier()
    pictures = [picture_tensor(clip.image) for clip in clips]
    embeddings, answers = classify(classifier, pictures)
    darkness = 127.5 * (1 - torch.cat(pictures)[:, 0].numpy())  # (n, 512, 512), from 0 to 255
    rows = darkness.mean(axis=2)[:, ::-1]  # from low to high
    return {
        "way": way,
        "prompt": prompt,
        "steps": [round(127.5 * float(column_steps(picture).mean()), 3) for picture in pictures],
        "loudness": np.round(darkness.mean(axis=(1, 2)), 2).tolist(),
        "height": np.round(rows @ np.arange(512) / rows.sum(axis=1), 1).tolist(),
        "recognized": [classifier.choices["class"][i] == PROMPTS[prompt] for i in answers["class"]],
        "diversity": round(diversity(embeddings, [prompt] * len(clips)), 3),
    }


def estimates(
    pipe: Pipeline, prompt: str, noise: Tensor, *, scheduler: Any = None, n_steps: int | None = None
) -> Iterator[tuple[float, Tensor]]:
    """Yield noise level (σ, noise beside the clip) and estimate of the clean latents before each step of a clip.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str
    noise : Tensor [shape=(1, 4, 64, 64)]
    scheduler, n_steps : optional
        Instead of the pipeline's own, and then without guidance.
    """
    settings = model_settings(pipe)
    guidance = settings.guidance_scale if scheduler is None else 1.0
    scheduler = scheduler or pipe.scheduler
    embeds = torch.cat([encode_prompt(pipe, ""), encode_prompt(pipe, prompt)])
    scheduler.set_timesteps(n_steps or settings.num_inference_steps)
    latents = scale_static_noise(pipe, noise) * scheduler.init_noise_sigma
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        a = 1 / (1 + sigma**2).sqrt()
        x = scheduler.scale_model_input(latents, timestep)
        if guidance > 1:
            with perturbed_attention(pipe):
                empty, full = pipe.unet(torch.cat([x, x]), timestep, embeds).sample.chunk(2)
            v = empty + guidance * (full - empty)
        else:
            v = pipe.unet(x, timestep, embeds[1:]).sample
        yield float(sigma), a * x - sigma * a * v
        latents = scheduler.step(v, timestep, latents).prev_sample
    yield 0.0, latents


@torch.no_grad()
def measure_few_steps(pipe: Pipeline, turbo: Pipeline, prompt: str) -> dict[str, Any]:
    """Root mean square distances of all estimates from riffling's finished latents, for each seed.

    Returns
    -------
    dict
        ``sigmas`` and ``errors`` [shape=(seeds, steps + 1)] of three ways.
    """
    ways = {
        "riffling": {"pipe": pipe},
        "riffling-turbo": {"pipe": turbo},
        "riffling in three steps": {"pipe": pipe, "scheduler": turbo.scheduler, "n_steps": 3},
    }
    found: dict[str, Any] = {name: {"errors": []} for name in ways}
    for seed in SEEDS:
        noise = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(seed))
        paths = {name: list(estimates(prompt=prompt, noise=noise, **options)) for name, options in ways.items()}
        finished = paths["riffling"][-1][1]
        for name, path in paths.items():
            found[name]["sigmas"] = [round(sigma, 3) for sigma, _ in path]
            errors = [(estimate - finished).square().mean().sqrt() for _, estimate in path]
            found[name]["errors"].append([round(float(error), 4) for error in errors])
    return {"prompt": prompt, "paths": found}


def main() -> None:
    """Measure everything."""
    torch.set_num_threads(1)
    pipe, turbo = load_pipeline(device="cpu"), load_pipeline("riffling-turbo", device="cpu")
    content = {
        "seeds": len(SEEDS),
        "ways": [measure_way(pipe, way, prompt) for way in WAYS for prompt in PROMPTS],
        "few_steps": [measure_few_steps(pipe, turbo, prompt) for prompt in PROMPTS],
    }
    OUTPUT.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
