"""LoRAs: small additions to a model's weights, fitted to it when they are loaded, and written into recipes.

A LoRA (https://arxiv.org/abs/2106.09685) adds to the matrix of a layer the product of two thin ones, ``B @ A``, scaled.
diffusers and peft load it and calculate with it; here is checked what they would pass over in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    is_peft_available,
)
from torch import Tensor, nn

from .checkpoints import Shape, is_lora, tensor_shapes
from .values import check_number, in_one_line

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

LoraSource = str | os.PathLike[str]
PARTS = ("unet", "text_encoder")  # that a LoRA may change
LORA_FILES = (".safetensors", ".bin", ".pt", ".ckpt")
# Names that tell nothing of what is in the file: those that diffusers and peft give
USUAL_NAMES = ("pytorch_lora_weights", "adapter_model")
PEFT_CONFIG = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_STARTS = tuple(f"{part}." for part in PARTS)  # of the names of matrices, as diffusers writes them
# What of a peft configuration says how strong a LoRA is, and where
_PEFT_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class Lora:
    """A LoRA to load: its file, how strong it is to be, and the name that it has in the pipeline."""

    path: Path
    weight: float
    name: str


def lora_weights(lora: LoraSource | Mapping[LoraSource, float] | None) -> dict[str, float]:
    """Check what is given as ``lora``, and give the weight of each.

    Raises
    ------
    TypeError, ValueError
        If it is neither a name nor a dict of names and weights, or a weight is no finite number.
    ImportError
        If the package peft is missing.
    """
    if lora is None:
        return {}
    given = {lora: 1.0} if isinstance(lora, str | os.PathLike) else lora
    if not isinstance(given, Mapping) or not all(isinstance(source, str | os.PathLike) for source in given):
        raise TypeError(f"lora must be a file, a folder or a name, or a dict of these and weights, not {lora!r}")
    weights = {
        os.fspath(source): check_number(f"the weight of the LoRA {os.fspath(source)!r}", weight)
        for source, weight in given.items()
    }
    if weights and not is_peft_available():
        raise ImportError("loading a LoRA needs the package peft: pip install peft")
    return weights


def named_loras(weights: Mapping[Path, float]) -> list[Lora]:
    """Name LoRAs after their files, each differently.

    Parameters
    ----------
    weights : dict of Path to float
        Files, and how strong they are to be.
    """
    loras: list[Lora] = []
    for path, weight in weights.items():
        stem = path.parent.name if path.stem in USUAL_NAMES else path.stem
        plain = re.sub(r"\W", "_", stem)  # a dot would end the name of a module
        # Such a name would be that of a method, or be found in peft's own names
        is_taken = hasattr(nn.ModuleDict, plain) or plain in "lora_"
        name, number = (f"{plain}_1", 1) if is_taken else (plain, 1)
        while name in (lora.name for lora in loras):
            number += 1
            name = f"{plain}_{number}"
        loras.append(Lora(path, weight, name))
    return loras


def file_in_folder(names: list[str], folder: str) -> str:
    """Choose the weight file of a LoRA from the names in its folder.

    Raises
    ------
    OSError
        If there is none, or more than one.
    """
    candidates = sorted(name for name in names if Path(name).suffix in LORA_FILES)
    for preferred in ([name for name in candidates if Path(name).stem in USUAL_NAMES], candidates):
        safe = [name for name in preferred if name.endswith(".safetensors")] or preferred
        if len(safe) == 1:
            return safe[0]
    if not candidates:
        raise OSError(f"there is no LoRA in {folder!r}: no file that ends in {', '.join(LORA_FILES)}")
    raise OSError(f"there are {len(candidates)} files in {folder!r}, {', '.join(candidates)}: give one of them as LoRA")


def load_loras(pipe: StableDiffusionPipeline, loras: list[Lora]) -> None:
    """Load LoRAs into a pipeline, and set how strong they are.

    Each is an adapter of diffusers afterwards: ``pipe.set_adapters(names, weights)`` changes how strong they are, and
    ``pipe.unload_lora_weights()`` takes all of them off, which leaves the model as it was, to the bit.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    loras : list of Lora

    Raises
    ------
    OSError
        If one cannot be read, or was not made for a model of this kind.
    """
    for lora in loras:
        try:
            _load(pipe, lora)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise OSError(f"cannot load the LoRA {lora.path.name!r}: {in_one_line(error)}") from error
    if loras:
        pipe.set_adapters([lora.name for lora in loras], [lora.weight for lora in loras])


def _load(pipe: StableDiffusionPipeline, lora: Lora) -> None:
    names = tensor_shapes(lora.path)
    if not is_lora(names):
        raise OSError("it is no LoRA; if it is a whole model, give it as the model itself")
    if any(re.search(r"lokr_|hada_|dora_scale", name) for name in names):
        raise OSError("it is a LoKr, LoHa or DoRA, which cannot be loaded here: give a plain LoRA")
    state_dict, network_alphas, metadata = pipe.lora_state_dict(str(lora.path), return_lora_metadata=True)
    if network_alphas:
        state_dict = _with_alphas(state_dict, network_alphas)
    # transformers 5.6 did away with the module text_model
    state_dict = {re.sub(r"\btext_model\.", "", name): weight for name, weight in state_dict.items()}
    if any(name.startswith(_PEFT_PREFIX) for name in state_dict):
        metadata = _peft_settings(lora.path)
    if not any(name.startswith(_STARTS) for name in state_dict):
        state_dict = _with_parts(pipe, state_dict)
    foreign = [name for name in state_dict if not name.startswith(_STARTS)]
    if foreign:
        raise OSError(
            f"this model has no place for {len(foreign)} of its {len(state_dict)} matrices, such as {foreign[0]}"
        )
    options = {"network_alphas": None, "adapter_name": lora.name, "metadata": metadata, "_pipeline": pipe}
    changes_unet = _check_fit(pipe, "unet", state_dict)
    changes_text_encoder = _check_fit(pipe, "text_encoder", state_dict)
    if changes_unet:
        pipe.load_lora_into_unet(state_dict, unet=pipe.unet, **options)
    if changes_text_encoder:
        pipe.load_lora_into_text_encoder(state_dict, text_encoder=pipe.text_encoder, **options)


def _with_alphas(state_dict: Mapping[str, Tensor], network_alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """Multiply the second matrix of each layer by its scale, alpha through rank, as kohya's form has it.

    diffusers would find the scale of most layers only where all have the same.
    """
    scaled = {name: weight.float() for name, weight in state_dict.items()}
    for name, alpha in network_alphas.items():
        layer = name.removesuffix(".alpha")  # or already the name of its first matrix
        down = layer if layer in scaled else f"{layer}.lora.down.weight"
        up = down.replace(".down.", ".up.")
        scaled[up] *= alpha / len(scaled[down])
    return scaled


def _with_parts(pipe: StableDiffusionPipeline, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the part that each layer is in before its name, where peft or an older diffusers has left it out."""
    layers = {part: dict(getattr(pipe, part).named_modules()) for part in PARTS}
    named = {}
    for name, weight in state_dict.items():
        name = name.removeprefix(_PEFT_PREFIX)
        (peft_name,) = convert_unet_state_dict_to_peft({name: weight})
        part = next((part for part in PARTS if _layer_name(peft_name) in layers[part]), None)
        named[f"{part}.{name}" if part else name] = weight
    return named


