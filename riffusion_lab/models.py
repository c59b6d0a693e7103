"""Models: riffling, riffling-turbo, Riffusion v1 or any other Stable Diffusion 1.x, as stock diffusers pipelines."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download, list_repo_files, model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from .checkpoints import DTYPE, SINGLE_FILES, load_parts, read_single_file
from .few_steps import AUTO, FEW_STEPS, FewSteps, check_few_steps, few_step_loras
from .lora import (
    LORA_FILES,
    PEFT_CONFIG,
    Lora,
    LoraSource,
    active_names,
    file_in_folder,
    load_loras,
    lora_weights,
    named_loras,
)
from .torch_defaults import torch_defaults
from .values import in_one_line

if TYPE_CHECKING:  # importing it makes transformers log warnings: see quiet
    from diffusers import StableDiffusionPipeline

Pipeline: TypeAlias = "StableDiffusionPipeline"
WEIGHTS = Path(__file__).parent / "weights"
INCLUDED_MODELS = ("riffling", "riffling-turbo")  # in this package, one folder in `WEIGHTS` each
SETTINGS_FILE = "riffusion_lab.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ORIGIN = "_riffusion_lab"  # attribute of a U-Net: a `_Origin`
# Errors raised if the Hub cannot be reached. The Hub's own errors derive from those of its HTTP library (httpx or
# httpx2) and from OSError, and so does the error of its offline mode.
NO_ANSWER: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
KEEP_MEMORY_VARIABLE = "RIFFUSION_LAB_KEEP_MEMORY"  # see `keep_freed_memory`
# Parts of log messages that the libraries write for every Stable Diffusion 1.x, and that need no action
_EXPECTED_MESSAGES = (
    "Expected types for vae",
    "Defaulting to unsafe serialization",
    "requires torchvision",
    "EMA weights",
    "kept in float32: []",
)


@dataclass(frozen=True)
class ModelSettings:
    """Recommended settings of a model, read from the file ``riffusion_lab.json`` in its folder.

    The defaults are those of Riffusion v1, which has no such file.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.0
    loop: bool = False  # whether its clips are loops
    vocabulary: tuple[str, ...] = ()  # words it was trained on; empty: not known
    tempi_bpm: tuple[int, ...] = ()  # tempi it was trained on; empty: not known
    steady_noise_gain: float = (
        1.0  # gain of the part of the initial noise that is constant in time: `scale_static_noise`
    )
    pag_applied_layers: tuple[str, ...] = ()  # blocks for perturbed-attention guidance: `perturbed_attention`
    # Noise levels at which a model of few steps may start from a clip, highest first; empty: those of its own steps
    start_sigmas: tuple[float, ...] = ()


class _Origin(NamedTuple):
    """Name and settings of a model, stored on its U-Net, so that every pipeline with this U-Net has them."""

    name: str
    settings: ModelSettings
    few_step_loras: tuple[str, ...] = ()  # adapter names of the LoRAs that the settings are for


