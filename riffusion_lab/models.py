"""Models: riffling, Riffusion v1 or any Stable Diffusion made from them, loaded as stock pipelines."""

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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import diffusers
import torch
import transformers
from diffusers.utils import is_peft_available
from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import HFValidationError
from packaging.version import Version

if TYPE_CHECKING:  # importing it makes transformers talk: see _quiet
    from diffusers import StableDiffusionPipeline

Pipeline: TypeAlias = "StableDiffusionPipeline"
WEIGHTS = Path(__file__).parent / "weights"  # the embedded models, one folder each
SETTINGS_FILE = "riffusion_lab.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What is raised where the Hub does not answer. Its own errors refine those of the library it asks with, which is httpx
# or httpx2, and OSError, of which its offline mode is one as well
NO_ANSWER = HfHubHTTPError.__bases__
KEEP_MEMORY_VARIABLE = "RIFFUSION_LAB_KEEP_MEMORY"  # 0: see `keep_freed_memory`
# diffusers renamed the keyword: 0.39 knows only the old name, 0.42 warns about it
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
# What the libraries say about every model of our kind, and we have decided already
_NO_NEWS = ("Expected types for vae", "Defaulting to unsafe serialization", "requires torchvision")


@dataclass(frozen=True)
class ModelSettings:
    """What a model likes best, read from the file ``riffusion_lab.json`` in its folder.

    The defaults are those of Riffusion v1, which has no such file.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.0
    loop: bool = False  # whether its clips close into a loop
    vocabulary: tuple[str, ...] = ()  # words it was taught; empty: not known
    tempi_bpm: tuple[int, ...] = ()  # tempi it was taught; empty: not known
    steady_noise_gain: float = 1.0  # how much stronger the lasting part of a clip's first noise is: `first_noise`
    pag_applied_layers: tuple[str, ...] = ()  # blocks that look nowhere else without the words: `perturbed_attention`


def load_pipeline(
    model: str | os.PathLike[str] = "riffling",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    lora: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """Load a model, and say in one line what was loaded, where and how exactly it calculates.

    Parameters
    ----------
    model : str or path
        ``"riffling"`` (comes with this package), a folder in diffusers' layout, or the name of a
        model on the Hugging Face Hub, such as ``"riffusion/riffusion-model-v1"``.
    device : str or torch.device, optional
        Default: CUDA, else MPS (a Mac; riffling takes the CPU there), else the CPU.
    dtype : str or torch.dtype, optional
        ``float16``, ``bfloat16`` or ``float32``. Default: float16 on CUDA, else float32.
    lora : str or path, optional
        A LoRA (file, folder or Hub name) to load on top. Needs the package ``peft``.
    local_files_only : bool
        Read a model of the Hub from what was downloaded before, and do not ask for a newer version.

    Returns
    -------
    StableDiffusionPipeline
        diffusers' own, without the safety checker: it judges photographs, not spectrograms.

    Raises
    ------
    OSError
        If there is no such model, it is no Stable Diffusion, or it cannot be read.
    ValueError
        If there is no such device or dtype.

    Notes
    -----
    Weights are read from safetensors; older pickles only through torch's weights-only loading,
    which runs no code. No account's token is ever sent. On a CPU with glibc, the process is told to keep
    freed memory for itself, unless the environment variable ``RIFFUSION_LAB_KEEP_MEMORY`` is 0 (`keep_freed_memory`).

    Taught in: 00, 03
    """
    source = _source(model)
    device = _device(device, prefer_cpu=source == str(WEIGHTS / "riffling"))
    dtype = _dtype(dtype, device)
    lora = None if lora is None else _lora_source(lora)
    if device.type == "cpu":
        keep_freed_memory()
    with _quiet(bars=HUB_ID.fullmatch(source) is not None):
        pipe = _read(source, dtype, local_files_only=local_files_only).to(device)
    if lora is not None:
        pipe.load_lora_weights(lora, token=False)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())  # in notebooks each bar would be saved
    print(f"{model_name(pipe)} on {device.type} in {str(dtype).removeprefix('torch.')}")
    return pipe


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, instead of giving it back to the system.

    With glibc every large tensor is else mapped anew, page by page, which took a third of the time that a U-Net takes
    on a CPU. Those of more than 32 MB still are, as few of the decoder's: between smaller ones they would leave ever
    more gaps. Elsewhere this does nothing. See mallopt(3).

    It holds for the whole process and cannot be taken back. With the environment variable ``RIFFUSION_LAB_KEEP_MEMORY``
    set to 0, nothing is done.
    """
    if platform.libc_ver()[0] == "glibc" and os.environ.get(KEEP_MEMORY_VARIABLE) != "0":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: the most it takes
        c_library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give back nothing


def is_downloaded(hub_id: str) -> bool:
    """Tell whether a model of the Hugging Face Hub lies in its cache.

    A folder of the same name in the working directory would be loaded in its place: then the answer is no.
    """
    if not HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        return False
    try:
        return isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str)
    except HFValidationError:  # such as "../folder"
        return False


def vocabulary(pipe: Pipeline) -> list[str]:
    """Words the model was taught; an empty list where nobody wrote them down.

    Taught in: 00, 03
    """
    return list(model_settings(pipe).vocabulary)


