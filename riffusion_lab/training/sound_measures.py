"""Tempo, key and silence of a sound. What is not clear is None: a caption must not say what cannot be heard."""

from __future__ import annotations

from dataclasses import dataclass

import librosa
import numpy as np

HOP = 256  # samples between onset strengths: 11 ms at 24 kHz
FEWEST_BEATS = 8
LEAST_PERIODICITY = 0.2  # mean autocorrelation of the onset strength at one, two and four beats
LEAST_MARGIN = 0.05  # of that, to a rival period
MOST_JITTER = 0.06  # deviation of the beats from even spacing, in beats
RIVALS = (2 / 3, 3 / 2, 3 / 4, 4 / 3)  # periods that the tracker may take for a beat, as parts of it
CHROMA_HOP = 2_048  # samples
LEAST_KEY_CORRELATION = 0.6
# To the correlation of the second best key: relative keys share their notes. At this margin, one in three of the
# composer's short loops has a key, right in 75 % of them; from their scores it would be 77 %.
LEAST_KEY_MARGIN = 0.2
FRAME_S = 0.1  # in which silence is measured

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# How well each pitch class fits into C major and C minor, in the judgement of listeners: C. L. Krumhansl and
# E. J. Kessler (1982), "Tracing the dynamic changes in perceived tonal organization in a spatial representation of
# musical keys", Psychological Review 89, 334–368; used to find keys in C. L. Krumhansl (1990), "Cognitive Foundations
# of Musical Pitch", chapter 4.
KEY_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


@dataclass(frozen=True)
class Beats:
    """A steady beat."""

    tempo_bpm: float
    times_s: np.ndarray  # [shape=(n,)]


def find_beats(waveform: np.ndarray, sample_rate: int) -> Beats | None:
    """Beats of a sound by dynamic programming (`librosa.beat.beat_track`; D. Ellis 2007), if they are steady.

    The tempo is that of the evenly spaced grid that fits the beats best. Half or twice the tempo that a listener would
    tap is possible: which of them is felt is a matter of taste.

    Parameters
    ----------
    waveform : np.ndarray [shape=(n_samples,), float32]
    sample_rate : int
        Hz

    Returns
    -------
    Beats or None
        None if there are fewer than 8 beats, if they are not evenly spaced, or if the onsets do not repeat after one,
        two and four beats, or nearly as well after 3/2 or 4/3 as many: the tracker finds beats in noise, too.
    """
    onsets = librosa.onset.onset_strength(y=waveform, sr=sample_rate, hop_length=HOP)
    frames = _track(onsets, sample_rate)
    if len(frames) < FEWEST_BEATS:
        return None
    period = _period(frames)
    if any(periodicity(onsets, ratio * period) > periodicity(onsets, period) - LEAST_MARGIN for ratio in RIVALS):
        return None
    first = float(np.mean(frames)) - period * (len(frames) - 1) / 2
    jitter = float(np.std(frames - first - period * np.arange(len(frames)))) / period
    if jitter > MOST_JITTER or periodicity(onsets, period) < LEAST_PERIODICITY:
        return None
    return Beats(60 * sample_rate / (period * HOP), frames * HOP / sample_rate)


def _track(onsets: np.ndarray, sample_rate: int) -> np.ndarray:
    """Frames of the beats in onset strengths [shape=(n,)], as integers."""
    _, frames = librosa.beat.beat_track(onset_envelope=onsets, sr=sample_rate, hop_length=HOP)
    return np.asarray(frames)


def _period(frames: np.ndarray) -> float:
    """Frames from beat to beat [shape=(n,)], of the evenly spaced grid that fits best."""
    slope, _ = np.polyfit(np.arange(len(frames)), frames, 1)
    return float(slope)


def periodicity(onsets: np.ndarray, period: float) -> float:
    """How well onset strengths [shape=(n,)] repeat after one, two and four periods (in frames).

    Returns
    -------
    float
        Mean autocorrelation: 1 if they repeat exactly, about 0 for noise.
    """
    centred = onsets - onsets.mean()
    energy = float(centred @ centred)
    if energy == 0 or len(centred) < 8 * period:
        return 0.0
    return float(np.mean([_autocorrelation(centred, n_periods * period) for n_periods in (1, 2, 4)]) / energy)


def _autocorrelation(centred: np.ndarray, lag: float) -> float:
    """Autocorrelation of numbers [shape=(n,)], the larger of the two at the whole lags nearest to `lag`."""
    values = []
    for whole in (int(lag), int(lag) + 1):
        n_pairs = len(centred) - whole
        values.append(float(centred[whole:] @ centred[:n_pairs]) * len(centred) / n_pairs)
    return max(values)


def find_key(waveform: np.ndarray, sample_rate: int) -> str | None:
    """Key of a sound: its mean chroma, correlated with the profiles of the 24 keys.

    Parameters
    ----------
    waveform : np.ndarray [shape=(n_samples,), float32]
    sample_rate : int
        Hz

    Returns
    -------
    str or None
        Such as "A minor"; None if no key fits well, or two fit nearly as well.
    """
    chroma = librosa.feature.chroma_cqt(y=waveform, sr=sample_rate, hop_length=CHROMA_HOP, norm=None, tuning=0.0)
    return key_of_chroma(chroma.mean(axis=1))


def key_of_chroma(chroma: np.ndarray) -> str | None:
    """Key that fits a mean chroma vector [shape=(12,), from C upwards], or None; see `find_key`."""
    if not chroma.any() or np.ptp(chroma) == 0:
        return None
    correlations: dict[str, float] = {}
    for mode, profile in KEY_PROFILES.items():
        for tonic, name in enumerate(PITCH_CLASSES):
            correlations[f"{name} {mode}"] = float(np.corrcoef(chroma, np.roll(profile, tonic))[0, 1])
    second, best = sorted(correlations, key=lambda key: correlations[key])[-2:]
    is_clear = correlations[best] - correlations[second] >= LEAST_KEY_MARGIN
    if correlations[best] < LEAST_KEY_CORRELATION or not is_clear:
        return None
    return best


def silent_share(waveform: np.ndarray, sample_rate: int, silence_db: float) -> float:
    """Share of a sound that its longest silence lasts: the gaps between the ticks of a clock are no silence.

    Parameters
    ----------
    waveform : np.ndarray [shape=(n_samples,), float32]
    sample_rate : int
        Hz
    silence_db : float
        dBFS: the RMS level in frames of 0.1 s below which they are silent.

    Returns
    -------
    float
        0 to 1.
    """
    n_frame = round(FRAME_S * sample_rate)
    n_frames = len(waveform) // n_frame
    frames = waveform[: n_frames * n_frame].reshape(n_frames, n_frame)
    level = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    is_loud = level >= 10 ** (silence_db / 20)
    bounds = np.concatenate([[-1], np.flatnonzero(is_loud), [n_frames]])
    longest = int(np.diff(bounds).max()) - 1
    return longest / n_frames
