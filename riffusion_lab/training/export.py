"""The trained parts → a model folder that the package ships and that stock diffusers loads."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from .captions import caption
from .dataset import Dataset
from .vocabulary import bpm_of, loop_beats

DEFAULTS = {
    "num_inference_steps": 12,
    "guidance_scale": 1.5,
    "steady_noise_gain": 1.25,
    "pag_applied_layers": ["up_blocks.0"],
    "loop": True,
}


def caption_words(dataset: Dataset) -> list[str]:
    """Every word that the captions use, in alphabetical order; no numbers."""
    rng = np.random.default_rng(0)
    words = {w for facts in dataset.facts for _ in range(4) for w in re.findall(r"[^\s,]+", caption(facts, rng))}
    return sorted(w for w in words if not w.isdigit())


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


def export(pipe: StableDiffusionPipeline, dataset: Dataset, folder: str | Path) -> None:
    """Write the model in half precision, with what it wants by default beside it.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        As `denoiser.assemble` makes it. Is turned to float16.
    dataset : Dataset
        Its captions give the vocabulary.
    folder : path
    """
    folder = Path(folder)
    pipe.to(torch.float16).save_pretrained(folder)
    for config in [folder / "model_index.json", *folder.glob("*/config.json")]:
        _edit(config, lambda content: {k: v for k, v in content.items() if k != "_name_or_path"})  # names this machine
    # transformers loads what the config says, diffusers float32: stock `from_pretrained` must not mix them.
    _edit(folder / "text_encoder" / "config.json", lambda config: config | {"dtype": "float32"})
    # diffusers writes this key itself and warns about it on loading.
    _edit(folder / "vae" / "config.json", lambda config: {k: v for k, v in config.items() if k != "block_out_channels"})
    # Of the scheduler only what is no default: older versions of diffusers warn about settings they do not know.
    defaults = {k: p.default for k, p in inspect.signature(type(pipe.scheduler).__init__).parameters.items()}
    _edit(
        folder / "scheduler" / "scheduler_config.json",
        lambda config: {k: v for k, v in config.items() if k not in defaults or v != defaults[k]},
    )
    about = DEFAULTS | {"tempi_bpm": [bpm_of(n) for n in loop_beats()], "vocabulary": caption_words(dataset)}
    (folder / "riffusion_lab.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _edit(file: Path, change) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text())), indent=2) + "\n")
