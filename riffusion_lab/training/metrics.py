"""Measures for comparing generated clips with real ones: their distribution, variety, tempo, seams and likeness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import find_peaks
from scipy.spatial.distance import pdist

from ..params import COLUMNS_PER_S

SLOWEST_BPM, FASTEST_BPM = 40, 240
ONSET_BLUR = 26  # lags of the spectrum: about 30 ms in time, since a beat is no whole number of columns
TEMPO_TOLERANCE = 1.03


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of embeddings (https://arxiv.org/abs/1706.08500).

    It is biased: small sets of the same distribution lie further apart than large ones, so compare only distances
    between sets of the same sizes.

    Parameters
    ----------
    a, b : np.ndarray [shape=(n, d)]
        Embeddings; the two may differ in n, which is at least 2.

    Returns
    -------
    float
        |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½).
    """
    covariance_a = np.cov(a, rowvar=False)
    covariance_b = np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real.clip(min=0)
    spread = np.trace(covariance_a + covariance_b) - 2 * np.sqrt(eigenvalues).sum()
    return float(distance_of_means(a, b) + spread)


def distance_of_means(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance between the means of two sets of embeddings [shape=(n, d)]: a part of the Fréchet distance."""
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum())


def diversity(embeddings: np.ndarray, labels: Sequence[str]) -> float:
    """Mean distance between embeddings [shape=(n, d)] of one label, over the labels that occur more than once.

    Raises
    ------
    ValueError
        If every label occurs once.
    """
    groups = [embeddings[np.array(labels) == label] for label in sorted(set(labels))]
    distances = [pdist(group).mean() for group in groups if len(group) > 1]
    if not distances:
        raise ValueError(f"diversity needs two clips of one label; all {len(labels)} labels differ")
    return float(np.mean(distances))


def estimate_tempo(picture: torch.Tensor) -> float:
    """Tempo of a looped picture, by autocorrelation of the rises in loudness along time.

    Parameters
    ----------
    picture : Tensor [shape=(1, 1, height, width), -1…1]
        Dark is loud, as in Riffusion's pictures.

    Returns
    -------
    float
        Beats per minute, from 40 to 240; of peaks that are nearly as high as the highest, the fastest one.
    """
    onsets = (picture[0, 0].roll(1, dims=-1) - picture[0, 0]).clamp(min=0).sum(dim=0)
    n_columns = len(onsets)
    blur = torch.exp(-0.5 * (torch.arange(n_columns // 2 + 1) * (512 / n_columns) / ONSET_BLUR) ** 2)
    spectrum = torch.fft.rfft(onsets - onsets.mean()) * blur
    correlation = torch.fft.irfft(spectrum.abs().square(), n=n_columns).numpy()
    first, last = (round(COLUMNS_PER_S * 60 / bpm) for bpm in (FASTEST_BPM, SLOWEST_BPM))
    peaks = find_peaks(correlation[first - 1 : last + 1])[0] + first - 1
    high_peaks = [lag for lag in peaks if correlation[lag] > 0.9 * correlation[peaks].max()]
    lag = high_peaks[0] if high_peaks else last
    left, middle, right = correlation[lag - 1 : lag + 2]
    offset = (left - right) / (2 * (left - 2 * middle + right))  # the vertex of a parabola through the three
    return float(60 * COLUMNS_PER_S / (lag + offset))


def is_tempo(estimated_bpm: float, bpm: float) -> bool:
    """Whether an estimated tempo is `bpm`, within 3 % and up to octaves (half, double, and so on)."""
    octaves = np.log2(estimated_bpm / bpm)
    return bool(abs(octaves - round(octaves)) < np.log2(TEMPO_TOLERANCE))


def column_steps(picture: torch.Tensor) -> np.ndarray:
    """Mean absolute difference between neighbouring columns of a looped picture [shape=(1, 1, height, width)].

    Returns
    -------
    np.ndarray [shape=(width,)]
        The first is the step over the seam, from the last column to the first.
    """
    return (picture - picture.roll(1, dims=-1)).abs().mean(dim=(0, 1, 2)).numpy()


def thumbnails(pictures: Iterable[torch.Tensor]) -> torch.Tensor:
    """Small versions of pictures, normalized for `nearest_correlation`.

    Parameters
    ----------
    pictures : iterable of Tensor [shape=(n, 1, 512, 512)]

    Returns
    -------
    Tensor [shape=(total, 64, 64)]
        Each with mean 0 and norm 1.
    """
    small = torch.cat([F.avg_pool2d(batch, 8)[:, 0] for batch in pictures])
    centred = small - small.mean(dim=(1, 2), keepdim=True)
    return F.normalize(centred.flatten(1)).view_as(small)


def nearest_correlation(ours: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """Highest correlation of each of our `thumbnails` with any of the others, over all shifts in time.

    Parameters
    ----------
    ours, others : Tensor [shape=(n, 64, 64)]

    Returns
    -------
    np.ndarray [shape=(n,), -1…1]
    """
    spectra = torch.fft.rfft(ours).conj().permute(2, 0, 1)  # (33, n, 64)
    best = torch.full((len(ours),), -1.0)
    for part in others.split(512):
        correlation = torch.fft.irfft(spectra @ torch.fft.rfft(part).permute(2, 1, 0), n=64, dim=0)
        best = best.maximum(correlation.amax(dim=(0, 2)))
    return best.numpy()
