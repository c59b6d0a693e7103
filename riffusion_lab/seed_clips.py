"""Seed clips: six short loops to start from, and masks for them.

Each has two bars at 94 bpm in A minor, so they can be played on top of one another. tools/seed_clips.py renders them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .clip import Clip
from .masks import box_mask

SEED_CLIPS = ("beat", "groove", "arpeggio", "chords", "bass", "melody")
BEAT_S = 0.64  # 94 bpm, rounded: 8 beats in 5.12 s


def seed_clip(name: str) -> Clip:
    """Load one of the seed clips, a loop of 5.12 s.

    Parameters
    ----------
    name : {"beat", "groove", "arpeggio", "chords", "bass", "melody"}

    Raises
    ------
    ValueError
        If there is no seed clip of this name.

    Taught in: 05, 07
    """
    if name not in SEED_CLIPS:
        raise ValueError(f"there is no seed clip {name!r}: take one of {', '.join(SEED_CLIPS)}")
    return Clip.from_audio(Path(__file__).with_name("seed_clips") / f"{name}.ogg", loop=True)


def seed_masks(name: str) -> dict[str, np.ndarray]:
    """Masks for a seed clip: the parts that `inpaint` regenerates.

    Parameters
    ----------
    name : str
        As in `seed_clip`.

    Returns
    -------
    dict of np.ndarray [shape=(512, 512), bool]
        "between the beats" keeps the first 0.12 s of each beat.

    Taught in: 05, 07
    """
    clip = seed_clip(name)
    struck = np.arange(clip.image.width) / 100 % BEAT_S < 0.12
    return {
        "between the beats": np.broadcast_to(~struck, (clip.params.num_frequencies, len(struck))).copy(),
        "second bar": box_mask(clip, 4 * BEAT_S),
        "last beat": box_mask(clip, 7 * BEAT_S),
        "highs": box_mask(clip, low_hz=1_000),
        "lows": box_mask(clip, high_hz=250),
    }
