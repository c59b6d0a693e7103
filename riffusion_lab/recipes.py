"""Recipes: all that is needed to make the same clip again, as a plain dict that fits into JSON."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch
from accelerate.utils import align_module_device, has_offloaded_params
from diffusers import SchedulerMixin
from diffusers.utils import DummyObject
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from . import __version__
from .lora import lora_facts, named_with_weights, other_loras, recipe_loras
from .models import Pipeline, execution_device, is_downloaded, load_pipeline, model_name, model_settings
from .prompts import Prompt
from .torch_defaults import torch_defaults
from .values import N_SEEDS, warn

Recipe = dict[str, Any]
LIBRARIES = ("torch", "diffusers", "transformers")
PIECE = 2**22  # numbers that are checked at once on a GPU: 16 MB
LARGEST_SETTING = 100_000  # of a recipe's scheduler: a stranger's number could else ask for any amount of memory
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
        "scheduler": {"class": _scheduler_class(pipe.scheduler), "config": _scheduler_config(pipe.scheduler)},
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
    """Build the scheduler of a recipe, which may be a stranger's.

    Raises
    ------
    ValueError
        If diffusers has no such scheduler, or it does not take these settings.
    """
    named = recipe["scheduler"]
    if not isinstance(named, Mapping) or not isinstance(named.get("config"), Mapping):
        raise ValueError(f"scheduler {named!r:.200} of the recipe is none: it takes a class and a config")
    name, config = named.get("class"), dict(named["config"])
    kind = getattr(diffusers, str(name), None)
    is_missing_library = isinstance(kind, DummyObject)  # stands for a class, and says what it needs
    if not is_missing_library and not _is_scheduler(kind):
        raise ValueError(f"scheduler {name!r} of the recipe is none of diffusers {diffusers.__version__}")
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
    """Names of the settings that a scheduler class takes; a scheduler's config may hold others."""
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def load_recipe_model(recipe: Recipe) -> Pipeline:
    """Load the model of a recipe, which may be a stranger's: nothing is downloaded, and no folder of one's own read.

    Returns
    -------
    StableDiffusionPipeline
        riffling, or a model of the Hugging Face Hub that was downloaded before.

    Raises
    ------
    OSError
        If it is another model; the message says how to replay with it.
    ValueError
        If the clip was made with LoRAs.
    """
    model, loras = recipe["model"], recipe_loras(recipe)
    if loras:
        call = f"replay(clip, load_pipeline({model!r}, lora={{file: weight}}))"
        made_with = named_with_weights(loras)
        raise ValueError(f"this clip was made with {made_with}, which the recipe does not hold: call {call}")
    if model == "riffling":
        return load_pipeline()
    if isinstance(model, str) and is_downloaded(model):
        return load_pipeline(model, local_files_only=True)
    advice = f"if you trust it, load it yourself and hand it over: replay(clip, load_pipeline({model!r:.100}))"
    raise OSError(f"the recipe's model {model!r:.100} is neither riffling nor downloaded from the Hub yet; {advice}")


def warn_of_other_weights(recipe: Recipe, pipe: Pipeline, made: str) -> None:
    """Warn if a pipeline has other weights, or other LoRAs, than the one of a recipe; `made` begins the warning."""
    difference = other_loras(recipe, pipe)
    if difference is None and weights_hash(pipe) != recipe["weights_sha256"]:
        difference = f"with other weights of {recipe['model']}: it will differ"
    if difference is not None:
        warn(f"{made} {difference}")


