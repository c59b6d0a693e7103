"""A data set in memory: what the training stages need of `Dataset`, and no more."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from riffusion_lab.training import captions
from riffusion_lab.training.dataset import make_shard
from riffusion_lab.training.effects import EFFECTS


class MemoryDataset:
    """Clips with facts; clips with a "caption" among their facts are no loops, like those cut from songs."""

    def __init__(self, pictures: np.ndarray, facts: list[dict], n_held_out: int = 2) -> None:
        self.array, self.facts, self.n_held_out = pictures, facts, n_held_out

    def __len__(self) -> int:
        return len(self.facts)

    def picture(self, i: int) -> np.ndarray:
        return self.array[i]

    def pictures(self, indices) -> torch.Tensor:
        return torch.from_numpy(self.array[np.asarray(indices)]).float()[:, None] / 127.5 - 1

    def caption(self, i: int, rng: np.random.Generator, *, full: bool = False) -> str:
        return self.facts[i].get("caption") or captions.caption(self.facts[i], rng, full=full)

    def label(self, i: int) -> str | None:
        return self.facts[i].get("label")

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        indices = np.arange(len(self))
        return indices[self.n_held_out :], indices[: self.n_held_out]

    def columns_per_bar(self, i: int) -> int | None:
        return None if "caption" in self.facts[i] else self.facts[i].get("columns", 1)

    def fingerprint(self) -> str:
        return str(len(self))


@cache
def _effects() -> tuple[np.ndarray, list[dict]]:
    return make_shard([("effect", name) for name in EFFECTS] * 2, 0)


def composed(n_held_out: int = 2) -> MemoryDataset:
    """Eight of the composer's effects, which need no synthesizer."""
    pictures, facts = _effects()
    return MemoryDataset(pictures, facts, n_held_out)


def recorded() -> MemoryDataset:
    """The same sounds as if they were someone's recordings, with captions of their own."""
    pictures, facts = _effects()
    own = [{"caption": f"my {fact['label']} at the lake", "source": f"{k}.wav"} for k, fact in enumerate(facts)]
    return MemoryDataset(pictures, own)