def model_name(pipe: Pipeline) -> str:
    """Name under which ``load_pipeline`` finds the model again: no path of this machine."""
    name = pipe.name_or_path or "unnamed"
    return name if HUB_ID.fullmatch(name) else Path(name).name


def model_settings(pipe: Pipeline) -> ModelSettings:
    """Read the model's own settings, or Riffusion v1's where the model brings none.

    Raises
    ------
    OSError
        If the model's file ``riffusion_lab.json`` cannot be understood.
    """
    name = pipe.name_or_path or ""
    in_cache = HUB_ID.fullmatch(name) and not Path(name).is_dir()
    path = try_to_load_from_cache(name, SETTINGS_FILE) if in_cache else Path(name) / SETTINGS_FILE
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return ModelSettings()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {field.name for field in fields(ModelSettings)}
        chosen = {key: value for key, value in content.items() if key in known}
    except (ValueError, AttributeError) as error:
        raise OSError(f"{SETTINGS_FILE} of the model {model_name(pipe)!r} is no JSON object: {error}") from error
    return ModelSettings(**{key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()})


def _source(model: str | os.PathLike[str]) -> str:
    """Find what ``from_pretrained`` takes: an absolute folder, or a name on the Hub."""
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a name or a folder, not {model!r}")
    if model == "riffling":
        return str(WEIGHTS / "riffling")
    if model and Path(model).is_dir():
        return str(Path(model).resolve())
    if isinstance(model, str) and HUB_ID.fullmatch(model):
        return model
    known = "'riffling', a folder in diffusers' layout, or a name on the Hub such as 'riffusion/riffusion-model-v1'"
    raise OSError(f"there is no model {str(model)!r}: give {known}")


def _lora_source(lora: str | os.PathLike[str]) -> str:
    if not Path(lora).exists() and not HUB_ID.fullmatch(str(lora)):
        raise OSError(f"there is no LoRA {str(lora)!r}: give a .safetensors file, its folder, or a name on the Hub")
    if not is_peft_available():
        raise ImportError("loading a LoRA needs the package peft: pip install peft")
    return str(lora)


def _device(device: str | torch.device | None, *, prefer_cpu: bool) -> torch.device:
    mps = torch.backends.mps.is_available()
    if device is None:
        # on a Mac the GPU would take longer to start than riffling takes on the CPU
        device = "cuda" if torch.cuda.is_available() else "mps" if mps and not prefer_cpu else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is none that torch knows; take 'cuda', 'mps' or 'cpu'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available() or chosen.type == "mps" and not mps:
        raise ValueError(f"device {device!r} is not available here; take 'cpu', or leave device out")
    return chosen


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be 'float16', 'bfloat16' or 'float32', not {dtype!r}")
    return chosen


def _read(source: str, dtype: torch.dtype, *, local_files_only: bool) -> Pipeline:
    """Read a stock pipeline; every failure becomes an OSError that names the model."""
    on_hub = HUB_ID.fullmatch(source) is not None
    # the safety checker judges photographs, and the feature extractor serves nothing else
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        where = {"token": False, "local_files_only": on_hub and (local_files_only or not _is_online(source))}
        kind = diffusers.StableDiffusionPipeline.load_config(source, **where).get("_class_name")
        if kind != "StableDiffusionPipeline":
            raise OSError(f"it is a {kind}, not a StableDiffusionPipeline")
        if on_hub:
            _fetch_settings(source, **where)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, **where, **without, **{_DTYPE: dtype})
        if len(pipe.tokenizer) < 256:  # without its files transformers makes one that knows not even the bytes
            raise OSError("its tokenizer has no vocabulary")
        return pipe
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        shown = source if on_hub else Path(source).name
        question = "is this its name, and are you online?" if on_hub else "is it a whole folder in diffusers' layout?"
        raise OSError(f"cannot load the model {shown!r} ({question}): {error}") from error


def _is_online(hub_id: str) -> bool:
    """Ask the Hub for a model once; without an answer, what was downloaded before must do."""
    try:
        model_info(hub_id, token=False, timeout=10)
    except HfHubHTTPError:  # an answer, and it is no
        raise
    except NO_ANSWER:
        return False
    return True


def _fetch_settings(hub_id: str, **where: bool) -> None:
    """Put the model's settings, which diffusers would not download, into the Hub's cache."""
    try:
        hf_hub_download(hub_id, SETTINGS_FILE, **where)
    except EntryNotFoundError:  # as in Riffusion v1: there are none
        pass


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep quiet what is no news, and (unless something is downloaded) the progress bars."""

    def is_news(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in _NO_NEWS)

    modules = "diffusers.pipelines.pipeline_utils", "diffusers.models.modeling_utils", "transformers.utils.import_utils"
    with ExitStack() as stack, warnings.catch_warnings():
        for talker in map(logging.getLogger, modules):
            talker.addFilter(is_news)
            stack.callback(talker.removeFilter, is_news)
        for switch in (diffusers.utils.logging, transformers.utils.logging):
            if switch.is_progress_bar_enabled() and not bars:
                switch.disable_progress_bar()
                stack.callback(switch.enable_progress_bar)
        # diffusers still passes it to a Hub library that has dropped it
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
        yield
