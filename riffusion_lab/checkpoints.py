"""Weight files: what they hold, variants of a folder's parts, and Stable Diffusion 1.x in a single file."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from packaging.version import Version
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# diffusers renamed the keyword: 0.39 knows only the old name, 0.42 warns about it
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
SINGLE_FILES = (".safetensors", ".ckpt")
# Configuration and tokenizer of Stable Diffusion 1.x, which a single file does not hold
STABLE_DIFFUSION_V1 = Path(__file__).parent / "stable_diffusion_v1"
# Of several variants the one in the dtype that is asked for, else the most exact one
VARIANTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.([\w-]+?))?"  # the variant
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
# Names in a single file: the first layer of the U-Net, what it reads of the words, and where the other parts begin
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_ATTENTION_TO_WORDS = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
_PARTS = {
    "U-Net": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text encoder": "cond_stage_model.transformer.text_model.",
}
_FAMILIES = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the refiner of Stable Diffusion XL"}
_PARAMETERIZATION_V = re.compile(r"""^\s*parameterization:\s*["']?v["']?\s*$""", re.MULTILINE)

Shape = tuple[int, ...]


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Read names and shapes of the tensors in a weight file, without the numbers.

    Parameters
    ----------
    path : Path
        Of safetensors or, with any other name, a pickle, which is read by torch's weights-only loading.

    Raises
    ------
    OSError
        If it cannot be read, holds no tensors, or is a pickle that only running its code could read.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise OSError(f"{path.name} is torn, or no safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            advice = "convert it to .safetensors where you trust it"
            raise OSError(f"{path.name} holds code ({needed[1]}), which is never run: {advice}") from error
        raise OSError(f"{path.name} is torn, or no file of torch's") from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise OSError(f"{path.name} holds a {type(content).__name__}, not weights by their names")
    shapes = {name: tuple(value.shape) for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not shapes:
        raise OSError(f"{path.name} holds no weights")
    return shapes


def is_lora(names: Collection[str]) -> bool:
    """Tell whether the tensors of these names are a LoRA's, or of another kind of adapter."""
    return any(re.search(r"lora_|\.lora|_lora\.|lokr_|hada_", name) for name in names)


def load_parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load U-Net, autoencoder and text encoder from a folder in diffusers' layout, each whole.

    diffusers' pipelines look for files without a variant, or for one variant (such as ``fp16``) in all parts, and fill
    what a file lacks with random numbers.

    Parameters
    ----------
    folder : Path
    dtype : torch.dtype
        Where a part is there in variants only, the one in this dtype is taken, else the most exact one.

    Returns
    -------
    dict of str to module
        For the pipeline's ``from_pretrained``, which loads the rest.

    Raises
    ------
    OSError
        If a part lacks weights, or has several variants, none of which names a dtype.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    loaded = {}
    for part in ("unet", "vae", "text_encoder"):
        library, class_name = index[part]
        if library not in ("diffusers", "transformers"):
            raise OSError(f"its {part} is of {library!r}, not of diffusers or transformers")
        kind = getattr(import_module(library), class_name)
        options = {DTYPE if library == "diffusers" else "dtype": dtype, "local_files_only": True}
        variant = _only_variant(folder / part, dtype)
        loaded[part], info = kind.from_pretrained(folder / part, variant=variant, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        if missing:
            raise OSError(f"its {part} lacks {len(missing)} weights, such as {missing[0]}")
    return loaded


def _only_variant(folder: Path, dtype: torch.dtype) -> str | None:
    """Name the variant to load a part from; None where there are weights without one, or none at all."""
    files = folder.iterdir() if folder.is_dir() else []
    found = {match[1] for match in map(_WEIGHTS.fullmatch, (file.name for file in files)) if match}
    if not found or None in found:
        return None
    for variant in (VARIANTS[str(dtype).removeprefix("torch.")], *VARIANTS.values()):
        if variant in found:
            return variant
    if len(found) > 1:
        variants = ", ".join(sorted(found))
        raise OSError(f"its {folder.name} comes in the variants {variants}: keep one of them in the folder")
    return found.pop()


def read_single_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load Stable Diffusion 1.x from one file, as it was first published and as most fine-tunes are; without network.

    Where the file has the U-Net's weights twice, the averaged ones (EMA) are taken, as in the folders of the same
    models. Its noise is predicted as epsilon, unless the file's metadata (``modelspec.prediction_type``,
    https://github.com/Stability-AI/ModelSpec), a tensor ``v_pred``, or a ``.yaml`` of the same name beside it says v.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or ``.ckpt``, which is read by torch's weights-only loading.
    dtype : torch.dtype

    Raises
    ------
    OSError
        If the file cannot be read, or is no whole Stable Diffusion 1.x.
    """
    if path.suffix not in SINGLE_FILES:
        raise OSError(f"a single file must be {' or '.join(SINGLE_FILES)}")
    shapes = tensor_shapes(path)
    _check_family(shapes)
    try:
        pipe = diffusers.StableDiffusionPipeline.from_single_file(
            str(path), config=str(STABLE_DIFFUSION_V1), local_files_only=True, extract_ema=True
        )
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.to(dtype=dtype, device="cpu")
    except NotImplementedError as error:  # of torch: what is on the meta device has no numbers
        raise OSError("it lacks some of the weights of Stable Diffusion 1.x") from error
    if _predicts_v(path, shapes):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _check_family(shapes: Mapping[str, Shape]) -> None:
    """Refuse what is no whole Stable Diffusion 1.x, and say what it is."""
    if is_lora(shapes):
        raise OSError("it is a LoRA, not a model: give it as lora=…, and a model beside it")
    if "conv_in.weight" in shapes or "encoder.conv_in.weight" in shapes:
        raise OSError("it is one part of a model in diffusers' layout: give the model's folder")
    if any(name.startswith("conditioner.") for name in shapes):
        raise OSError("it is Stable Diffusion XL, not Stable Diffusion 1.x")
    lacking = [part for part, start in _PARTS.items() if not any(name.startswith(start) for name in shapes)]
    if len(lacking) == len(_PARTS):
        raise OSError("it is no Stable Diffusion 1.x: it has neither U-Net nor autoencoder nor text encoder")
    config = json.loads((STABLE_DIFFUSION_V1 / "unet" / "config.json").read_text(encoding="utf-8"))
    width = next((shapes[name][-1] for name in shapes if _ATTENTION_TO_WORDS.fullmatch(name)), None)
    if width not in (None, config["cross_attention_dim"]):
        family = _FAMILIES.get(width, f"made for words of {width} numbers")
        raise OSError(f"it is {family}, not Stable Diffusion 1.x")
    n_channels = shapes.get(_FIRST_LAYER, (0, config["in_channels"]))[1]
    if n_channels != config["in_channels"]:
        task = {9: ", as for inpainting", 8: ", as for editing by instructions", 5: ", as for depth maps"}
        advice = "`inpaint` works with any text-to-image model"
        raise OSError(f"its U-Net takes {n_channels} channels{task.get(n_channels, '')}, not 4: {advice}")
    if lacking:
        raise OSError(f"it lacks the {' and the '.join(lacking)}: give a file with the whole model")


def _predicts_v(path: Path, shapes: Mapping[str, Shape]) -> bool:
    """Tell whether the U-Net predicts v instead of the noise, as far as anybody wrote it down."""
    if "v_pred" in shapes:
        return True
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("modelspec.prediction_type") == "v":
                return True
    configuration = path.with_suffix(".yaml")
    return configuration.is_file() and bool(_PARAMETERIZATION_V.search(configuration.read_text(encoding="utf-8")))
