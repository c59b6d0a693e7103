"""Facts about clips as numbers: what a network that predicts them is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # `torch.nn.functional.cross_entropy` ignores it: a drum beat has no mode


def choice_targets(facts: Sequence[Mapping[str, Any]], choices: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """For each fact, the number of its value among its choices [shape=(n,), int64]; `IGNORED` where there is none."""

    def number(value: Any, values: Sequence[Any]) -> int:
        return values.index(value) if value in values else IGNORED

    return {
        name: torch.tensor([number(clip.get(name), values) for clip in facts], dtype=torch.int64)
        for name, values in choices.items()
    }
