"""Optimizer, learning rate and precision of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2  # root mean square of AdamW's usual step, in learning rates; Muon's are scaled to it
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration in Muon's paper


def fastest_dtype(device_type: str) -> torch.dtype:
    """The type that a device multiplies fastest, of those that are good enough to train with.

    A processor without bfloat16 of its own emulates it, which was four to six times slower than float32.
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else torch.float32


def cosine_schedule(progress: float, *, warmup: float = 0.02) -> float:
    """Share of the highest learning rate, at a `progress` in [0, 1]: up within `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    if warmup == 1:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameters; a group with a "share" gets that share of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)


def optimizer_step(
    accelerator: Accelerator, optimizer: Optimizer, parameters: Sequence[Tensor], max_norm: float
) -> float:
    """Clip the gradients of `parameters` to a length of `max_norm`, take one step, and clear them.

    Returns
    -------
    float
        Length of the gradient before clipping.

    Raises
    ------
    FloatingPointError
        If it is not finite, before any weight is changed. With float16 such a step is skipped instead, and the next
        one scales the loss less.
    """
    norm = float(accelerator.clip_grad_norm_(parameters, max_norm))
    if accelerator.scaler is None and not math.isfinite(norm):
        raise FloatingPointError(f"the gradient is {norm}")
    optimizer.step()
    optimizer.zero_grad()
    return norm


@contextmanager
def averaged_weights(average: EMAModel, network: nn.Module) -> Iterator[None]:
    """Use the running average of a network's weights for a while, to measure it or to generate with it."""
    average.store(network.parameters())
    average.copy_to(network.parameters())
    network.eval()
    try:
        yield
    finally:
        network.train()
        average.restore(network.parameters())


class MuonAdamW(torch.optim.AdamW):
    """Muon for the weights between hidden layers, AdamW for biases and for the first and last layers.

    Muon (https://kellerjordan.github.io/posts/muon/) replaces a weight matrix's mean gradient by the nearest orthogonal
    matrix. Steps are as large as AdamW's at the same learning rate (https://arxiv.org/abs/2502.16982). A group of
    parameters with ``"orthogonal": False`` is left to AdamW: an embedding table, for instance, of which a batch changes
    few rows.

    Notes
    -----
    `torch.optim.Muon` takes matrices only and always multiplies in bfloat16. On a processor without it, one step for
    riffling's 17.5 M weights took 18 s with torch's and 1.1 s with ours in float32 (AVX2, one core), 2.2 s and 1.0 s
    with AVX-512; with bfloat16 instructions both take 0.5 s. Kernels of convolutions are matrices here, with one row
    for each output channel.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step. Clears the gradients of the matrices, so that AdamW skips them."""
        for group in self.param_groups:
            if not group.get("orthogonal", True):
                continue
            for weights in group["params"]:
                if weights.grad is not None and is_hidden_matrix(weights):
                    self._muon_step(weights, group["lr"], group["weight_decay"])
                    weights.grad = None
        result: Tensor | None = super().step(closure)
        return result

    def _muon_step(self, weights: Tensor, learning_rate: float, weight_decay: float) -> None:
        state = self.state[weights]
        if not state:
            state["step"] = torch.tensor(0.0)  # unused, but AdamW expects one when it loads a state
            state["momentum"] = torch.zeros_like(weights)
        momentum = state["momentum"].lerp_(weights.grad, 1 - MOMENTUM)
        look_ahead = momentum.lerp(weights.grad, 1 - MOMENTUM)  # laid out in memory as the weights are
        update = orthogonal(as_matrix(look_ahead))
        size = RMS_OF_ADAMW * max(update.shape) ** 0.5
        matrix = as_matrix(weights)
        matrix.mul_(1 - learning_rate * weight_decay)
        matrix.sub_(update, alpha=learning_rate * size)


def is_hidden_matrix(weights: Tensor) -> bool:
    """Whether weights lie between hidden layers: pictures and latents have three or four channels."""
    return weights.ndim > 1 and min(weights.shape[:2]) > 4


def as_matrix(weights: Tensor) -> Tensor:
    """Weights as a matrix [shape=(output channels, the rest)] that shares their memory, channels_last or not."""
    if weights.ndim == 4 and not weights.is_contiguous():
        weights = weights.permute(0, 2, 3, 1)  # channels_last: contiguous in this order
    return weights.view(len(weights), -1)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [shape=(n, m)] with singular values near 1, after five Newton–Schulz iterations.

    They end between 0.7 and 1.2, except those that were tiny beside the others, which stay smaller.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(fastest_dtype(matrix.device.type))
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
