"""LoRAs: loading them into a pipeline, checking that they fit, and describing them in recipes.

A LoRA (https://arxiv.org/abs/2106.09685) adds the scaled product of two low-rank matrices, ``B @ A``, to a layer's
weight. diffusers and peft load and apply it; this module checks what they would silently ignore.
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
PARTS = ("unet", "text_encoder")  # the networks that a LoRA may change
LORA_FILES = (".safetensors", ".bin", ".pt", ".ckpt")
# Default file names of diffusers and peft, which do not describe the LoRA
USUAL_NAMES = ("pytorch_lora_weights", "adapter_model")
PEFT_CONFIG = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PART_PREFIXES = tuple(f"{part}." for part in PARTS)  # of matrix names in diffusers' format
# The settings of a peft configuration that determine the scale of each layer
_PEFT_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class Lora:
    """A LoRA to load: its file, its weight, its adapter name in the pipeline, and what else it is called."""

    path: Path
    weight: float
    name: str
    titles: tuple[str, ...]  # its name on the Hub, of its file without the ending, or of its folder


def lora_weights(lora: LoraSource | Mapping[LoraSource, float] | None) -> dict[str, float]:
    """Check the argument ``lora`` of `load_pipeline`, and return the weight of each LoRA.

    Raises
    ------
    TypeError, ValueError
        If it is neither a name nor a dict of names and weights, or a weight is not a finite number.
    ImportError
        If the package peft is missing.
    """
    if lora is None:
        return {}
    sources = {lora: 1.0} if isinstance(lora, str | os.PathLike) else lora
    if not isinstance(sources, Mapping) or not all(isinstance(source, str | os.PathLike) for source in sources):
        raise TypeError(f"lora must be a file, a folder or a name, or a dict of these and weights, not {lora!r}")
    weights: dict[str, float] = {}
    for source, weight in sources.items():
        name = os.fspath(source)
        weights[name] = check_number(f"the weight of the LoRA {name!r}", weight)
    if weights and not is_peft_available():
        raise ImportError("loading a LoRA needs the package peft: pip install peft")
    return weights


def named_loras(weights: Mapping[Path, float], hub_names: Mapping[Path, str]) -> list[Lora]:
    """Give LoRAs unique adapter names derived from their file names.

    Parameters
    ----------
    weights : dict of Path to float
        Weight of each file.
    hub_names : dict of Path to str
        ``"owner/name"`` of each file that is from the Hub: its folder is named after a commit.
    """
    loras: list[Lora] = []
    for path, weight in weights.items():
        hub_name = hub_names.get(path)
        stem = path.stem
        if stem in USUAL_NAMES:
            stem = hub_name.rpartition("/")[2] if hub_name else path.parent.name
        base = re.sub(r"\W", "_", stem)  # a dot would separate module names
        # peft uses the name as the key of a ModuleDict, and replaces it inside names that contain "lora_"
        is_reserved = hasattr(nn.ModuleDict, base) or base in "lora_"
        name = f"{base}_1" if is_reserved else base
        number = 1
        while name in (lora.name for lora in loras):
            number += 1
            name = f"{base}_{number}"
        loras.append(Lora(path, weight, name, titles=(hub_name, stem) if hub_name else (stem,)))
    return loras


def file_in_folder(names: list[str], folder: str) -> str:
    """Choose the weight file of a LoRA among the file names in its folder: default names first, safetensors first.

    Raises
    ------
    OSError
        If there is none, or more than one.
    """
    candidates = sorted(name for name in names if Path(name).suffix in LORA_FILES)
    usual = [name for name in candidates if Path(name).stem in USUAL_NAMES]
    for preferred in (usual, candidates):
        safetensors = [name for name in preferred if name.endswith(".safetensors")]
        choice = safetensors or preferred
        if len(choice) == 1:
            return choice[0]
    if not candidates:
        raise OSError(f"there is no LoRA in {folder!r}: no file that ends in {', '.join(LORA_FILES)}")
    raise OSError(f"there are {len(candidates)} files in {folder!r}, {', '.join(candidates)}: pass one of them as LoRA")


def load_loras(pipe: StableDiffusionPipeline, loras: list[Lora]) -> None:
    """Load LoRAs into a pipeline, and set their weights.

    They become diffusers adapters: ``pipe.set_adapters(names, weights)`` changes their weights, and
    ``pipe.unload_lora_weights()`` removes all of them, which restores the model bit for bit.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    loras : list of Lora

    Raises
    ------
    OSError
        If one cannot be read, or does not fit the model.
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
        raise OSError("it is not a LoRA; if it is a whole model, pass it as the model")
    if any(re.search(r"lokr_|hada_|dora_scale", name) for name in names):
        raise OSError("it is a LoKr, LoHa or DoRA, which cannot be loaded here: use a plain LoRA")
    state_dict, network_alphas, metadata = pipe.lora_state_dict(str(lora.path), return_lora_metadata=True)
    if network_alphas:
        state_dict = _with_alphas(state_dict, network_alphas)
    # transformers 5.6 removed the module text_model
    state_dict = {re.sub(r"\btext_model\.", "", name): weight for name, weight in state_dict.items()}
    if any(name.startswith(_PEFT_PREFIX) for name in state_dict):
        metadata = _peft_settings(lora.path)
    if not any(name.startswith(_PART_PREFIXES) for name in state_dict):
        state_dict = _with_parts(pipe, state_dict)
    unknown = [name for name in state_dict if not name.startswith(_PART_PREFIXES)]
    if unknown:
        raise OSError(
            f"this model has no place for {len(unknown)} of its {len(state_dict)} matrices, such as {unknown[0]}"
        )
    options = {"network_alphas": None, "adapter_name": lora.name, "metadata": metadata, "_pipeline": pipe}
    changes_unet = _check_fit(pipe, "unet", state_dict)
    changes_text_encoder = _check_fit(pipe, "text_encoder", state_dict)
    if changes_unet:
        pipe.load_lora_into_unet(state_dict, unet=pipe.unet, **options)
    if changes_text_encoder:
        pipe.load_lora_into_text_encoder(state_dict, text_encoder=pipe.text_encoder, **options)