@torch_defaults()
def weights_hash(pipe: Pipeline) -> str:
    """SHA-256 (hexadecimal) of the weights of text encoder, U-Net and autoencoder, read as float32.

    And of adapters (LoRA), FreeU, buffers, and the model's settings that clips depend on, but no recipe holds. A
    compiled network has the hash of the network itself.

    Notes
    -----
    SHA-256 is calculated again only after a change. Checksums of all tensors tell whether there was one, since torch
    counts no changes made through ``weight.data``. On a CPU riffling's take a hundredth of the time that a clip takes.
    """
    hashes = [_module_hash(part) for part in (pipe.text_encoder, pipe.unet, pipe.vae)]
    own, scale = model_settings(pipe), pipe.vae.config.scaling_factor
    hashes.append(f"{own.steady_noise_gain} {own.pag_applied_layers} {scale}")
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _is_scheduler(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, SchedulerMixin) and hasattr(kind, "step")


def _scheduler_class(scheduler: SchedulerMixin) -> str:
    """Name of the class; with its module where it is not the one that diffusers has under this name."""
    kind = type(scheduler)
    is_diffusers_own = getattr(diffusers, kind.__name__, None) is kind
    return kind.__name__ if is_diffusers_own else f"{kind.__module__}.{kind.__qualname__}"


def _scheduler_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """All settings, also those that the scheduler's ``__init__`` does not name.

    diffusers hands the settings of one scheduler on to the next (``from_config``), and some read such a setting: DPM++
    2M takes ``sigma_min`` and ``sigma_max`` from its config only.
    """
    known = sorted(_known_settings(scheduler) & scheduler.config.keys())
    settings = {name: scheduler.config[name] for name in known if not _is_infinite(scheduler.config[name])}
    return json.loads(json.dumps(settings, default=lambda array: array.tolist()))


def _is_infinite(value: object) -> bool:
    """Tell whether a setting is infinite: JSON has no such number, and it is the default wherever there is one."""
    return isinstance(value, float) and math.isinf(value)


def _known_settings(scheduler: SchedulerMixin) -> set[str]:
    """Names of the settings that a scheduler, or one that could take its place, is built with."""
    kinds = [type(scheduler), *scheduler.compatibles]
    return set().union(*map(scheduler_parameters, kinds))


_known_hashes: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def _module_hash(module: nn.Module) -> str:
    """SHA-256 of names and values of all tensors; calculated again only after a change."""
    tensors, switches = _named_tensors(module), _switches(module)
    checksums = _checksums([tensor for _, tensor in tensors])
    state = ([(name, tensor.dtype) for name, tensor in tensors], checksums, switches)
    if module not in _known_hashes or _known_hashes[module][0] != state:
        digest = hashlib.sha256()
        for name, tensor in tensors:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().flatten().numpy())
        digest.update(switches.encode())
        _known_hashes[module] = (state, digest.hexdigest())
    return _known_hashes[module][1]


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters by name, then buffers and what parametrizations make of parameters."""
    numbers = _lora_numbers(module)
    parameters = [
        (_plain_name(name, numbers), tensor) for name, tensor in _named_parameters(module) if _acts(name, numbers)
    ]
    others = [(_plain_name(name), tensor) for name, tensor in module.named_buffers() if not _counts(tensor)]
    for name, part in module.named_modules():
        if is_parametrized(part):
            others += [(_plain_name(f"{name}.{made}"), getattr(part, made)) for made in part.parametrizations]
    return sorted(parameters, key=_first) + sorted(others, key=_first)


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters; those that accelerate has put elsewhere until their layer is called are fetched to the CPU."""
    if not any(parameter.is_meta for parameter in module.parameters()):
        yield from module.named_parameters()
        return
    for name, layer in module.named_modules():
        where = torch.device("cpu") if has_offloaded_params(layer) else None
        with align_module_device(layer, where):
            yield from layer.named_parameters(name, recurse=False)


def _first(pair: tuple[str, Tensor]) -> str:
    return pair[0]


def _lora_numbers(module: nn.Module) -> dict[str, str]:
    """Number the LoRAs that act in a network: what they are called changes nothing, nor what is switched off."""
    acting = set()
    for layer in module.modules():
        if _is_lora_layer(layer) and not layer.disable_adapters:
            acting.update(layer.active_adapters)
    return {lora: str(number) for number, lora in enumerate(sorted(acting))}


