"""A hash of a pipeline's weights that notices every change, and costs next to nothing if nothing has changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .models import Pipeline, model_settings
from .networks import is_offloaded, locked
from .torch_defaults import torch_defaults

CPU_PIECE = 2**14  # units of 8 bytes that are summed at once: they and their weights fit into a core's cache
PIECE = 2**22  # units that are summed at once on a GPU: 16 MB
FREE_U_FACTORS = ("b1", "b2", "s1", "s2")  # see UNet2DConditionModel.enable_freeu
Layers = list[tuple[str, nn.Module]]

_known_hashes: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


@torch_defaults()
def weights_hash(pipe: Pipeline) -> str:
    """SHA-256 (hexadecimal) of the weights of text encoder, U-Net and autoencoder, read as float32.

    It also covers active adapters (LoRA), FreeU, buffers, and those of the model's settings that clips depend on but
    recipes do not hold. A compiled network has the hash of the original.

    Notes
    -----
    SHA-256 is computed again only after a change. Checksums of all tensors detect one, since torch's version counters
    miss changes made through ``weight.data``.
    """
    hashes = [_module_hash(part) for part in (pipe.text_encoder, pipe.unet, pipe.vae)]
    settings = model_settings(pipe)
    scaling_factor = pipe.vae.config.scaling_factor
    hashes.append(f"{settings.steady_noise_gain} {settings.pag_applied_layers} {scaling_factor}")
    if settings.start_sigmas:
        hashes.append(f" {settings.start_sigmas}")
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _module_hash(module: nn.Module) -> str:
    """SHA-256 of names and values of all tensors; computed again only after a change."""
    with locked(module) if is_offloaded(module) else nullcontext():  # reading the weights moves them
        return _hash_tensors(module)


def _hash_tensors(module: nn.Module) -> str:
    layers = list(module.named_modules())
    lora_numbers = _lora_numbers(layers)
    tensors = _named_tensors(layers, lora_numbers)
    switches = _switches(layers, lora_numbers)
    names = [(name, tensor.dtype) for name, tensor in tensors]
    state = (names, _checksums([tensor for _, tensor in tensors]), switches)
    if module not in _known_hashes or _known_hashes[module][0] != state:
        digest = hashlib.sha256()
        for name, tensor in tensors:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().flatten().numpy().data)
        digest.update(switches.encode())
        _known_hashes[module] = (state, digest.hexdigest())
    return _known_hashes[module][1]


def _named_tensors(layers: Layers, lora_numbers: Mapping[str, str]) -> list[tuple[str, Tensor]]:
    """Parameters by name, then buffers and what parametrizations make of parameters."""
    parameters: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    seen: set[Tensor] = set()  # a tensor that two layers share counts once
    for layer_name, layer in layers:
        for name, tensor in _own_parameters(layer):
            full_name = _join(layer_name, name)
            if tensor not in seen and _is_active(full_name, lora_numbers):
                parameters[_plain_name(full_name, lora_numbers)] = tensor
            seen.add(tensor)
        for name, tensor in layer.named_buffers(recurse=False):
            if tensor not in seen and not _is_range(tensor):
                others[_plain_name(_join(layer_name, name))] = tensor
            seen.add(tensor)
        if is_parametrized(layer):
            others |= {
                _plain_name(_join(layer_name, name)): getattr(layer, name)
                for name in cast("nn.ModuleDict", layer.parametrizations)
            }
    return sorted(parameters.items()) + sorted(others.items())


def _own_parameters(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A layer's own parameters; those that accelerate has put elsewhere until it is called are fetched to the CPU."""
    if not has_offloaded_params(layer):
        yield from layer.named_parameters(recurse=False)
        return
    with align_module_device(layer, torch.device("cpu")):
        yield from layer.named_parameters(recurse=False)


def _join(layer_name: str, name: str) -> str:
    return f"{layer_name}.{name}" if layer_name else name


def _lora_numbers(layers: Layers) -> dict[str, str]:
    """Number the active LoRAs of a network, since neither their names nor inactive ones change a clip."""
    active: set[str] = set()
    for _, layer in _active_lora_layers(layers):
        active.update(layer.active_adapters)
    return {lora: str(number) for number, lora in enumerate(sorted(active))}


def _active_lora_layers(layers: Layers) -> Iterator[tuple[str, Any]]:
    """Layers that peft has put around the network's own (``peft.tuners.lora.LoraLayer``), unless switched off."""
    for name, layer in layers:
        lora_layer: Any = layer
        is_lora = isinstance(vars(layer).get("scaling"), dict)
        if is_lora and not lora_layer.disable_adapters:
            yield name, lora_layer


