"""Pictures to latents and back: the autoencoder, in strips where a clip is longer than the model's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .models import Pipeline, execution_device
from .networks import circular_time, locked
from .values import check_finite

# Latent columns that are processed on either side of a strip and then dropped. riffling's decoder sees 18 columns to
# either side, so its strips are exact.
MARGIN = 24
WIDTH_MULTIPLE = 64  # pixels; the U-Net halves the latents three times


def latent_size(pipe: Pipeline) -> tuple[int, int]:
    """Latent rows and columns of the clips that the model was trained on: 64 and 64."""
    size = pipe.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def n_latent_columns(pipe: Pipeline, n_columns: int) -> int:
    """Number of latent columns for a picture of `n_columns`, rounded up to a width that the U-Net accepts."""
    return math.ceil(n_columns / WIDTH_MULTIPLE) * WIDTH_MULTIPLE // pipe.vae_scale_factor


def latent_mask(mask: np.ndarray, n_columns: int, *, vae_scale_factor: int = 8) -> Tensor:
    """Latent cells that a mask touches.

    Parameters
    ----------
    mask : np.ndarray [shape=(512, columns), bool]
    n_columns : int
        Number of latent columns; those beyond the mask's end are True.
    vae_scale_factor : int
        Pixels per latent cell, along each axis.

    Returns
    -------
    Tensor [shape=(64, n_columns), bool]
    """
    missing = n_columns * vae_scale_factor - mask.shape[1]
    padded = F.pad(torch.tensor(mask).float(), (0, missing), value=1.0)
    return F.max_pool2d(padded[None], vae_scale_factor)[0] > 0


@torch.no_grad()
def encode(pipe: Pipeline, picture: Image.Image, *, loop: bool) -> Tensor:
    """Encode a picture into latents, in strips if it is wider than the model's own clips. The inverse is `decode`.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its autoencoder encodes. If the encoder returns a distribution of latents, its mode is used.
    picture : PIL.Image.Image
        RGB, 512 high. It is padded with its mirror image to a width that the U-Net accepts.
    loop : bool
        Whether the picture wraps around in time.

    Returns
    -------
    Tensor [shape=(1, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite, for example where the encoder overflows in float16.
    """
    scale = pipe.vae_scale_factor
    n_columns = n_latent_columns(pipe, picture.width)
    missing = n_columns * scale - picture.width
    padded = np.pad(np.asarray(picture), ((0, 0), (0, missing), (0, 0)), mode="reflect")
    pixels = pipe.image_processor.preprocess(Image.fromarray(padded))  # (1, 3, 512, width)

    def encode_strip(columns: Tensor) -> Tensor:
        pixel_columns = (columns[:, None] * scale + torch.arange(scale)).flatten()
        strip = pixels[..., pixel_columns].to(execution_device(pipe), pipe.vae.dtype)
        encoded = pipe.vae.encode(strip)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        check_finite("the autoencoder's latents", latents)
        return latents * pipe.vae.config.scaling_factor

    with locked(pipe.vae):
        return _in_strips(
            pipe.vae.encoder, encode_strip, n_columns=n_columns, width=latent_size(pipe)[1], scale=1, loop=loop
        )


@torch.no_grad()
def decode(pipe: Pipeline, latents: Tensor, *, loop: bool) -> Image.Image:
    """Decode the latents of one clip into its picture, in strips if it is wider than the model's own clips.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its autoencoder decodes.
    latents : Tensor [shape=(1, 4, 64, columns)]
    loop : bool
        Whether the picture wraps around in time.

    Returns
    -------
    PIL.Image.Image
        RGB, 8 * columns wide and 512 high.

    Raises
    ------
    FloatingPointError
        If the picture is not finite, for example where the decoder overflows in float16.
    """

    def decode_strip(columns: Tensor) -> Tensor:
        image = pipe.vae.decode(latents[..., columns] / pipe.vae.config.scaling_factor, return_dict=False)[0]
        check_finite("the autoencoder's picture", image)
        picture = pipe.image_processor.postprocess(image)[0]
        return torch.from_numpy(np.array(picture)).mT  # (512, 3, width), bytes

    with locked(pipe.vae):
        pixels = _in_strips(
            pipe.vae.decoder,
            decode_strip,
            n_columns=latents.shape[-1],
            width=latent_size(pipe)[1],
            scale=pipe.vae_scale_factor,
            loop=loop,
        )
    return Image.fromarray(pixels.mT.numpy())


def _in_strips(
    network: nn.Module,
    process: Callable[[Tensor], Tensor],
    *,
    n_columns: int,
    width: int,
    scale: int,
    loop: bool,
) -> Tensor:
    """Process latent columns in strips of `width`, each with `MARGIN` more columns on either side.

    Parameters
    ----------
    network : torch.nn.Module
        Encoder or decoder; for a loop that fits into one strip, it is made circular.
    process : callable
        Maps latent columns, an integer Tensor [shape=(columns,)], to a result [shape=(..., columns * scale)].
    """
    if n_columns <= width:
        with circular_time(network) if loop else nullcontext():
            return process(torch.arange(n_columns))
    strips = []
    for start in range(0, n_columns, width):
        stop = min(start + width, n_columns)
        first = start - MARGIN
        last = start + width + MARGIN
        if not loop:
            first = max(0, first)
            last = min(n_columns, last)
        strip = process(torch.arange(first, last) % n_columns)
        strips.append(strip[..., (start - first) * scale : (stop - first) * scale])
    return torch.cat(strips, dim=-1)