@torch_defaults()
def load_pipeline(
    model: str | os.PathLike[str] = "riffling",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    lora: LoraSource | Mapping[LoraSource, float] | None = None,
    few_steps: str = AUTO,
    local_files_only: bool = False,
) -> Pipeline:
    """Load a model, and print one line with its name, device and dtype.

    Parameters
    ----------
    model : str or path
        ``"riffling"`` or ``"riffling-turbo"``, which are included in this package. riffling-turbo is distilled from
        riffling and needs 3 passes through the U-Net for a clip instead of 24. Or a folder in diffusers' layout, a
        ``.safetensors`` or ``.ckpt`` file with a complete Stable Diffusion 1.x, or the name of a model on the Hugging
        Face Hub, such as ``"riffusion/riffusion-model-v1"``. If a part in a folder exists only as a variant, such as
        ``fp16``, the variant is loaded.
    device : str or torch.device, optional
        Default: CUDA, else MPS (on a Mac, except for the included models), else the CPU.
    dtype : str or torch.dtype, optional
        ``float16``, ``bfloat16`` or ``float32``. Default: float16 on CUDA, else float32.
    lora : str, path or dict, optional
        A LoRA to add: a file, a folder with one, or a name on the Hub; or a dict of one or several LoRAs with their
        weights, ``{"funk.safetensors": 0.8, "dub.safetensors": -0.3}``. The default weight is 1. Needs the package
        ``peft``. The adapter is named after the file: ``pipe.set_adapters("funk", 0.5)`` changes its weight, and
        ``pipe.unload_lora_weights()`` removes all LoRAs, which restores the model bit for bit.
    few_steps : str
        How to treat LoRAs that are distilled to work with few steps, such as ``"latent-consistency/lcm-lora-sdv1-5"``.
        ``"auto"`` recognizes such a LoRA by its name (on the Hub, of the file or its folder, or in the file's
        metadata). It then sets the scheduler and the default steps and guidance scale that the LoRA needs, and names
        them in the printed line. It recognizes LCM-LoRAs (``lcm`` as a word of the name: LCMScheduler, 4 steps,
        guidance 1) and Hyper-SD's LoRAs for 2, 4 or 8 steps without guidance (``Hyper-SD15-4steps-lora``:
        DDIMScheduler, the number of steps in the name, guidance 1). For a LoRA with another name, or a model that
        already contains one, pass ``"lcm"``, ``"hyper-sd-2steps"``, ``"hyper-sd-4steps"`` or ``"hyper-sd-8steps"``.
        ``"none"`` leaves scheduler and settings as they are. In any case, the arguments of a call take precedence, and
        ``pipe.scheduler`` can be set afterwards.
    local_files_only : bool
        Use only what was downloaded from the Hub before, and do not check for a newer version.

    Returns
    -------
    StableDiffusionPipeline
        diffusers' own, without the safety checker: it judges photographs, not spectrograms.

    Raises
    ------
    OSError
        If there is no such model or LoRA, it is not a Stable Diffusion, it cannot be read, or the LoRA does not fit the
        model.
    TypeError, ValueError
        If there is no such device or dtype, a LoRA is listed twice, or its weight is not a finite number; if
        `few_steps` is none of these, or two LoRAs ask for different schedulers or steps.
    ImportError
        If a LoRA is to be loaded without the package ``peft``.

    Notes
    -----
    Weights are read from safetensors. Pickles are read only by torch's weights-only loading, which runs no code. The
    model's settings are read once, here. No access token is ever sent to the Hub. On a CPU with glibc the process keeps
    freed memory, unless the environment variable ``RIFFUSION_LAB_KEEP_MEMORY`` is 0; see `keep_freed_memory`.

    Taught in: 00, 03
    """
    source = _source(model)
    device = _device(device, prefer_cpu=Path(source).parent == WEIGHTS)
    dtype = _dtype(dtype, device)
    check_few_steps(few_steps)
    loras = _find_loras(lora_weights(lora), local_files_only=local_files_only)
    distilled = few_step_loras(loras, few_steps)
    if device.type == "cpu":
        keep_freed_memory()
    with quiet(bars=HUB_ID.fullmatch(source) is not None):
        pipe = _read(source, dtype, local_files_only=local_files_only)
        model_settings(pipe)  # read and kept now, because the file may change later
        load_loras(pipe, loras)
        pipe.to(device)
    kind = next(iter(distilled.values()), few_steps)
    if kind in FEW_STEPS:
        _set_few_steps(pipe, FEW_STEPS[kind], tuple(distilled))
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())  # notebooks would save every bar as output
    added = "".join(f" with LoRA {lora.name} at {lora.weight:g}" for lora in loras)
    settings = f" with {FEW_STEPS[kind]}" if kind in FEW_STEPS else ""
    print(f"{model_name(pipe)}{added} on {device.type} in {str(dtype).removeprefix('torch.')}{settings}")
    return pipe


