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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download, list_repo_files, model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import HFValidationError

from .checkpoints import DTYPE, SINGLE_FILES, load_parts, read_single_file
from .lora import LORA_FILES, PEFT_CONFIG, Lora, LoraSource, file_in_folder, load_loras, lora_weights, named_loras
from .torch_defaults import torch_defaults
from .values import in_one_line

if TYPE_CHECKING:  # importing it makes transformers talk: see _quiet
    from diffusers import StableDiffusionPipeline

Pipeline: TypeAlias = "StableDiffusionPipeline"
WEIGHTS = Path(__file__).parent / "weights"  # the embedded models, one folder each
SETTINGS_FILE = "riffusion_lab.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ORIGIN = "_riffusion_lab"  # attribute of a U-Net: a `_Origin`
# What is raised where the Hub does not answer. Its own errors refine those of the library it asks with, which is httpx
# or httpx2, and OSError, of which its offline mode is one as well
NO_ANSWER = HfHubHTTPError.__bases__
KEEP_MEMORY_VARIABLE = "RIFFUSION_LAB_KEEP_MEMORY"  # 0: see `keep_freed_memory`
# What the libraries say about every model of our kind, and we have decided already
_NO_NEWS = (
    "Expected types for vae",
    "Defaulting to unsafe serialization",
    "requires torchvision",
    "EMA weights",
    "kept in float32: []",
)


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


class _Origin(NamedTuple):
    """What a U-Net remembers of the model that it comes from, also in another pipeline of the same parts."""

    name: str
    settings: ModelSettings


@torch_defaults()
def load_pipeline(
    model: str | os.PathLike[str] = "riffling",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    lora: LoraSource | Mapping[LoraSource, float] | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """Load a model, and say in one line what was loaded, where and how exactly it calculates.

    Parameters
    ----------
    model : str or path
        ``"riffling"`` (comes with this package), a folder in diffusers' layout, a ``.safetensors`` or ``.ckpt`` file
        with the whole of a Stable Diffusion 1.x, or the name of a model on the Hugging Face Hub, such as
        ``"riffusion/riffusion-model-v1"``. Parts of a folder that are there as a variant only, such as ``fp16``, are
        read from it.
    device : str or torch.device, optional
        Default: CUDA, else MPS (a Mac; riffling takes the CPU there), else the CPU.
    dtype : str or torch.dtype, optional
        ``float16``, ``bfloat16`` or ``float32``. Default: float16 on CUDA, else float32.
    lora : str, path or dict, optional
        A LoRA to load on top: a file, a folder that holds one, or a name on the Hub. A dict gives one or several with
        how strong each is to be, ``{"funk.safetensors": 0.8, "dub.safetensors": -0.3}``; alone it has 1. Needs the
        package ``peft``. In the pipeline it is named after its file: ``pipe.set_adapters("funk", 0.5)`` changes how
        strong it is, ``pipe.unload_lora_weights()`` takes all off and leaves the model as it was, to the bit.
    local_files_only : bool
        Read what is on the Hub from what was downloaded before, and do not ask for a newer version.

    Returns
    -------
    StableDiffusionPipeline
        diffusers' own, without the safety checker: it judges photographs, not spectrograms.

    Raises
    ------
    OSError
        If there is no such model or LoRA, it is no Stable Diffusion, it cannot be read, or the LoRA was made for
        another model.
    TypeError, ValueError
        If there is no such device or dtype, a LoRA is given twice, or its weight is no finite number.
    ImportError
        If there is a LoRA, but not the package ``peft``.

    Notes
    -----
    Weights are read from safetensors; older pickles only through torch's weights-only loading,
    which runs no code. The model's settings are read once, here. No account's token is ever sent. On a CPU with glibc,
    the process is told to keep freed memory for itself, unless the environment variable ``RIFFUSION_LAB_KEEP_MEMORY``
    is 0 (`keep_freed_memory`).

    Taught in: 00, 03
    """
    source = _source(model)
    device = _device(device, prefer_cpu=source == str(WEIGHTS / "riffling"))
    dtype = _dtype(dtype, device)
    loras = _find_loras(lora_weights(lora), local_files_only=local_files_only)
    if device.type == "cpu":
        keep_freed_memory()
    with _quiet(bars=HUB_ID.fullmatch(source) is not None):
        pipe = _read(source, dtype, local_files_only=local_files_only)
        model_settings(pipe)  # read now, and kept: the file may change
        load_loras(pipe, loras)
        pipe.to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())  # in notebooks each bar would be saved
    added = "".join(f" with LoRA {lora.name} at {lora.weight:g}" for lora in loras)
    print(f"{model_name(pipe)}{added} on {device.type} in {str(dtype).removeprefix('torch.')}")
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


def execution_device(pipe: Pipeline) -> torch.device:
    """Device on which a pipeline's networks compute: of an offloaded one, not the device where its weights wait.

    diffusers has no public name for it; all its own pipelines ask for this one.
    """
    return pipe._execution_device


def model_name(pipe: Pipeline) -> str:
    """Name under which ``load_pipeline`` finds the model again: no path of this machine."""
    source = _source_of(pipe)
    if source:
        return source if HUB_ID.fullmatch(source) else Path(source).name
    origin = getattr(pipe.unet, _ORIGIN, None)
    return origin.name if origin else "unnamed"