def _with_alphas(state_dict: Mapping[str, Tensor], network_alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """Multiply the second matrix of each layer by its scale alpha / rank, which kohya's format stores separately.

    diffusers would apply it to all layers only if they have the same scale.
    """
    scaled = {name: weight.float() for name, weight in state_dict.items()}
    for name, alpha in network_alphas.items():
        layer = name.removesuffix(".alpha")  # may already be the name of the first matrix
        down = layer if layer in scaled else f"{layer}.lora.down.weight"
        up = down.replace(".down.", ".up.")
        scaled[up] *= alpha / len(scaled[down])
    return scaled


def _with_parts(pipe: StableDiffusionPipeline, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prefix the name of each matrix with the part it belongs to, which peft and older versions of diffusers omit."""
    layers = {part: dict(getattr(pipe, part).named_modules()) for part in PARTS}
    named = {}
    for name, weight in state_dict.items():
        name = name.removeprefix(_PEFT_PREFIX)
        (peft_name,) = convert_unet_state_dict_to_peft({name: weight})
        part = next((part for part in PARTS if _layer_name(peft_name) in layers[part]), None)
        named[f"{part}.{name}" if part else name] = weight
    return named


def _peft_settings(path: Path) -> dict[str, Any]:
    """Read the scale of a LoRA from the configuration that peft writes beside it, in diffusers' format."""
    file = path.with_name(PEFT_CONFIG)
    if not file.is_file():
        raise OSError(f"it is in peft's format, but {PEFT_CONFIG}, which contains its scale, is not in the same folder")
    content = json.loads(file.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    settings |= {name: content[name] for name in _PEFT_SETTINGS if content.get(name)}
    return {f"{part}.{name}": value for part in PARTS for name, value in settings.items()}


def _check_fit(pipe: StableDiffusionPipeline, part: str, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a LoRA changes this part of the model.

    Raises
    ------
    OSError
        If it does, but its matrices do not fit the part's layers.
    """
    prefix = f"{part}."
    matrices = {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
    if not matrices:
        return False
    if part == "unet":
        matrices = convert_unet_state_dict_to_peft(matrices)
    else:
        matrices = convert_state_dict_to_peft(convert_state_dict_to_diffusers(matrices))
    layers: dict[str, Any] = dict(getattr(pipe, part).named_modules())
    names = list(dict.fromkeys(_layer_name(name) for name in matrices))
    absent = [name for name in names if name not in layers]
    if absent:
        how_many = "all" if len(absent) == len(names) else len(absent)
        advice = "it was made for another kind of model"
        raise OSError(f"the {part} lacks {how_many} of its {len(names)} layers, such as {absent[0]}: {advice}")
    for name in names:
        _check_shapes(name, layers[name], matrices)
    return True


def _check_shapes(name: str, layer: Any, matrices: Mapping[str, Tensor]) -> None:
    """Refuse a LoRA whose two matrices do not multiply to the shape of a layer's weight."""
    weight = tuple(getattr(layer, "base_layer", layer).weight.shape)  # (out, in), or (out, in, height, width)
    a = _shape(matrices, f"{name}.lora_A.weight")  # (rank, in, ...)
    b = _shape(matrices, f"{name}.lora_B.weight")  # (out, rank, ...)
    has_same_inputs = a[1:] == weight[1:]
    has_same_outputs = b[0] == weight[0]
    has_same_rank = a[0] == b[1]
    if has_same_inputs and has_same_outputs and has_same_rank:
        return
    sizes = f"{a[1]} inputs and {b[0]} outputs, the model's {weight[1]} and {weight[0]}"
    raise OSError(f"its layer {name} has {sizes}: it was made for another base model")


def _layer_name(name: str) -> str:
    """Name of the layer that a matrix in peft's format belongs to."""
    return re.sub(r"\.lora[_.].*", "", name)


def _shape(weights: Mapping[str, Tensor], name: str) -> Shape:
    if name not in weights:
        raise OSError(f"it is incomplete: it lacks {name}")
    return tuple(weights[name].shape)


def active_loras(pipe: StableDiffusionPipeline) -> list[dict[str, Any]]:
    """List the LoRAs that are active in a pipeline, including those loaded with diffusers' own functions.

    Parameters
    ----------
    pipe : StableDiffusionPipeline

    Returns
    -------
    list of dict
        Sorted by ``name``, serializable as JSON. ``sha256`` (hexadecimal) is the hash of its matrices as float32 and
        its own scale (alpha / rank). ``weight`` is a number or, if layers have different weights, a dict of layers and
        numbers.
    """
    digests: dict[str, Any] = {}
    weights: dict[str, dict[str, float]] = {}
    for layer_name, layer in _adapter_layers(pipe):
        for name in layer.active_adapters:
            matrices = [(key, value) for key, value in layer.named_parameters() if _adapter_name(key) == name]
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


def active_names(pipe: StableDiffusionPipeline) -> set[str]:
    """Adapter names of the LoRAs that are active in a pipeline, or fused into its weights."""
    active = {name for _, layer in _adapter_layers(pipe) for name in layer.active_adapters}
    return active | set(pipe.fused_loras)


def lora_facts(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Recipe entry for a pipeline's LoRAs: `active_loras` under ``loras``; empty if there are none."""
    loras = active_loras(pipe)
    return {"loras": loras} if loras else {}


def _adapter_name(parameter: str) -> str | None:
    """Name of the adapter that a parameter such as ``lora_A.funk.weight`` belongs to."""
    parts = parameter.split(".")
    return parts[1] if len(parts) > 1 else None


def _adapter_layers(pipe: StableDiffusionPipeline) -> Iterator[tuple[str, Any]]:
    """Names and layers of a pipeline with adapters that are not disabled."""
    parts = {part: getattr(pipe, part) for part in PARTS}
    if not any(getattr(part, "peft_config", None) for part in parts.values()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer  # peft takes a while to import, and may be missing

    for part_name, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters:
                yield f"{part_name}.{name.removeprefix('_orig_mod.')}", layer


def _own_scale(layer: Any, name: str) -> float:
    """Scale of a LoRA in a layer at weight 1: alpha / rank, or alpha / sqrt(rank) (rsLoRA); 1 for other adapters."""
    if not hasattr(layer, "lora_alpha"):
        return 1.0
    alpha: float = layer.lora_alpha[name]
    rank: float = layer.r[name]
    if layer.use_rslora.get(name):
        return alpha / rank**0.5
    return alpha / rank


def _one_number(weights: dict[str, float]) -> float | dict[str, float]:
    """The weight of all layers if it is the same, else the weight of each layer."""
    different = set(weights.values())
    return different.pop() if len(different) == 1 else weights


def recipe_loras(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """LoRAs of a recipe, in the form of `active_loras`.

    Raises
    ------
    ValueError
        If they cannot be parsed.
    """
    loras = recipe.get("loras", [])
    try:
        return [{key: lora[key] for key in ("name", "sha256", "weight")} for lora in loras]
    except (TypeError, KeyError) as error:
        raise ValueError(f"the recipe's loras cannot be understood: {loras!r:.80}") from error


def other_loras(recipe: Mapping[str, Any], pipe: StableDiffusionPipeline) -> str | None:
    """Compare the LoRAs of a recipe with those of the pipeline that is to replay it.

    Returns
    -------
    str or None
        Continuation of "the clip was made" that names both, and what would make them the same; None if they are.

    Raises
    ------
    ValueError
        If those of the recipe cannot be parsed.
    """
    wanted = recipe_loras(recipe)
    found = active_loras(pipe)
    wanted_weights = {lora["sha256"]: lora["weight"] for lora in wanted}  # adapter names may differ
    found_weights = {lora["sha256"]: lora["weight"] for lora in found}
    if wanted_weights == found_weights:
        return None
    advice = ""
    are_numbers = all(isinstance(weight, int | float) for weight in wanted_weights.values())
    if are_numbers and wanted_weights.keys() == found_weights.keys():
        names = [lora["name"] for lora in found]
        weights = [wanted_weights[lora["sha256"]] for lora in found]
        advice = f" (pipe.set_adapters({names}, {weights}) makes it the same)"
    made_with = named_with_weights(wanted)
    here = named_with_weights(found)
    return f"with {made_with}, and the pipeline has {here}: other weights, it will differ{advice}"


def named_with_weights(loras: list[dict[str, Any]]) -> str:
    """Names and weights of LoRAs for a sentence: ``the LoRA funk at 0.8``."""
    if not loras:
        return "no LoRA"
    each = []
    for lora in loras:
        weight = lora["weight"]
        strength = f"{weight:g}" if isinstance(weight, int | float) else "different weights in its layers"
        each.append(f"{lora['name']} at {strength}")
    noun = "the LoRA" if len(each) == 1 else "the LoRAs"
    return f"{noun} {', '.join(each)}"
