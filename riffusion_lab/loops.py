"""Deprecated: see `networks` and `latents`."""

from .deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "circular_time": "networks.circular_time",
        "clip_size": "latents.latent_size",
        "decode": "latents.decode",
        "encode": "latents.encode",
        "latent_columns": "latents.n_latent_columns",
        "sliding_windows": "networks.sliding_windows",
        "windows": "networks.windows",
    },
)