def _peft_settings(path: Path) -> dict[str, Any]:
    """Read how strong a LoRA is from the configuration that peft writes beside it; in diffusers' form."""
    file = path.with_name(PEFT_CONFIG)
    if not file.is_file():
        raise OSError(f"peft has written it, but {PEFT_CONFIG}, which says how strong it is, does not stand beside it")
    content = json.loads(file.read_text(encoding="utf-8"))
    settings = {"rank_pattern": {}, "alpha_pattern": {}}
    settings |= {name: content[name] for name in _PEFT_SETTINGS if content.get(name)}
    return {f"{part}.{name}": value for part in PARTS for name, value in settings.items()}


def _check_fit(pipe: StableDiffusionPipeline, part: str, state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether a LoRA changes a part of the model; refuse it if its matrices do not fit the part's layers."""
    start = f"{part}."
    plain = {name.removeprefix(start): weight for name, weight in state_dict.items() if name.startswith(start)}
    if not plain:
        return False
    if part == "unet":
        plain = convert_unet_state_dict_to_peft(plain)
    else:
        plain = convert_state_dict_to_peft(convert_state_dict_to_diffusers(plain))
    layers = dict(getattr(pipe, part).named_modules())
    names = dict.fromkeys(map(_layer_name, plain))
    absent = [name for name in names if name not in layers]
    if absent:
        how_many = f"{'all' if len(absent) == len(names) else len(absent)} of its {len(names)} layers"
        raise OSError(f"the {part} lacks {how_many}, such as {absent[0]}: it was made for another kind of model")
    for name in names:
        layer = layers[name]
        full = tuple(getattr(layer, "base_layer", layer).weight.shape)
        a, b = (_shape(plain, f"{name}.lora_{side}.weight") for side in "AB")
        if (a[1:], b[0], a[0]) != (full[1:], full[0], b[1]):
            made_for = f"{a[1]} numbers in and {b[0]} out, the model's {full[1]} and {full[0]}"
            raise OSError(f"its layer {name} has {made_for}: it was made for another base model")
    return True


def _layer_name(name: str) -> str:
    """Name the layer that a matrix of peft's form belongs to."""
    return re.sub(r"\.lora[_.].*", "", name)


def _shape(weights: Mapping[str, Tensor], name: str) -> Shape:
    if name not in weights:
        raise OSError(f"it is torn: it lacks {name}")
    return tuple(weights[name].shape)


def active_loras(pipe: StableDiffusionPipeline) -> list[dict[str, Any]]:
    """Tell which LoRAs take part when a pipeline makes a clip, and how strongly; also those that diffusers loaded.

    Parameters
    ----------
    pipe : StableDiffusionPipeline

    Returns
    -------
    list of dict
        Sorted by ``name``. ``sha256`` (hexadecimal) is that of its matrices, read as float32, and of its own scale
        (alpha through rank). ``weight`` is a number or, where layers have different ones, a dict of layers and numbers.
        It fits into JSON.
    """
    digests: dict[str, Any] = {}
    weights: dict[str, dict[str, float]] = {}
    for layer_name, layer in _adapter_layers(pipe):
        for name in layer.active_adapters:
            matrices = [(key, value) for key, value in layer.named_parameters() if key.split(".")[1:2] == [name]]
            if not matrices:
                continue
            digest = digests.setdefault(name, hashlib.sha256())
            scale = _own_scale(layer, name)
            digest.update(f"{layer_name} {scale:.7g}".encode())
            for key, value in sorted(matrices):
                digest.update(key.replace(f".{name}", "", 1).encode())
                digest.update(value.detach().cpu().float().flatten().numpy())
            weight = layer.scaling[name] / scale if scale else 0.0
            weights.setdefault(name, {})[layer_name] = float(f"{weight:.7g}")
    return [
        {"name": name, "sha256": digests[name].hexdigest(), "weight": _one_number(weights[name])}
        for name in sorted(digests)
    ]


def lora_facts(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Give what a recipe keeps of a pipeline's LoRAs: `active_loras` under ``loras``; nothing where there are none."""
    loras = active_loras(pipe)
    return {"loras": loras} if loras else {}


def _adapter_layers(pipe: StableDiffusionPipeline) -> Iterator[tuple[str, nn.Module]]:
    """Go through the layers of a pipeline that have LoRAs which are switched on."""
    parts = {part: getattr(pipe, part) for part in PARTS}
    if not any(getattr(part, "peft_config", None) for part in parts.values()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer  # peft takes a while to import, and may be missing

    for part_name, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters:
                yield f"{part_name}.{name.removeprefix('_orig_mod.')}", layer


def _own_scale(layer: Any, name: str) -> float:
    """Scale that a LoRA has in a layer at weight 1: alpha through rank, or its root; 1 for other adapters."""
    if not hasattr(layer, "lora_alpha"):
        return 1.0
    rank = layer.r[name]
    return layer.lora_alpha[name] / (rank**0.5 if layer.use_rslora.get(name) else rank)


def _one_number(weights: dict[str, float]) -> float | dict[str, float]:
    different = set(weights.values())
    return different.pop() if len(different) == 1 else weights


def recipe_loras(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the LoRAs of a recipe, as `active_loras` gives those of a pipeline.

    Raises
    ------
    ValueError
        If they cannot be understood.
    """
    loras = recipe.get("loras", [])
    try:
        return [{key: lora[key] for key in ("name", "sha256", "weight")} for lora in loras]
    except (TypeError, KeyError) as error:
        raise ValueError(f"the recipe's loras cannot be understood: {loras!r:.80}") from error


def other_loras(recipe: Mapping[str, Any], pipe: StableDiffusionPipeline) -> str | None:
    """Compare the LoRAs of a recipe with those of the pipeline that is to follow it.

    Returns
    -------
    str or None
        Both, and what would make them the same, to go on from "the clip was made"; None if they are the same.

    Raises
    ------
    ValueError
        If those of the recipe cannot be understood.
    """
    wanted, found = recipe_loras(recipe), active_loras(pipe)
    strengths = {lora["sha256"]: lora["weight"] for lora in wanted}  # the same ones may have other names here
    if strengths == {lora["sha256"]: lora["weight"] for lora in found}:
        return None
    advice = ""
    is_plain = all(isinstance(weight, int | float) for weight in strengths.values())
    if is_plain and strengths.keys() == {lora["sha256"] for lora in found}:
        names, weights = [lora["name"] for lora in found], [strengths[lora["sha256"]] for lora in found]
        advice = f" (pipe.set_adapters({names}, {weights}) makes it the same)"
    made_with, here = named_with_weights(wanted), named_with_weights(found)
    return f"with {made_with}, and the pipeline has {here}: other weights, it will differ{advice}"


def named_with_weights(loras: list[dict[str, Any]]) -> str:
    """Name LoRAs and how strong they are: ``the LoRA funk at 0.8``."""
    if not loras:
        return "no LoRA"
    each = []
    for lora in loras:
        weight = lora["weight"]
        strength = f"{weight:g}" if isinstance(weight, int | float) else "different weights in its layers"
        each.append(f"{lora['name']} at {strength}")
    return f"the LoRA{'s' * (len(each) > 1)} {', '.join(each)}"
