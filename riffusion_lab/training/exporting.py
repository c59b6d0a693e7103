"""A trained pipeline to a folder that stock diffusers and `load_pipeline` load, with its settings beside it."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ..models import SETTINGS_FILE, ModelSettings, model_settings, quiet
from .dataset import Dataset
from .vocabulary import bpm_of, loop_beats

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


def export(
    pipe: StableDiffusionPipeline,
    folder: str | Path,
    *,
    settings: ModelSettings | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model in diffusers' layout, by default in half precision, with its recommended settings beside it.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As `train` returns it. It is left as it is.
    folder : path
        Not within the installed package.
    settings : ModelSettings, optional
        For ``riffusion_lab.json``. Default: those that the model has.
    dtype : torch.dtype
        Of the weights in the files.
    """
    check_target(folder)
    folder = Path(folder)
    settings = settings or model_settings(pipe)
    with quiet(bars=False):
        if pipe.dtype != dtype:
            pipe = copy.deepcopy(pipe).to(dtype)
        pipe.save_pretrained(folder)
    for file in [folder / "model_index.json", *folder.glob("*/config.json")]:
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