def _set_few_steps(pipe: Pipeline, few_steps: FewSteps, lora_names: tuple[str, ...]) -> None:
    """Set scheduler, steps and guidance scale for a few-step model; `lora_names`: the LoRAs that it owes this to."""
    pipe.scheduler = few_steps.make_scheduler(pipe.scheduler)
    settings = replace(
        model_settings(pipe),
        num_inference_steps=few_steps.num_inference_steps,
        guidance_scale=few_steps.guidance_scale,
        start_sigmas=(),  # they belong to the scheduler before
    )
    setattr(pipe.unet, _ORIGIN, _Origin(model_name(pipe), settings, lora_names))


def missing_few_step_loras(pipe: Pipeline) -> list[str]:
    """Return the names of the LoRAs that a pipeline's few-step settings are for, if none of them is still active."""
    origin: _Origin | None = getattr(pipe.unet, _ORIGIN, None)
    names = origin.few_step_loras if origin else ()
    if not names or active_names(pipe) & set(names):
        return []
    return list(names)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, instead of returning it to the system.

    By default glibc maps new memory for every large tensor, page by page, which took a third of a U-Net's time on a
    CPU. Tensors of more than 32 MB, of which the decoder has a few, still get new memory each time, because among
    smaller ones they would fragment the memory. With other C libraries this function does nothing. See mallopt(3).

    It affects the whole process and cannot be undone. Setting the environment variable ``RIFFUSION_LAB_KEEP_MEMORY`` to
    0 prevents it.
    """
    is_glibc = platform.libc_ver()[0] == "glibc"
    if is_glibc and os.environ.get(KEEP_MEMORY_VARIABLE) != "0":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: its largest possible value
        c_library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: return nothing


def is_downloaded(hub_id: str) -> bool:
    """Whether a model of the Hugging Face Hub is in the local cache.

    False if the working directory has a folder of the same name, which `load_pipeline` would load instead.
    """
    if not HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        return False
    try:
        return isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str)
    except HFValidationError:  # such as "../folder"
        return False


def vocabulary(pipe: Pipeline) -> list[str]:
    """Words the model was trained on; an empty list if they are not known.

    Taught in: 00, 03
    """
    return list(model_settings(pipe).vocabulary)


def execution_device(pipe: Pipeline) -> torch.device:
    """Device on which a pipeline's networks compute; with offloading, its weights are stored on another one.

    diffusers has no public name for it, but all its pipelines use this attribute.
    """
    device: torch.device = pipe._execution_device
    return device


def model_name(pipe: Pipeline) -> str:
    """Name of the model: its name on the Hub, or the name of its folder or file, without the path on this machine."""
    source = _source_of(pipe)
    if source and HUB_ID.fullmatch(source):
        return source
    if source:
        return Path(source).name
    origin: _Origin | None = getattr(pipe.unet, _ORIGIN, None)
    return origin.name if origin else "unnamed"


def model_settings(pipe: Pipeline) -> ModelSettings:
    """Recommended settings of the model, or those of Riffusion v1 if it has none.

    They are read once, by `load_pipeline` or at the first call, and stored on the U-Net. So other pipelines with this
    U-Net have them too, and later changes to the file have no effect.

    Raises
    ------
    OSError
        If the model's file ``riffusion_lab.json`` cannot be parsed.
    """
    origin: _Origin | None = getattr(pipe.unet, _ORIGIN, None)
    if origin is None:
        origin = _Origin(model_name(pipe), _read_settings(pipe))
        setattr(pipe.unet, _ORIGIN, origin)
    return origin.settings


def keep_settings(pipe: Pipeline, name: str, settings: ModelSettings) -> None:
    """Set the name and recommended settings of a pipeline not loaded from a folder, such as one in training.

    They are stored on its U-Net, as `model_settings` does with those of a file.
    """
    setattr(pipe.unet, _ORIGIN, _Origin(name, settings))


def _source_of(pipe: Pipeline) -> str:
    """Path or Hub name that a pipeline was loaded from; empty if not known."""
    if pipe.name_or_path:
        return str(pipe.name_or_path)
    part = pipe.unet.config.get("_name_or_path")  # set if the U-Net was loaded by itself
    if not part:
        return ""
    folder = Path(part).parent
    if folder.parent.name == "snapshots":  # the Hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return str(folder)


def _read_settings(pipe: Pipeline) -> ModelSettings:
    path = _settings_file(_source_of(pipe))
    if path is None or not path.is_file():
        return ModelSettings()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(ModelSettings)}
        chosen: dict[str, Any] = {key: value for key, value in content.items() if key in known}
    except (ValueError, AttributeError) as error:
        raise OSError(f"{SETTINGS_FILE} of the model {model_name(pipe)!r} is not a JSON object: {error}") from error
    for key, value in chosen.items():
        if isinstance(value, list):
            chosen[key] = tuple(value)
    return ModelSettings(**chosen)


def _settings_file(source: str) -> Path | None:
    """Path of a model's settings, in its folder or in the Hub's cache; None if there cannot be any."""
    if not source:
        return None
    is_on_hub = HUB_ID.fullmatch(source) is not None and not Path(source).is_dir()
    if not is_on_hub:
        return Path(source) / SETTINGS_FILE
    cached = try_to_load_from_cache(source, SETTINGS_FILE)
    return Path(cached) if isinstance(cached, str | Path) else None


def _source(model: str | os.PathLike[str]) -> str:
    """Where to load a model from: an absolute path, or a name on the Hub."""
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a name or a folder, not {model!r}")
    if model in INCLUDED_MODELS:
        return str(WEIGHTS / model)
    path = Path(model)
    if path.is_file() or (model and path.is_dir()):
        return str(path.resolve())
    if isinstance(model, str) and HUB_ID.fullmatch(model) and path.suffix not in SINGLE_FILES:
        return model
    files = f"a {' or '.join(SINGLE_FILES)} file"
    included = ", ".join(repr(name) for name in INCLUDED_MODELS)
    known = f"{included}, a folder, {files}, or a name on the Hub such as 'riffusion/riffusion-model-v1'"
    raise OSError(f"there is no model {str(model)!r}: use {known}")


def _find_loras(weights: Mapping[str, float], *, local_files_only: bool) -> list[Lora]:
    """Find the files of LoRAs, before the large model is loaded."""
    files: dict[Path, float] = {}
    hub_names: dict[Path, str] = {}
    for source, weight in weights.items():
        path = _lora_file(source, local_files_only=local_files_only)
        if not Path(source).exists():
            hub_names[path] = source
        if any(path.samefile(other) for other in files):
            raise ValueError(f"the LoRA {path.name!r} is listed twice: pass it once, with the sum of both weights")
        files[path] = weight
    return named_loras(files, hub_names)


def _lora_file(source: str, *, local_files_only: bool) -> Path:
    """Find the weight file of a LoRA: a file itself, in a folder, or on the Hub."""
    path = Path(source)
    if source and path.is_file():
        return path.absolute()
    if source and path.is_dir():
        return path.absolute() / file_in_folder(os.listdir(path), path.absolute().name)
    if not HUB_ID.fullmatch(source) or path.suffix in LORA_FILES:
        raise OSError(f"there is no LoRA {source!r}: use a .safetensors file, its folder, or a name on the Hub")
    try:
        if local_files_only or not _is_online(source):
            folder = Path(snapshot_download(source, local_files_only=True))
            return folder / file_in_folder(os.listdir(folder), source)
        names = list_repo_files(source, token=False)
        file = file_in_folder([name for name in names if "/" not in name], source)
        if PEFT_CONFIG in names:
            hf_hub_download(source, PEFT_CONFIG, token=False)
        return Path(hf_hub_download(source, file, token=False))
    except NO_ANSWER as error:
        raise OSError(f"cannot find the LoRA {source!r} (is this its name, and are you online?): {error}") from error


def _device(device: str | torch.device | None, *, prefer_cpu: bool) -> torch.device:
    if device is None:
        device = _default_device(prefer_cpu=prefer_cpu)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is not known to torch; take 'cuda', 'mps' or 'cpu'") from error
    lacks_cuda = chosen.type == "cuda" and not torch.cuda.is_available()
    lacks_mps = chosen.type == "mps" and not torch.backends.mps.is_available()
    if lacks_cuda or lacks_mps:
        raise ValueError(f"device {device!r} is not available here; take 'cpu', or leave device out")
    return chosen


def _default_device(*, prefer_cpu: bool) -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available() and not prefer_cpu:  # a Mac's GPU takes longer to start than riffling to run
        return "mps"
    return "cpu"


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be 'float16', 'bfloat16' or 'float32', not {dtype!r}")
    return chosen


def _read(source: str, dtype: torch.dtype, *, local_files_only: bool) -> Pipeline:
    """Load a stock pipeline; every failure becomes an OSError that names the model, in one line."""
    on_hub = HUB_ID.fullmatch(source) is not None
    try:
        if Path(source).is_file():
            return read_single_file(Path(source), dtype)
        return _read_folder(source, dtype, on_hub=on_hub, local_files_only=local_files_only)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        if on_hub:
            name = source
            question = "is this its name, and are you online?"
        elif Path(source).is_file():
            name = Path(source).name
            question = "is it a whole Stable Diffusion 1.x?"
        else:
            name = Path(source).name
            question = "is it a whole folder in diffusers' layout?"
        raise OSError(f"cannot load the model {name!r} ({question}): {in_one_line(error)}") from error


def _read_folder(source: str, dtype: torch.dtype, *, on_hub: bool, local_files_only: bool) -> Pipeline:
    """Load a pipeline in diffusers' layout, from a folder or the Hub."""
    is_offline = on_hub and (local_files_only or not _is_online(source))
    config = diffusers.StableDiffusionPipeline.load_config(source, token=False, local_files_only=is_offline)
    class_name = config.get("_class_name")
    if class_name != "StableDiffusionPipeline":
        raise OSError(f"it is a {class_name}, not a StableDiffusionPipeline")
    parts: dict[str, Any] = {}
    if on_hub:
        _fetch_settings(source, local_files_only=is_offline)
    else:
        parts = load_parts(Path(source), dtype)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        source,
        token=False,
        local_files_only=is_offline,
        safety_checker=None,  # it judges photographs
        feature_extractor=None,  # only the safety checker needs it
        requires_safety_checker=False,
        **parts,
        **{DTYPE: dtype},
    )
    if len(pipe.tokenizer) < 256:  # if its files are missing, transformers makes one without even the 256 byte tokens
        raise OSError("its tokenizer has no vocabulary")
    n_channels = pipe.unet.config.in_channels
    if n_channels != 4:
        raise OSError(f"its U-Net takes {n_channels} channels, not 4: it does not generate clips from text")
    return pipe


