"""The small data that lesson 10 trains on: latents of short clips of three prompts, in one file of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
FILE = DATA / "lesson_10.npz"
N_COLUMNS = 16  # of latents in each clip: 1.28 s
HELD_OUT_EVERY = 10
LEVELS_PER_UNIT = 24  # latents, whose standard deviation is 1, are rounded to 1/24: an error of 0.012


@dataclass(frozen=True)
class LessonClips:
    """Short clips as latents, each with the number of its prompt.

    latents : Tensor [shape=(n, 4, 64, 16), float32]
        Of riffling's autoencoder: mean about 0, standard deviation about 1.
    labels : Tensor [shape=(n,), int64]
        Index into `prompts`.
    prompts : tuple of str
    """

    latents: Tensor
    labels: Tensor
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def held_out(self) -> Tensor:
        """Indices of every tenth clip, which nothing is trained on."""
        return torch.arange(0, len(self), HELD_OUT_EVERY)

    @property
    def training(self) -> Tensor:
        """Indices of the other clips."""
        return torch.tensor([i for i in range(len(self)) if i % HELD_OUT_EVERY])


def save_latents(latents: Tensor, labels: np.ndarray, prompts: tuple[str, ...], *, file: Path = FILE) -> None:
    """Write latents [shape=(n, 4, 64, 16)], rounded and compressed, with their labels [shape=(n,)] and prompts."""
    levels = (latents * LEVELS_PER_UNIT).round().clamp(-127, 127).to(torch.int8)
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, latents=levels.numpy(), labels=labels.astype(np.int8), prompts=np.array(prompts))


def load_lesson_clips(file: Path = FILE) -> LessonClips:
    """Read the clips of lesson 10, which tools/lesson_latents.py made with the composer.

    Notes
    -----
    Taught in: 10
    """
    with np.load(file) as content:
        latents = torch.from_numpy(content["latents"]).float() / LEVELS_PER_UNIT
        labels = torch.from_numpy(content["labels"]).long()
        prompts = tuple(str(prompt) for prompt in content["prompts"])
    return LessonClips(latents, labels, prompts)
