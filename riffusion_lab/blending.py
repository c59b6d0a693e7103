"""Linear and spherical interpolation of tensors, and weighted means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PARALLEL = 0.9995  # cosine above which the line is as good as the arc


def slerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Interpolate along the arc from one noise to another: slerp (https://doi.org/10.1145/325165.325242).

    Noise in many dimensions lies close to a sphere. A point on the straight line between two noises lies inside it, so
    its norm is too small for noise.

    Parameters
    ----------
    start, end : Tensor
        Of the same shape. Computed in float64 on the CPU, whatever their dtype and device.
    alpha : float
        In [0, 1]; 0 gives exactly `start`, 1 exactly `end`.

    Returns
    -------
    Tensor
        Of `start`'s dtype and device. If both point in nearly the same or nearly opposite directions, it lies on the
        line.

    Taught in: 04
    """
    if alpha == 0:
        return start.clone()
    if alpha == 1:
        return end.clone()
    a, b = (noise.cpu().double() for noise in (start, end))  # GPUs of Macs have no float64
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if not abs(cosine) < PARALLEL:  # or a zero vector: the cosine is NaN
        return torch.lerp(a, b, alpha).to(start)
    angle = math.acos(cosine)
    between = (math.sin((1 - alpha) * angle) * a + math.sin(alpha * angle) * b) / math.sin(angle)
    return between.to(start)


def lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Interpolate along the line from one tensor to another; 0 gives exactly `start`, 1 exactly `end`.

    Taught in: 04
    """
    if alpha == 0:
        return start.clone()
    if alpha == 1:
        return end.clone()
    return torch.lerp(start, end, alpha)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of numbers with weights that add up to 1; never outside the range of the numbers.

    So equal numbers give exactly that number. The sum alone can round: 0.7 × 0.75 + 0.3 × 0.75 is 0.7499999999999999.
    """
    mean = sum(weight * value for value, weight in zip(values, weights, strict=True))
    return min(max(mean, min(values)), max(values))


def mix(tensors: Sequence[Tensor], weights: Sequence[float], interpolate: Callable[..., Tensor]) -> Tensor:
    """Mix tensors by weight: interpolate from the mix so far to each next one, with `lerp` or `slerp`."""
    mixed = tensors[0]
    total = weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += weight
        mixed = interpolate(mixed, tensor, weight / total)
    return mixed