def model_settings(pipe: Pipeline) -> ModelSettings:
    """Give the model's own settings, or Riffusion v1's where the model brings none.

    They are read once, by `load_pipeline` or when first asked for, and kept with the U-Net: so another pipeline of the
    same parts has them too, and a file that changes later changes nothing.

    Raises
    ------
    OSError
        If the model's file ``riffusion_lab.json`` cannot be understood.
    """
    origin = getattr(pipe.unet, _ORIGIN, None)
    if origin is None:
        origin = _Origin(model_name(pipe), _read_settings(pipe))
        setattr(pipe.unet, _ORIGIN, origin)
    return origin.settings


def _source_of(pipe: Pipeline) -> str:
    """Tell where a pipeline was read from: a path or a name on the Hub; empty where nobody knows."""
    if pipe.name_or_path:
        return str(pipe.name_or_path)
    part = pipe.unet.config.get("_name_or_path")  # where diffusers read the U-Net, for a pipeline that is made of parts
    if not part:
        return ""
    folder = Path(part).parent
    if folder.parent.name == "snapshots":  # of the Hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return str(folder)


def _read_settings(pipe: Pipeline) -> ModelSettings:
    source = _source_of(pipe)
    in_cache = HUB_ID.fullmatch(source) and not Path(source).is_dir()
    path = try_to_load_from_cache(source, SETTINGS_FILE) if in_cache else Path(source) / SETTINGS_FILE
    if not source or not isinstance(path, str | Path) or not Path(path).is_file():
        return ModelSettings()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {field.name for field in fields(ModelSettings)}
        chosen = {key: value for key, value in content.items() if key in known}
    except (ValueError, AttributeError) as error:
        raise OSError(f"{SETTINGS_FILE} of the model {model_name(pipe)!r} is no JSON object: {error}") from error
    return ModelSettings(**{key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()})


def _source(model: str | os.PathLike[str]) -> str:
    """Find where to read a model: an absolute path, or a name on the Hub."""
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a name or a folder, not {model!r}")
    if model == "riffling":
        return str(WEIGHTS / "riffling")
    path = Path(model)
    if path.is_file() or (model and path.is_dir()):
        return str(path.resolve())
    if isinstance(model, str) and HUB_ID.fullmatch(model) and path.suffix not in SINGLE_FILES:
        return model
    files = f"a {' or '.join(SINGLE_FILES)} file"
    known = f"'riffling', a folder, {files}, or a name on the Hub such as 'riffusion/riffusion-model-v1'"
    raise OSError(f"there is no model {str(model)!r}: give {known}")


def _find_loras(weights: Mapping[str, float], *, local_files_only: bool) -> list[Lora]:
    """Find the files of LoRAs, before anything large is read."""
    files: dict[Path, float] = {}
    for source, weight in weights.items():
        path = _lora_file(source, local_files_only=local_files_only)
        if any(path.samefile(other) for other in files):
            raise ValueError(f"the LoRA {path.name!r} is given twice: give it once, with the sum of both weights")
        files[path] = weight
    return named_loras(files)


def _lora_file(source: str, *, local_files_only: bool) -> Path:
    """Find a LoRA's weight file: a file, one in a folder, or one on the Hub."""
    path = Path(source)
    if source and path.is_file():
        return path.absolute()
    if source and path.is_dir():
        return path.absolute() / file_in_folder(os.listdir(path), path.absolute().name)
    if not HUB_ID.fullmatch(source) or path.suffix in LORA_FILES:
        raise OSError(f"there is no LoRA {source!r}: give a .safetensors file, its folder, or a name on the Hub")
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
    """Read a stock pipeline; every failure becomes an OSError that names the model, in one line."""
    on_hub = HUB_ID.fullmatch(source) is not None
    try:
        if Path(source).is_file():
            return read_single_file(Path(source), dtype)
        return _read_folder(source, dtype, on_hub=on_hub, local_files_only=local_files_only)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        shown = source if on_hub else Path(source).name
        question = "is it a whole folder in diffusers' layout?"
        if on_hub:
            question = "is this its name, and are you online?"
        elif Path(source).is_file():
            question = "is it a whole Stable Diffusion 1.x?"
        raise OSError(f"cannot load the model {shown!r} ({question}): {in_one_line(error)}") from error


def _read_folder(source: str, dtype: torch.dtype, *, on_hub: bool, local_files_only: bool) -> Pipeline:
    """Read a pipeline in diffusers' layout, from a folder or the Hub."""
    # the safety checker judges photographs, and the feature extractor serves nothing else
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    where = {"token": False, "local_files_only": on_hub and (local_files_only or not _is_online(source))}
    kind = diffusers.StableDiffusionPipeline.load_config(source, **where).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise OSError(f"it is a {kind}, not a StableDiffusionPipeline")
    parts = {}
    if on_hub:
        _fetch_settings(source, **where)
    else:
        parts = load_parts(Path(source), dtype)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, **where, **without, **parts, **{DTYPE: dtype})
    if len(pipe.tokenizer) < 256:  # without its files transformers makes one that knows not even the bytes
        raise OSError("its tokenizer has no vocabulary")
    if pipe.unet.config.in_channels != 4:
        raise OSError(f"its U-Net takes {pipe.unet.config.in_channels} channels, not 4: it makes no clips from text")
    return pipe


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

    modules = (
        "diffusers.loaders.single_file_utils",
        "diffusers.models.modeling_utils",
        "diffusers.pipelines.pipeline_utils",
        "transformers.utils.import_utils",
    )
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
        # peft says of every LoRA but the first
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield
