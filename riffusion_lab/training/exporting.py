"""A trained pipeline to a folder that stock diffusers and `load_pipeline` load, with its settings beside it."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ..files import whole_folder
from ..models import SETTINGS_FILE, ModelSettings, model_settings, quiet
from ..values import check_bool
from .dataset import Dataset
from .vocabulary import bpm_of, loop_beats

MODEL_INDEX = "model_index.json"  # which every model in diffusers' layout has
PACKAGE = Path(__file__).resolve().parents[1]


def is_composed(dataset: Dataset) -> bool:
    """Whether all clips have the facts of our own composer."""
    return all("kind" in facts and "caption" not in facts for facts in dataset.facts)


def settings_for(dataset: Dataset) -> ModelSettings:
    """Recommended settings of a model of riffling's kind that was trained on these clips."""
    tempi = tuple(bpm_of(n) for n in loop_beats()) if is_composed(dataset) else ()
    return ModelSettings(
        num_inference_steps=12,
        guidance_scale=1.5,
        steady_noise_gain=1.25,
        pag_applied_layers=("up_blocks.0",),
        loop=all(dataset.columns_per_bar(i) is not None for i in range(len(dataset))),
        tempi_bpm=tempi,
        vocabulary=tuple(caption_words(dataset)),
    )


def caption_words(dataset: Dataset) -> list[str]:
    """Every word that the captions use, in alphabetical order, without numbers."""
    rng = np.random.default_rng(0)
    words = {
        word for i in range(len(dataset)) for _ in range(4) for word in re.findall(r"[^\s,]+", dataset.caption(i, rng))
    }
    return sorted(word for word in words if not word.isdigit())


def average(pipe: StableDiffusionPipeline, other: StableDiffusionPipeline) -> None:
    """Give a model the mean of its own weights and another's, which often does better than both.

    The two must have been trained on from the same weights, not long ago: https://arxiv.org/abs/2203.05482.

    Parameters
    ----------
    pipe, other : StableDiffusionPipeline
        Of one precision. The other one is left as it is.

    Raises
    ------
    ValueError
        If they have not the same tokens, or a network of other layers; nothing is changed then.
    """
    if pipe.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ValueError("a mean of models with different tokenizers: words would get other words' vectors")
    states = {n: [getattr(model, n).state_dict() for model in (pipe, other)] for n in ("text_encoder", "unet", "vae")}
    for name, (ours, theirs) in states.items():
        if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
            raise ValueError(f"a mean of models whose {name} is built otherwise: train one on from the other first")
    for ours, theirs in states.values():
        for key, value in ours.items():
            value.add_(theirs[key]).div_(2)


def check_target(folder: str | Path) -> None:
    """Raise a ValueError if a folder lies within the installed package, into which nothing is written."""
    if Path(folder).resolve().is_relative_to(PACKAGE):
        raise ValueError(f"{folder} lies within the installed package, which stays as it is: choose another folder")


def check_vacant(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that something would be lost in if a model were written there.

    Raises
    ------
    OSError
        If it is a file.
    ValueError
        If it is not empty, unless it holds a model and `overwrite` is set.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: pass the path of a folder")
    is_model = (folder / MODEL_INDEX).exists()
    if not any(folder.iterdir()) or (is_model and overwrite):
        return
    if is_model:
        raise ValueError(f"{folder} holds a model: choose another folder, or set overwrite=true to replace the model")
    raise ValueError(f"{folder} holds other files: choose a new or an empty folder")


def export(
    pipe: StableDiffusionPipeline,
    folder: str | Path,
    *,
    settings: ModelSettings | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    other_files: Sequence[str | Path] = (),
) -> None:
    """Write a model in diffusers' layout, by default in half precision, with its recommended settings beside it.

    The folder appears when all is written. If that fails, what was there before is still there.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As `train` returns it. It is left as it is.
    folder : path
        A new or an empty folder, not within the installed package.
    settings : ModelSettings, optional
        For ``riffusion_lab.json``. Default: those that the model has.
    dtype : torch.dtype
        Of the weights in the files.
    overwrite : bool
        Replace a model that is in the folder. Files that lie beside it, such as a README.md, are kept.
    other_files : sequence of path
        Files to copy into the folder.

    Raises
    ------
    OSError
        If the folder is a file, or cannot be written.
    ValueError
        If it is not empty, unless it holds a model and `overwrite` is set, or lies within the installed package.
    """
    check_target(folder)
    check_vacant(folder, overwrite=check_bool("overwrite", overwrite))
    with whole_folder(folder) as part:
        _write_model(pipe, part, settings or model_settings(pipe), dtype)
        for file in other_files:
            shutil.copyfile(file, part / Path(file).name)


def _write_model(pipe: StableDiffusionPipeline, folder: Path, settings: ModelSettings, dtype: torch.dtype) -> None:
    """Write a model's files into a folder; see `export`."""
    with quiet(bars=False):
        pipe = copy.copy(pipe) if pipe.dtype == dtype else copy.deepcopy(pipe).to(dtype)
        pipe.register_to_config()  # a configuration of its own, for saving changes it
        pipe.save_pretrained(folder)
    for file in [folder / MODEL_INDEX, *folder.glob("*/config.json")]:
        _edit(file, lambda config: {k: v for k, v in config.items() if k != "_name_or_path"})  # a path of this machine
    # transformers loads in the dtype that the config names, diffusers in float32: stock from_pretrained must not mix
    _edit(folder / "text_encoder" / "config.json", lambda config: config | {"dtype": "float32"})
    # diffusers writes this key itself and warns about it on loading
    _edit(folder / "vae" / "config.json", lambda config: {k: v for k, v in config.items() if k != "block_out_channels"})
    _edit(folder / "scheduler" / "scheduler_config.json", lambda config: _without_defaults(config, pipe.scheduler))
    content = json.dumps(asdict(settings), indent=1, ensure_ascii=False)
    (folder / SETTINGS_FILE).write_text(content + "\n", encoding="utf-8")


def _without_defaults(config: dict[str, Any], scheduler: object) -> dict[str, Any]:
    """A scheduler's config without its defaults: older versions of diffusers warn about settings they do not have."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change a JSON file."""
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2) + "\n")
