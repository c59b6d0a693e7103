"""Even walks: choose where between two prompts to generate clips, so that neighbours differ about equally.

Equal steps of alpha are unequal steps in the picture: for a while nearly nothing changes, then nearly everything. So
more clips are generated where the steps are large, and the selection with the most even steps is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from .clip import Clip

EVEN_RATIO = 2.0  # a walk is even if its largest step divided by its smallest is at most this
MOST_LIMITS = 256  # tried for the smallest step, all at once on all pairs of clips, which takes memory
FINEST = 1 / 1024  # of alpha: if two clips this close still differ much, the picture jumps; more clips do not help


@dataclass(frozen=True, eq=False)
class EvenClips:
    """The clips of a walk between two prompts, evenly spaced.

    clips : list of Clip
    ratio : float
        Largest step divided by the smallest one.
    n_extra : int
        How many clips were generated but not selected.
    """

    clips: list[Clip]
    ratio: float
    n_extra: int


def even_clips(
    generate: Callable[[list[float]], list[Clip]],
    num_clips: int,
    *,
    max_extra_clips: int,
    batch_size: int = 1,
    first: Clip | None = None,
) -> EvenClips:
    """Generate clips at equal steps of alpha, then more where they differ most, until the steps can be made even.

    Parameters
    ----------
    generate : callable
        Maps a list of alphas to the clips there.
    num_clips : int
        How many clips to return, with both ends; at least 2.
    max_extra_clips : int
        How many more to generate, at most.
    batch_size : int
        How many extra clips to generate at once.
    first : Clip, optional
        The clip at alpha 0, if there is one already.
    """
    alphas = [i / (num_clips - 1) for i in range(num_clips)]
    asked = alphas if first is None else alphas[1:]
    clips = dict(zip(asked, generate(asked), strict=True))
    if first is not None:
        clips[0.0] = first
    distances = _Distances(clips)
    while True:
        path = evenest_path(distances.between(alphas), num_clips)
        n_extra = len(alphas) - num_clips
        n_new = 0 if path.ratio <= EVEN_RATIO else min(batch_size, max_extra_clips - n_extra)
        asked = widest_gaps(alphas, distances.between(alphas), n_new)
        if not asked:
            return EvenClips([clips[alphas[place]] for place in path.places], path.ratio, n_extra)
        clips.update(zip(asked, generate(asked), strict=True))
        alphas = sorted(clips)


class _Distances:
    """Distances between clips, each computed once."""

    def __init__(self, clips: Mapping[float, Clip]) -> None:
        self._clips = clips
        self._known: dict[tuple[float, float], float] = {}

    def between(self, alphas: Sequence[float]) -> np.ndarray:
        """Matrix of the distances between the clips at these alphas, which are sorted."""
        matrix = np.zeros((len(alphas), len(alphas)))
        for i, j in combinations(range(len(alphas)), 2):
            pair = (alphas[i], alphas[j])
            if pair not in self._known:
                self._known[pair] = picture_distance(self._clips[pair[0]], self._clips[pair[1]])
            matrix[i, j] = matrix[j, i] = self._known[pair]
        return matrix


def picture_distance(a: Clip, b: Clip) -> float:
    """Mean absolute difference of two clips' pictures, in grey levels from 0 to 255.

    It was validated on clips of known difference (``tools/even_walks.py``): it ranks steps of alpha by their size, and
    a change of seed above a small step.

    Parameters
    ----------
    a, b : Clip
        Of the same length.
    """
    return float(np.abs(_grey(a) - _grey(b)).mean())


def _grey(clip: Clip) -> np.ndarray:
    return np.asarray(clip.image.convert("L"), dtype=np.float32)


@dataclass(frozen=True)
class EvenPath:
    """Which of several clips to select, and how uneven the steps between them are.

    places : tuple of int
        Indices of the clips; the first and the last are always among them.
    ratio : float
        Largest step divided by the smallest one; 1 if all are zero, infinite if only the smallest is.
    """

    places: tuple[int, ...]
    ratio: float


def evenest_path(distances: np.ndarray, n_clips: int) -> EvenPath:
    """Choose clips between a first and a last one so that the steps are as even as possible.

    Among selections whose ratio is at most `EVEN_RATIO`, the one whose largest step is smallest is taken; if there is
    none, the one with the smallest ratio. Every distance is tried as a lower limit of the steps (at most `MOST_LIMITS`
    of them). For each limit, dynamic programming finds the path whose largest step is smallest.

    Parameters
    ----------
    distances : np.ndarray [shape=(n, n), float]
        Between all clips, in their order on the walk.
    n_clips : int
        How many to choose, at least 2 and at most n.

    Returns
    -------
    EvenPath
    """
    n = len(distances)
    limits = np.unique(distances[np.triu_indices(n, 1)])
    if len(limits) > MOST_LIMITS:
        limits = limits[np.linspace(0, len(limits) - 1, MOST_LIMITS).round().astype(int)]
    is_hop = np.triu(np.ones((n, n), dtype=bool), 1) & (distances >= limits[:, None, None])
    hops = np.where(is_hop, distances, np.inf)  # (limits, n, n)
    largest = np.full((len(limits), n), np.inf)  # of the path so far that ends at each clip
    largest[:, 0] = 0
    came_from = []
    for _ in range(n_clips - 1):
        with_hop = np.maximum(largest[:, :, None], hops)  # (limits, from, to)
        came_from.append(with_hop.argmin(axis=1))
        largest = with_hop.min(axis=1)
    ratios = [_ratio(*pair) for pair in zip(largest[:, -1], limits, strict=True)]
    is_even = np.array(ratios) <= EVEN_RATIO
    best = int(np.where(is_even, largest[:, -1], np.inf).argmin() if is_even.any() else np.argmin(ratios))
    places = [n - 1]
    for origins in reversed(came_from):
        places.append(int(origins[best, places[-1]]))
    return _path(distances, places[::-1])


def _path(distances: np.ndarray, places: Sequence[int]) -> EvenPath:
    steps = [float(distances[step]) for step in pairwise(places)]
    return EvenPath(tuple(places), _ratio(max(steps), min(steps)))


def _ratio(largest: float, smallest: float) -> float:
    if largest == smallest:
        return 1.0
    return float(largest / smallest) if smallest > 0 else float("inf")


def widest_gaps(alphas: Sequence[float], distances: np.ndarray, n_gaps: int) -> list[float]:
    """Alphas halfway between the neighbours that differ most; fewer than `n_gaps` if the rest are within `FINEST`.

    Parameters
    ----------
    alphas : sequence of float
        Sorted.
    distances : np.ndarray [shape=(n, n), float]
        Between the clips at these alphas.
    n_gaps : int

    Returns
    -------
    list of float
        Sorted.
    """
    gaps = []
    for i, (left, right) in enumerate(pairwise(alphas)):
        if right - left > FINEST:
            gaps.append((float(distances[i, i + 1]), (left + right) / 2))
    return sorted(alpha for _, alpha in sorted(gaps, reverse=True)[:n_gaps])
