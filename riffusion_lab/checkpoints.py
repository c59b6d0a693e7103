"""Weight files: tensor names and shapes, variants of a folder's parts, and single-file Stable Diffusion 1.x."""

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
# Configuration and tokenizer of Stable Diffusion 1.x, which a single file does not contain
STABLE_DIFFUSION_V1 = Path(__file__).parent / "stable_diffusion_v1"
# Variant by dtype, the most precise one first
VARIANTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.([\w-]+?))?"  # the variant
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
# Tensor names in a single file: the first layer of the U-Net, its cross-attention to the prompt, prefixes of the parts
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_CROSS_ATTENTION = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
_PARTS = {
    "U-Net": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text encoder": "cond_stage_model.transformer.text_model.",
}
_FAMILIES = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the refiner of Stable Diffusion XL"}
_PARAMETERIZATION_V = re.compile(r"""^\s*parameterization:\s*["']?v["']?\s*$""", re.MULTILINE)

Shape = tuple[int, ...]


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Read names and shapes of the tensors in a weight file, without their values.

    Parameters
    ----------
    path : Path
        A ``.safetensors`` file. Any other file is a pickle, read by torch's weights-only loading.

    Raises
    ------
    OSError
        If it cannot be read, contains no tensors, or is a pickle whose code would have to be run.
    """
    if path.suffix == ".safetensors":
        return _safetensors_shapes(path)
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            advice = "convert it to .safetensors where you trust it"
            raise OSError(f"{path.name} contains code ({needed[1]}), which is never run: {advice}") from error
        raise OSError(f"{path.name} is truncated, or not a PyTorch file") from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise OSError(f"{path.name} contains a {type(content).__name__}, not a dict of weights")
    shapes = {name: tuple(value.shape) for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not shapes:
        raise OSError(f"{path.name} contains no weights")
    return shapes


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise OSError(f"{path.name} is truncated, or not a safetensors file: {error}") from error


def is_lora(names: Collection[str]) -> bool:
    """Whether tensors with these names belong to a LoRA or another kind of adapter."""
    return any(re.search(r"lora_|\.lora|_lora\.|lokr_|hada_", name) for name in names)


def load_parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load U-Net, autoencoder and text encoder from a folder in diffusers' layout; all weights must be there.

    diffusers' own loading requires the same variant (such as ``fp16``) or none in all parts, and initializes missing
    weights with random numbers.

    Parameters
    ----------
    folder : Path
    dtype : torch.dtype
        If a part has only variants, the one in this dtype is loaded, else the most precise one.

    Returns
    -------
    dict of str to module
        Arguments for the pipeline's ``from_pretrained``, which loads the rest.

    Raises
    ------
    OSError
        If a part lacks weights, or has several variants of which none is named after a dtype.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    loaded: dict[str, Any] = {}
    for part in ("unet", "vae", "text_encoder"):
        library, class_name = index[part]
        if library not in ("diffusers", "transformers"):
            raise OSError(f"its {part} is from {library!r}, not from diffusers or transformers")
        model_class = getattr(import_module(library), class_name)
        dtype_keyword = DTYPE if library == "diffusers" else "dtype"
        loaded[part], info = model_class.from_pretrained(
            folder / part,
            variant=_variant(folder / part, dtype),
            output_loading_info=True,
            local_files_only=True,
            **{dtype_keyword: dtype},
        )
        missing = sorted(info["missing_keys"])
        if missing:
            raise OSError(f"its {part} lacks {len(missing)} weights, such as {missing[0]}")
    return loaded


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """Name of the variant to load; None if the folder has weights without a variant, or no weights."""
    if not folder.is_dir():
        return None
    matches = [_WEIGHTS.fullmatch(file.name) for file in folder.iterdir()]
    found = {match[1] for match in matches if match}
    if not found or None in found:
        return None
    preferred = VARIANTS[str(dtype).removeprefix("torch.")]
    for variant in (preferred, *VARIANTS.values()):
        if variant in found:
            return variant
    if len(found) > 1:
        variants = ", ".join(sorted(found))
        raise OSError(f"its {folder.name} comes in the variants {variants}: keep one of them in the folder")
    return found.pop()


def read_single_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load Stable Diffusion 1.x from a single file, the format of the original release and of most fine-tunes.

    This needs no network. If the file contains EMA weights of the U-Net, these are used, as in the published folders of
    the same models. The prediction type is epsilon, unless the file's metadata (``modelspec.prediction_type``,
    https://github.com/Stability-AI/ModelSpec), a tensor ``v_pred``, or a ``.yaml`` of the same name declares v.

    Parameters
    ----------
    path : Path
        ``.safetensors`` or ``.ckpt``; the latter is read by torch's weights-only loading.
    dtype : torch.dtype

    Raises
    ------
    OSError
        If the file cannot be read, or is not a complete Stable Diffusion 1.x.
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
    except NotImplementedError as error:  # torch's error for tensors on the meta device, which were not in the file
        raise OSError("it lacks some of the weights of Stable Diffusion 1.x") from error
    if _predicts_v(path, shapes):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _check_family(shapes: Mapping[str, Shape]) -> None:
    """Refuse anything but a complete Stable Diffusion 1.x, and say what it is."""
    _check_kind(shapes)
    lacking = [part for part, prefix in _PARTS.items() if not any(name.startswith(prefix) for name in shapes)]
    if len(lacking) == len(_PARTS):
        raise OSError("it is not a Stable Diffusion 1.x: it has neither U-Net nor autoencoder nor text encoder")
    _check_unet(shapes)
    if lacking:
        raise OSError(f"it lacks the {' and the '.join(lacking)}: use a file with the whole model")


def _check_kind(shapes: Mapping[str, Shape]) -> None:
    """Refuse LoRAs, single parts of a model, and Stable Diffusion XL."""
    if is_lora(shapes):
        raise OSError("it is a LoRA, not a model: pass it as lora=…, together with a model")
    if "conv_in.weight" in shapes or "encoder.conv_in.weight" in shapes:
        raise OSError("it is one part of a model in diffusers' layout: pass the model's folder")
    if any(name.startswith("conditioner.") for name in shapes):
        raise OSError("it is Stable Diffusion XL, not Stable Diffusion 1.x")


def _check_unet(shapes: Mapping[str, Shape]) -> None:
    """Refuse a U-Net with other embeddings or latent channels than Stable Diffusion 1.x."""
    config = json.loads((STABLE_DIFFUSION_V1 / "unet" / "config.json").read_text(encoding="utf-8"))
    width = next((shapes[name][-1] for name in shapes if _CROSS_ATTENTION.fullmatch(name)), None)
    if width is not None and width != config["cross_attention_dim"]:
        family = _FAMILIES.get(width, f"a model with embeddings of {width} dimensions")
        raise OSError(f"it is {family}, not Stable Diffusion 1.x")
    n_channels = shapes[_FIRST_LAYER][1] if _FIRST_LAYER in shapes else config["in_channels"]
    if n_channels != config["in_channels"]:
        task = {9: ", as for inpainting", 8: ", as for editing by instructions", 5: ", as for depth maps"}
        advice = "`inpaint` works with any text-to-image model"
        raise OSError(f"its U-Net takes {n_channels} channels{task.get(n_channels, '')}, not 4: {advice}")


def _predicts_v(path: Path, shapes: Mapping[str, Shape]) -> bool:
    """Whether the U-Net predicts v instead of the noise, according to the file or the configuration beside it."""
    if "v_pred" in shapes:
        return True
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("modelspec.prediction_type") == "v":
                return True
    configuration = path.with_suffix(".yaml")
    if not configuration.is_file():
        return False
    return _PARAMETERIZATION_V.search(configuration.read_text(encoding="utf-8")) is not None
