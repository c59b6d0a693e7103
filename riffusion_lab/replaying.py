"""Regenerate a clip from its recipe."""

from __future__ import annotations

import copy

from .clip import Clip
from .generate import text_to_audio
from .interpolation import interpolate
from .models import Pipeline
from .recipes import (
    REPLAYABLE,
    Recipe,
    check_recipe,
    load_recipe_model,
    prompt_from_recipe,
    scheduler_from_recipe,
    seed_from_recipe,
    warn_of_other_weights,
)
from .torch_defaults import torch_defaults


@torch_defaults()
def replay(clip_or_recipe: Clip | Recipe, pipe: Pipeline | None = None) -> Clip:
    """Regenerate a clip of `text_to_audio` or `interpolate` from its recipe.

    With the same weights, device and library versions, the clip is the same. A warning says if weights or LoRAs differ.

    Parameters
    ----------
    clip_or_recipe : Clip or dict
        A generated clip (also one opened from a PNG), or its recipe.
    pipe : StableDiffusionPipeline, optional
        Default: the recipe's model, if it is included here or was downloaded from the Hugging Face Hub before. Load any
        other model yourself, since a recipe may come from a stranger: ``replay(clip, load_pipeline("owner/name"))``.

    Returns
    -------
    Clip

    Raises
    ------
    OSError
        If there is no pipeline and the recipe's model is not on this computer: nothing is downloaded.
    TypeError, ValueError
        If there is no recipe, or it does not suffice: the recipe of a clip generated from another clip does not hold
        that clip. Or if the clip was generated with a LoRA and `pipe` is left out.
    FloatingPointError
        If latents or picture are not finite.

    Notes
    -----
    Taught in: 03
    """
    recipe = check_recipe(getattr(clip_or_recipe, "recipe", clip_or_recipe))
    scheduler = scheduler_from_recipe(recipe)
    pipe = load_recipe_model(recipe) if pipe is None else pipe
    warn_of_other_weights(recipe, pipe, "the clip was made")
    pipe = copy.copy(pipe)
    pipe.scheduler = scheduler
    arguments = {name: recipe[name] for name in REPLAYABLE[recipe["kind"]]}
    if recipe["kind"] == "text_to_audio":
        arguments["seed"] = seed_from_recipe(arguments["seed"])
        return text_to_audio(pipe, **arguments)
    start = prompt_from_recipe(arguments.pop("start"))
    end = prompt_from_recipe(arguments.pop("end"))
    alpha = arguments.pop("alpha")
    return next(interpolate(pipe, start, end, num_clips=1, curve=lambda _: alpha, **arguments))
