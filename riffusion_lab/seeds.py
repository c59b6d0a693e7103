"""Deprecated: see `seed_clips`."""

from .deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "BEAT_S": "seed_clips.BEAT_S",
        "SEEDS": "seed_clips.SEED_CLIPS",
        "seed_clip": "seed_clips.seed_clip",
        "seed_masks": "seed_clips.seed_masks",
    },
)
