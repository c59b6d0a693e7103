"""Recipes: all that is needed to make the same clip again, as a plain dict that fits into JSON."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch
from diffusers import SchedulerMixin

from . import __version__
from .lora import lora_facts
from .models import Pipeline, execution_device, model_name, model_settings
from .prompts import Prompt
from .values import N_SEEDS

Recipe = dict[str, Any]
LIBRARIES = ("torch", "diffusers", "transformers")
_WALK = ("num_inference_steps", "duration_s", "loop")
FOLLOWED = {  # kinds of recipes that hold all that is needed, and the arguments in them
    "text_to_audio": ("prompt", "negative_prompt", "seed", "guidance_scale", *_WALK),
    "interpolate": ("start", "end", "alpha", *_WALK),
}


def make_recipe(pipe: Pipeline, kind: str, **arguments: Any) -> Recipe:
    """Write down how a clip is made.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        The pipeline that makes it.
    kind : str
        Name of the function that makes it, such as ``"text_to_audio"``.
    **arguments
        Its arguments but for the pipeline: texts, numbers, ``None``.

    Returns
    -------
    dict
        The arguments; scheduler, model, the weights' hash, versions, device and dtype; under ``loras``, if there are
        any, which ones and how strong (`active_loras`). Nothing in it tells of the machine's folders.
    """
    return {
        "kind": kind,
        **arguments,
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": _scheduler_config(pipe.scheduler)},
        "model": model_name(pipe),
        "weights_sha256": weights_hash(pipe),
        "versions": {"riffusion_lab": __version__} | {name: version(name) for name in LIBRARIES},
        "device": execution_device(pipe).type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        **lora_facts(pipe),
    }


def check_recipe(recipe: object) -> Recipe:
    """Give a recipe back if it can be followed.

    Parameters
    ----------
    recipe : object
        Whatever was taken for a recipe.

    Returns
    -------
    dict
        Of one of the kinds in `FOLLOWED`, with all that they need.

    Raises
    ------
    TypeError, ValueError
        If it is no recipe, or lacks something; the message says what.
    """
    if recipe is None:
        raise ValueError("this clip has no recipe, for it was not generated: only generated clips can be replayed")
    if not isinstance(recipe, Mapping):
        raise TypeError(f"a recipe is a dict, as generated clips carry it, not {recipe!r}")
    kind = recipe.get("kind")
    if kind not in FOLLOWED:
        raise ValueError(f"this is no recipe that can be followed: its kind is {kind!r}, not {' or '.join(FOLLOWED)}")
    missing = [name for name in (*FOLLOWED[kind], "scheduler", "model", "weights_sha256") if name not in recipe]
    if missing:
        raise ValueError(f"this recipe is torn: it lacks {', '.join(missing)}")
    if recipe.get("source_sha256"):
        raise ValueError("this clip was made from another clip, which its recipe does not hold: call interpolate again")
    if kind == "text_to_audio" and recipe["seed"] is None:
        raise ValueError("this clip was made with a generator: only clips made with a seed can be replayed")
    return dict(recipe)


def seed_from_recipe(seed: int) -> int:
    """Give the seed of the same noise, where a recipe of an earlier version holds one of more than 32 bits."""
    return seed % N_SEEDS if isinstance(seed, int) and seed >= N_SEEDS else seed


def prompt_from_recipe(given: Mapping[str, Any]) -> Prompt:
    """Build a prompt from what a recipe holds of it."""
    prompt = Prompt(**given)
    return replace(prompt, seed=seed_from_recipe(prompt.seed))


def scheduler_from_recipe(recipe: Recipe) -> SchedulerMixin:
    """Build the scheduler of a recipe anew.

    Raises
    ------
    ValueError
        If diffusers has no such scheduler, or it does not take these settings.
    """
    named = recipe["scheduler"]
    kind = getattr(diffusers, str(named.get("class")), None) if isinstance(named, Mapping) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler {named!r} of the recipe is none of diffusers {diffusers.__version__}")
    try:
        return kind(**named["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"scheduler {named!r} of the recipe cannot be built: {error}") from error


def scheduler_parameters(scheduler: SchedulerMixin) -> set[str]:
    """Names of the settings that a scheduler heeds; its config may hold others, handed on from elsewhere."""
    return set(inspect.signature(type(scheduler).__init__).parameters) - {"self"}


def weights_hash(pipe: Pipeline) -> str:
    """SHA-256 (hexadecimal) of the weights of text encoder, U-Net and autoencoder, read as float32.

    And of the model's settings that clips depend on, but no recipe holds.
    """
    hashes = [_module_hash(part) for part in (pipe.text_encoder, pipe.unet, pipe.vae)]
    own, scale = model_settings(pipe), pipe.vae.config.scaling_factor
    hashes.append(f"{own.steady_noise_gain} {own.pag_applied_layers} {scale}")
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _scheduler_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    config = json.loads(scheduler.to_json_string())
    return {name: config[name] for name in sorted(scheduler_parameters(scheduler) & config.keys())}


_known_hashes: WeakKeyDictionary[torch.nn.Module, tuple[list[tuple[int, int]], str]] = WeakKeyDictionary()


def _module_hash(module: torch.nn.Module) -> str:
    """SHA-256 of names and values of the parameters; calculated again only after they changed."""
    state = [(tensor.data_ptr(), tensor._version) for tensor in module.parameters()]
    if module not in _known_hashes or _known_hashes[module][0] != state:
        digest = hashlib.sha256()
        for name, tensor in sorted(module.named_parameters()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().flatten().numpy())
        _known_hashes[module] = (state, digest.hexdigest())
    return _known_hashes[module][1]