def _is_online(hub_id: str) -> bool:
    """Whether the Hub can be reached; if it can, but does not have the model, its error is raised."""
    try:
        model_info(hub_id, token=False, timeout=10)
    except HfHubHTTPError:
        raise
    except NO_ANSWER:
        return False
    return True


def _fetch_settings(hub_id: str, *, local_files_only: bool) -> None:
    """Download the model's settings, which diffusers ignores, into the Hub's cache."""
    try:
        hf_hub_download(hub_id, SETTINGS_FILE, token=False, local_files_only=local_files_only)
    except EntryNotFoundError:
        pass  # a model without settings, such as Riffusion v1


@contextmanager
def quiet(*, bars: bool) -> Iterator[None]:
    """Suppress expected log messages and warnings, and progress bars unless something may be downloaded."""

    def is_unexpected(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in _EXPECTED_MESSAGES)

    names = (
        "diffusers.loaders.single_file_utils",
        "diffusers.models.modeling_utils",
        "diffusers.pipelines.pipeline_utils",
        "transformers.utils.import_utils",
    )
    with ExitStack() as stack, warnings.catch_warnings():
        for name in names:
            logger = logging.getLogger(name)
            logger.addFilter(is_unexpected)
            stack.callback(logger.removeFilter, is_unexpected)
        for library in (diffusers.utils.logging, transformers.utils.logging):
            if library.is_progress_bar_enabled() and not bars:
                library.disable_progress_bar()
                stack.callback(library.enable_progress_bar)
        # diffusers still passes an argument that newer versions of huggingface_hub no longer have
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
        # peft warns for every LoRA but the first
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield
