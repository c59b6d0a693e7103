"""Recipes: plain dicts, ready for JSON, with all that is needed to generate the same clip again."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from diffusers.utils import DummyObject

from . import __version__
from .hashing import weights_hash
from .lora import lora_facts, named_with_weights, other_loras, recipe_loras
from .models import INCLUDED_MODELS, Pipeline, execution_device, is_downloaded, load_pipeline, model_name
from .prompts import Prompt
from .values import N_SEEDS, warn

Recipe = dict[str, Any]
LIBRARIES = ("torch", "diffusers", "transformers")
LARGEST_SETTING = 100_000  # of a recipe's scheduler: otherwise a recipe from a stranger could exhaust the memory
_COMMON = ("num_inference_steps", "duration_s", "loop")
REPLAYABLE = {  # kinds of recipes that suffice to regenerate a clip, and the arguments in them
    "text_to_audio": ("prompt", "negative_prompt", "seed", "guidance_scale", *_COMMON),
    "interpolate": ("start", "end", "alpha", *_COMMON),
}


def make_recipe(pipe: Pipeline, kind: str, **arguments: Any) -> Recipe:
    """Describe how a clip is generated.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        The pipeline that generates it.
    kind : str
        Name of the public function that was called, such as ``"text_to_audio"``.
    **arguments
        Its other arguments: str, numbers, ``None``.

    Returns
    -------
    dict
        The arguments; scheduler, model, the weights' hash, versions, device and dtype; under ``loras``, if there are
        any, which ones and how strong (`active_loras`). It contains no local paths.
    """
    return {
        "kind": kind,
        **arguments,
        "scheduler": {"class": _scheduler_class(pipe.scheduler), "config": _scheduler_config(pipe.scheduler)},
        "model": model_name(pipe),
        "weights_sha256": weights_hash(pipe),
        "versions": {"riffusion_lab": __version__} | {name: version(name) for name in LIBRARIES},
        "device": execution_device(pipe).type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        **lora_facts(pipe),
    }


def check_recipe(recipe: object) -> Recipe:
    """Return a recipe from which a clip can be regenerated.

    Parameters
    ----------
    recipe : object

    Returns
    -------
    dict
        Of one of the kinds in `REPLAYABLE`, and complete.

    Raises
    ------
    TypeError, ValueError
        If it is not a recipe, or something is missing; the message says what.
    """
    if recipe is None:
        raise ValueError("this clip has no recipe, for it was not generated: only generated clips can be replayed")
    if not isinstance(recipe, Mapping):
        raise TypeError(f"a recipe is a dict, as generated clips carry it, not {recipe!r}")
    kind = recipe.get("kind")
    if kind not in REPLAYABLE:
        raise ValueError(f"this is no recipe that can be followed: its kind is {kind!r}, not {' or '.join(REPLAYABLE)}")
    missing = [name for name in (*REPLAYABLE[kind], "scheduler", "model", "weights_sha256") if name not in recipe]
    if missing:
        raise ValueError(f"this recipe is incomplete: it lacks {', '.join(missing)}")
    if recipe.get("source_sha256"):
        raise ValueError("this clip was made from another clip, which its recipe does not hold: call interpolate again")
    if kind == "text_to_audio" and recipe["seed"] is None:
        raise ValueError("this clip was made with a generator: only clips made with a seed can be replayed")
    return dict(recipe)


def seed_from_recipe(seed: int) -> int:
    """Reduce a seed of more than 32 bits, from a recipe of an earlier version, to the one with the same noise."""
    return seed % N_SEEDS if isinstance(seed, int) and seed >= N_SEEDS else seed


def prompt_from_recipe(facts: Mapping[str, Any]) -> Prompt:
    """Build a prompt from its arguments in a recipe."""
    prompt = Prompt(**facts)
    return replace(prompt, seed=seed_from_recipe(prompt.seed))


def scheduler_from_recipe(recipe: Recipe) -> SchedulerMixin:
    """Build the scheduler of a recipe. The recipe may come from a stranger, so nothing in it is trusted.

    Raises
    ------
    ValueError
        If diffusers has no such scheduler, or the scheduler refuses these settings.
    """
    named = recipe["scheduler"]
    if not isinstance(named, Mapping) or not isinstance(named.get("config"), Mapping):
        raise ValueError(f"scheduler {named!r:.200} of the recipe is invalid: it must have a class and a config")
    name, config = named.get("class"), dict(named["config"])
    kind: Any = getattr(diffusers, str(name), None)
    is_missing_library = isinstance(kind, DummyObject)  # diffusers' stand-in for a class that names what it needs
    if not is_missing_library and not _is_scheduler(kind):
        raise ValueError(
            f"scheduler {name!r} of the recipe is invalid: diffusers {diffusers.__version__} has none of that name"
        )
    large = [value for value in config.values() if isinstance(value, int) and abs(value) > LARGEST_SETTING]
    if large:
        raise ValueError(f"scheduler {name} of the recipe has a setting above {LARGEST_SETTING:,}: {large[0]:,}")
    own = {setting: config.pop(setting) for setting in scheduler_parameters(kind) & config.keys()}
    try:
        scheduler = kind(**own)
    except Exception as error:  # each scheduler refuses settings in its own way
        raise ValueError(f"scheduler {name} of the recipe cannot be built: {error}") from error
    unknown = sorted(config.keys() - _known_settings(scheduler))
    if unknown:
        raise ValueError(f"scheduler {name} of the recipe cannot be built: it has no setting {', '.join(unknown)}")
    scheduler.register_to_config(**config)
    return scheduler


def scheduler_parameters(kind: type[SchedulerMixin]) -> set[str]:
    """Names of a scheduler class's own arguments; a config may hold more."""
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def load_recipe_model(recipe: Recipe) -> Pipeline:
    """Load the model of a recipe. The recipe may come from a stranger: nothing is downloaded, and no local folder read.

    Returns
    -------
    StableDiffusionPipeline
        riffling, riffling-turbo, or a model of the Hugging Face Hub that was downloaded earlier.

    Raises
    ------
    OSError
        If it is any other model; the message says how to replay with it.
    ValueError
        If the clip was made with LoRAs.
    """
    model, loras = recipe["model"], recipe_loras(recipe)
    if loras:
        call = f"replay(clip, load_pipeline({model!r}, lora={{file: weight}}))"
        made_with = named_with_weights(loras)
        raise ValueError(f"this clip was made with {made_with}, which the recipe does not hold: call {call}")
    if model in INCLUDED_MODELS:
        return load_pipeline(model)
    if isinstance(model, str) and is_downloaded(model):
        return load_pipeline(model, local_files_only=True)
    advice = f"if you trust it, load it yourself and hand it over: replay(clip, load_pipeline({model!r:.100}))"
    name = f"the recipe's model {model!r:.100}"
    raise OSError(f"{name} is neither included here nor downloaded from the Hub yet; {advice}")


def warn_of_other_weights(recipe: Mapping[str, Any], pipe: Pipeline, made: str) -> None:
    """Warn if the weights or LoRAs of a pipeline are not those of a recipe; the warning begins with `made`."""
    difference = other_loras(recipe, pipe)
    if difference is None and weights_hash(pipe) != recipe["weights_sha256"]:
        difference = f"with other weights of {recipe['model']}: it will differ"
    if difference is not None:
        warn(f"{made} {difference}")


def _is_scheduler(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, SchedulerMixin) and hasattr(kind, "step")


def _scheduler_class(scheduler: SchedulerMixin) -> str:
    """Name of the class; with its module if it is not diffusers' own class of that name."""
    kind = type(scheduler)
    is_diffusers_own = getattr(diffusers, kind.__name__, None) is kind
    return kind.__name__ if is_diffusers_own else f"{kind.__module__}.{kind.__qualname__}"


def _scheduler_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """All settings, including those that are not arguments of the scheduler's ``__init__``.

    ``from_config`` passes settings on from one scheduler to the next, and some schedulers read settings that they do
    not take as arguments: DPM++ 2M reads ``sigma_min`` and ``sigma_max`` only from its config.
    """
    known = sorted(_known_settings(scheduler) & scheduler.config.keys())
    settings = {name: scheduler.config[name] for name in known if not _is_infinite(scheduler.config[name])}
    return json.loads(json.dumps(settings, default=lambda array: array.tolist()))


def _is_infinite(value: object) -> bool:
    """Whether a setting is infinite: JSON has no such number, and in all schedulers it is the default."""
    return isinstance(value, float) and math.isinf(value)


def _known_settings(scheduler: SchedulerMixin) -> set[str]:
    """Names of the arguments of a scheduler's class and of the classes compatible with it."""
    kinds = [type(scheduler), *scheduler.compatibles]
    return set().union(*map(scheduler_parameters, kinds))
