"""A training run that knows its time budget, shows its progress, and can be taken up where it was broken off."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

MOMENTUM = 0.95
ROOT_MEAN_SQUARE = 0.2  # of AdamW's steps, in learning rates: what Muon's are scaled to


def fastest_dtype(device_type: str) -> torch.dtype:
    """What a processor multiplies fastest, of the types that are good enough to train with.

    A processor without bfloat16 of its own emulates it, which was four to six times slower than float32.
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else torch.float32


def autocast() -> torch.autocast:
    """Let a network on the CPU calculate in its fastest type."""
    dtype = fastest_dtype("cpu")
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


class HasState(Protocol):
    """What can be kept in a checkpoint: modules, optimizers, averages."""

    def state_dict(self) -> dict[str, Any]:
        """What to keep."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up what was kept."""


def train(
    step: Callable[[float], torch.Tensor],
    state: dict[str, HasState],
    checkpoint: str | Path,
    *,
    minutes: float,
    save_every_s: float = 240.0,
) -> float:
    """Call `step` until the time budget is spent; time spent before a break counts.

    Parameters
    ----------
    step : callable
        Does one step of training; takes the share of the budget that is spent, 0…1, and returns the loss.
    state : dict of str to HasState
        What the checkpoint holds.
    checkpoint : path
        Written every `save_every_s` seconds and at the end; read first if it is there.
    minutes : float
        The time budget.

    Returns
    -------
    float
        Mean loss over the last steps.
    """
    checkpoint = Path(checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    spent, n_steps, mean_loss = 0.0, 0, float("nan")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        spent, n_steps, mean_loss = saved["spent"], saved["n_steps"], saved["mean_loss"]
        for name, part in state.items():
            part.load_state_dict(saved[name])

    def save() -> None:
        parts = {name: part.state_dict() for name, part in state.items()}
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(parts | {"spent": spent, "n_steps": n_steps, "mean_loss": mean_loss}, temporary)
        os.replace(temporary, checkpoint)

    budget, last, last_save = 60 * minutes, time.monotonic(), spent
    with tqdm(total=round(budget), initial=round(spent), unit="s", desc=checkpoint.stem, mininterval=10) as bar:
        while spent < budget:
            loss = step(spent / budget).item()
            if loss != loss:
                raise FloatingPointError(f"the loss became NaN at step {n_steps}; the last checkpoint is {checkpoint}")
            mean_loss = loss if n_steps == 0 else mean_loss + (loss - mean_loss) * max(0.01, 1 / (n_steps + 1))
            n_steps += 1
            now = time.monotonic()
            spent, last = spent + now - last, now
            bar.n = min(bar.total, round(spent))
            bar.set_postfix(loss=f"{mean_loss:.4f}", steps=n_steps, refresh=False)
            bar.update(0)
            if spent - last_save > save_every_s:
                save()
                last_save, last = spent, time.monotonic()
    save()
    return mean_loss


def cosine(progress: float, *, warmup: float = 0.02) -> float:
    """Learning rate over the run: up within `warmup`, then down to 0 on half a cosine."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give an optimizer's parameters a learning rate, or the "share" of it that their group has."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    """One step down the gradient of `loss`, which is cut to a norm of 1; gives the loss back."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss.detach()


class Muon(torch.optim.AdamW):
    """AdamW for vectors and for the first and last layers; between those, steps of equal size in all directions.

    Muon (https://kellerjordan.github.io/posts/muon/) makes of a weight matrix's mean gradient the nearest orthogonal
    matrix. torch's own takes only matrices; here a kernel of a convolution is one, with a row for each output channel.
    Steps are as large as AdamW's at the same learning rate (https://arxiv.org/abs/2502.16982). Groups of parameters
    with ``"orthogonal": False``, such as a table of words, of which a batch moves few rows, are left to AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One step, as of any optimizer. Takes away the gradients of the matrices."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None or not group.get("orthogonal", True) or not _is_matrix(weights):
                    continue
                state = self.state[weights]
                if not state:
                    state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(weights))  # AdamW loads a "step"
                mean = state["momentum"]
                mean.lerp_(weights.grad, 1 - MOMENTUM)
                direction = orthogonal(weights.grad.lerp(mean, MOMENTUM).flatten(1))
                size = ROOT_MEAN_SQUARE * max(direction.shape) ** 0.5
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.sub_(direction.view_as(weights), alpha=group["lr"] * size)
                weights.grad = None  # so that AdamW passes over it
        return super().step(closure)


def _is_matrix(weights: torch.Tensor) -> bool:
    """Whether weights lie between hidden layers: those of pictures and latents have three channels or four."""
    return weights.ndim > 1 and min(weights.shape[:2]) > 4


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix [shape=(n, m)] with its singular values near 1, by five steps of Newton and Schulz.

    They end between 0.7 and 1.2; only those that were next to nothing beside the others stay smaller.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / (wide.norm() + 1e-7)).to(fastest_dtype(matrix.device.type))
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if wide is matrix else x.T).to(matrix.dtype)