def _is_lora_layer(layer: nn.Module) -> bool:
    """Tell whether peft has put its layer around one of the network's own (``peft.tuners.lora.LoraLayer``)."""
    return isinstance(getattr(layer, "scaling", None), dict)


def _acts(name: str, numbers: Mapping[str, str]) -> bool:
    """Tell whether a parameter is the network's own, or that of a LoRA which acts."""
    lora = re.search(r"\.lora_\w+\.(\w+)", name)
    return lora is None or lora[1] in numbers


def _plain_name(name: str, numbers: Mapping[str, str] | None = None) -> str:
    """Name of a tensor or module without what ``torch.compile`` and peft add to it, and with numbers for LoRAs."""
    name = name.replace("_orig_mod.", "").replace(".base_layer.", ".")
    return re.sub(r"(\.lora_\w+\.)(\w+)", lambda found: found[1] + (numbers or {}).get(found[2], found[2]), name)


def _counts(buffer: Tensor) -> bool:
    """Tell whether a buffer just counts 0, 1, 2 …, as a text encoder's ``position_ids`` do: no hash ever held those."""
    return buffer.dtype == torch.int64 and torch.equal(buffer.flatten().cpu(), torch.arange(buffer.numel()))


def _switches(module: nn.Module) -> str:
    """Say what else acts in a network: which adapters of peft, and how strongly, and FreeU; empty without any."""
    found = []
    numbers = _lora_numbers(module)
    for name, layer in module.named_modules():
        if _is_lora_layer(layer) and not layer.disable_adapters:
            acting = {numbers[lora]: layer.scaling.get(lora) for lora in sorted(layer.active_adapters)}
            merged = [numbers.get(lora, lora) for lora in layer.merged_adapters]
            found.append(f"{_plain_name(name)} {acting} {merged}")
        free_u = [getattr(layer, factor, None) for factor in ("b1", "b2", "s1", "s2")]
        if None not in free_u:  # see UNet2DConditionModel.enable_freeu
            found.append(f"{_plain_name(name)} {free_u}")
    return "\n".join(found)


def _checksums(tensors: Sequence[Tensor]) -> list[int]:
    """A number for each tensor that another content of it, of whatever kind, all but surely changes.

    On the CPU it is the CRC-32 of its bytes: a change stays unseen once in 2**32. Elsewhere it is a sum, calculated
    where the tensor is, since reading memory there is much faster than fetching it; all sums are fetched at once.
    """
    on_cpu = {i: zlib.crc32(_units(tensor, torch.uint8).numpy()) for i, tensor in enumerate(tensors) if tensor.is_cpu}
    elsewhere = [i for i in range(len(tensors)) if i not in on_cpu]
    if not elsewhere:
        return list(on_cpu.values())
    device = tensors[elsewhere[0]].device
    sums = torch.stack([_weighted_sum(tensors[i]).to(device) for i in elsewhere]).tolist()
    found = on_cpu | dict(zip(elsewhere, sums, strict=True))
    return [found[i] for i in range(len(tensors))]


def _weighted_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits, in units of two bytes, each times a random number that belongs to its place.

    A sum without weights would be the same for the same numbers in other places.
    """
    units = _units(tensor, torch.int16 if tensor.element_size() > 1 else torch.uint8)
    weights = _random_weights(units.device)
    pieces = units.split(PIECE)
    sums = [(2 * i + 1) * (piece * weights[: len(piece)]).sum() for i, piece in enumerate(pieces)]
    return torch.stack(sums).sum()


@cache
def _random_weights(device: torch.device) -> Tensor:
    """Weights of shape (PIECE,) for `_weighted_sum`, always the same; odd, so that an overflow loses no bit."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(2**31, (PIECE,), dtype=torch.int32, generator=generator) | 1
    return weights.to(device)


def _units(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of a tensor, in one dimension, read as whole numbers."""
    return tensor.detach().flatten().view(dtype)