def _is_active(name: str, lora_numbers: Mapping[str, str]) -> bool:
    """Whether a parameter is the network's own or that of an active LoRA."""
    lora = re.search(r"\.lora_\w+\.(\w+)", name)
    return lora is None or lora[1] in lora_numbers


def _plain_name(name: str, lora_numbers: Mapping[str, str] | None = None) -> str:
    """Name of a tensor or module without the parts that ``torch.compile`` and peft add, and with numbers for LoRAs."""
    numbers = lora_numbers or {}
    name = name.replace("_orig_mod.", "").replace(".base_layer.", ".")
    return re.sub(r"(\.lora_\w+\.)(\w+)", lambda found: found[1] + numbers.get(found[2], found[2]), name)


def _is_range(buffer: Tensor) -> bool:
    """Whether a buffer is 0, 1, 2 …, as a text encoder's ``position_ids``, which have never been part of the hash."""
    return buffer.dtype == torch.int64 and torch.equal(buffer.flatten().cpu(), torch.arange(buffer.numel()))


def _switches(layers: Layers, lora_numbers: Mapping[str, str]) -> str:
    """Active adapters of peft with their strengths, and FreeU's factors; empty without any."""
    loras = {name: layer for name, layer in _active_lora_layers(layers)}
    found = []
    for name, layer in layers:
        if name in loras:
            lora = loras[name]
            scaling = {lora_numbers[adapter]: lora.scaling.get(adapter) for adapter in sorted(lora.active_adapters)}
            merged = [lora_numbers.get(adapter, adapter) for adapter in lora.merged_adapters]
            found.append(f"{_plain_name(name)} {scaling} {merged}")
        free_u = [vars(layer).get(factor) for factor in FREE_U_FACTORS]
        if None not in free_u:
            found.append(f"{_plain_name(name)} {free_u}")
    return "\n".join(found)


def _checksums(tensors: Sequence[Tensor]) -> list[object]:
    """Checksum of each tensor: any single changed number changes it; other changes are missed once in 2**32.

    Each is computed on the tensor's own device, which is much faster than copying the tensor; those from other devices
    are fetched together.
    """
    found: dict[int, object] = {i: _checksum_on_cpu(tensor) for i, tensor in enumerate(tensors) if tensor.is_cpu}
    elsewhere = [i for i in range(len(tensors)) if i not in found]
    if elsewhere:
        device = tensors[elsewhere[0]].device
        sums = torch.stack([_weighted_sum(tensors[i]).to(device) for i in elsewhere]).tolist()
        found |= dict(zip(elsewhere, sums, strict=True))
    return [found[i] for i in range(len(tensors))]


def _checksum_on_cpu(tensor: Tensor) -> tuple[int, bytes]:
    """Sum of a tensor's bits as in `_weighted_sum`, in units of eight bytes, and the remaining bytes.

    NumPy's dot product of integers needs no intermediate array; it is three times as fast as CRC-32.
    """
    data = _units(tensor, torch.uint8).numpy()
    n_units = len(data) // 8
    units = data[: 8 * n_units].view(np.int64)
    weights = _random_weights_on_cpu()
    total = 0
    for i, start in enumerate(range(0, n_units, CPU_PIECE)):
        piece = units[start : start + CPU_PIECE]
        total += (2 * i + 1) * int(np.dot(piece, weights[: len(piece)]))
    return total % 2**64, data[8 * n_units :].tobytes()


def _weighted_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits in units of two bytes, each multiplied by a random weight for its place.

    Without weights, the same numbers in another order would have the same sum.
    """
    units = _units(tensor, torch.int16 if tensor.element_size() > 1 else torch.uint8)
    weights = _random_weights(units.device)
    pieces = units.split(PIECE)
    sums = [(2 * i + 1) * (piece * weights[: len(piece)]).sum() for i, piece in enumerate(pieces)]
    return torch.stack(sums).sum()


@cache
def _random_weights_on_cpu() -> np.ndarray:
    """Weights of shape (CPU_PIECE,) for `_checksum_on_cpu`; odd, so an overflow loses no bit."""
    return np.random.default_rng(0).integers(2**62, size=CPU_PIECE, dtype=np.int64) | 1


@cache
def _random_weights(device: torch.device) -> Tensor:
    """Weights of shape (PIECE,) for `_weighted_sum`, always the same; odd, so an overflow loses no bit."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(2**31, (PIECE,), dtype=torch.int32, generator=generator) | 1
    return weights.to(device)


def _units(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Bits of a tensor as integers, in one dimension."""
    return tensor.detach().flatten().view(dtype)
