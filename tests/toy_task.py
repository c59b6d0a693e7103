"""A training task that takes a moment; as a program, `python tests/toy_task.py FOLDER NAME=VALUE …` trains it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from riffusion_lab.training.config import LoopConfig
from riffusion_lab.training.loop import Batch, Task, run_loop, seeded
from riffusion_lab.training.optimizers import MuonAdamW
from riffusion_lab.training.progress import Snapshot

CONFIG = LoopConfig(steps=12, batch_size=8, learning_rate=0.05, precision="fp32", device="cpu", sample_every=0)


class ToyTask(Task):
    """Learns to reverse the order of eight numbers, from noisy examples; `dropout` makes the network itself random."""

    name = "toy"
    data_id = "toy data"

    def __init__(self, config: LoopConfig, *, dropout: float = 0.0) -> None:
        self.config = config
        with seeded(config.seed):
            self.network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.optimizer = MuonAdamW(self.network.parameters(), weight_decay=0.01)
        self.pause_s = 0.0

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        time.sleep(self.pause_s)
        n = self.config.batch_size
        noise = torch.randn((n, 8), generator=generator)
        return {"x": torch.from_numpy(rng.standard_normal((n, 8))).float(), "more": {"noise": noise}, "scale": 0.1}

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        target = batch["x"].flip(1) + batch["scale"] * batch["more"]["noise"]
        return {"loss": (network(batch["x"]) - target).square().mean()}

    def snapshot(self) -> Snapshot:
        torch.randn(3)  # must not change what the next step draws
        return Snapshot(numbers={"first weight": float(self.network[0].weight[0, 0].detach())})


if __name__ == "__main__":
    config = CONFIG.override(sys.argv[2:])
    task = ToyTask(config)
    task.pause_s = 0.02
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    (Path(sys.argv[1]) / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    run_loop(task, config, Path(sys.argv[1]))
    print(f"processes: {PartialState().num_processes}")
