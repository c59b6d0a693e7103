"""Clips that close into a loop, and clips of any length: networks made circular, networks moved along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .models import Pipeline, execution_device
from .values import check_finite

# Latent columns decoded beside a strip and dropped again. riffling's decoder sees 18 columns to
# either side, so its strips are exact.
MARGIN = 24
COLUMN_STEP = 64  # columns of a picture


@contextmanager
def circular_time(network: nn.Module) -> Iterator[None]:
    """Make the picture's right edge the left one's neighbour for every convolution of a network.

    Along frequency (height) the convolutions go on padding with zeros: the lowest band is no
    neighbour of the highest. On leaving, whatever happened, the network is as it was.

    Parameters
    ----------
    network : torch.nn.Module
        A U-Net, or the decoder of an autoencoder.

    Notes
    -----
    Taught in: 03
    """
    zero_padded = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
        and layer.padding_mode == "zeros"
        and layer.padding not in ("valid", "same")
        and "_conv_forward" not in vars(layer)  # made circular already
    ]
    with ExitStack() as stack:
        for layer in zero_padded:
            layer._conv_forward = partial(_circular_convolution, layer)
            stack.callback(vars(layer).pop, "_conv_forward", None)
        yield


def _circular_convolution(layer: nn.Conv2d, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Take the place of ``nn.Conv2d._conv_forward``; image (batch, channels, height, width)."""
    height, width = layer.padding
    image = F.pad(image, (width, width, 0, 0), mode="circular")
    return F.conv2d(image, weight, bias, layer.stride, (height, 0), layer.dilation, layer.groups)


@contextmanager
def sliding_windows(unet: nn.Module, *, width: int, hop: int, loop: bool) -> Iterator[None]:
    """Let a U-Net see latents wider than it was trained on through overlapping windows.

    At every step each window is denoised by itself, and where windows overlap the predictions are
    averaged: MultiDiffusion (https://arxiv.org/abs/2302.08113, eq. 5). Memory hardly grows with
    the latents. On leaving, whatever happened, the U-Net is as it was.

    Parameters
    ----------
    unet : torch.nn.Module
        A ``UNet2DConditionModel``.
    width, hop : int
        Of a window, and from one to the next, in latent columns.
    loop : bool
        Let windows run over the end into the beginning.

    Notes
    -----
    Taught in: 03
    """
    one_window = unet.forward
    is_own = "forward" in vars(unet)  # accelerate's hooks put theirs there too
    put_back = partial(setattr, unet, "forward", one_window) if is_own else partial(delattr, unet, "forward")

    def forward(sample: Tensor, *args: object, **kwargs: object) -> tuple[Tensor]:
        kwargs["return_dict"] = False
        total = torch.zeros_like(sample)  # (batch, 4, 64, columns)
        n_windows = sample.new_zeros(sample.shape[-1])
        for columns in windows(sample.shape[-1], width=width, hop=hop, loop=loop):
            total[..., columns] += one_window(sample[..., columns], *args, **kwargs)[0]
            n_windows[columns] += 1
        return (total / n_windows,)

    unet.forward = forward
    try:
        yield
    finally:
        put_back()


def windows(n_columns: int, *, width: int, hop: int, loop: bool) -> list[Tensor]:
    """Columns of each window: integer tensors (width,) that together cover ``n_columns``."""
    if loop:
        starts = list(range(0, n_columns, hop))
    else:
        starts = [*range(0, n_columns - width, hop), n_columns - width]
    return [torch.arange(start, start + width) % n_columns for start in starts]


def latent_columns(pipe: Pipeline, n_columns: int) -> int:
    """Latent columns to make a picture of `n_columns` from: pictures are made in multiples of 64, then trimmed."""
    return math.ceil(n_columns / COLUMN_STEP) * COLUMN_STEP // pipe.vae_scale_factor


@torch.no_grad()
def encode(pipe: Pipeline, picture: Image.Image, *, loop: bool) -> Tensor:
    """Encode a picture into latents, in strips if it is longer than the model's own: the way back of `decode`.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its autoencoder encodes; of a distribution, the likeliest latents are taken.
    picture : PIL.Image.Image
        RGB, 512 high; mirrored at its end up to a width that the U-Net takes.
    loop : bool
        Whether the first column follows the last one.

    Returns
    -------
    Tensor [shape=(1, 4, 64, columns)]

    Raises
    ------
    FloatingPointError
        If latents are not finite, as where the encoder overflows in float16.
    """
    scale, n_columns = pipe.vae_scale_factor, latent_columns(pipe, picture.width)
    missing = n_columns * scale - picture.width
    picture = Image.fromarray(np.pad(np.asarray(picture), ((0, 0), (0, missing), (0, 0)), mode="reflect"))
    pixels = pipe.image_processor.preprocess(picture)  # (1, 3, 512, width)

    def encode_strip(columns: Tensor) -> Tensor:
        seen = (columns[:, None] * scale + torch.arange(scale)).flatten()
        encoded = pipe.vae.encode(pixels[..., seen].to(execution_device(pipe), pipe.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        check_finite("the autoencoder's latents", latents)
        return latents * pipe.vae.config.scaling_factor

    return _in_strips(pipe.vae.encoder, encode_strip, n_columns, clip_size(pipe)[1], 1, loop)


@torch.no_grad()
def decode(pipe: Pipeline, latents: Tensor, *, loop: bool) -> Image.Image:
    """Decode one clip's latents into its picture, in strips if it is longer than the model's own.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Its autoencoder decodes.
    latents : Tensor
        Of shape (1, 4, 64, columns).
    loop : bool
        Whether the first column follows the last one.

    Returns
    -------
    PIL.Image.Image
        RGB, 8 * columns wide and 512 high.

    Raises
    ------
    FloatingPointError
        If the picture is not finite, as where the decoder overflows in float16.
    """

    def decode_strip(columns: Tensor) -> Tensor:
        image = pipe.vae.decode(latents[..., columns] / pipe.vae.config.scaling_factor, return_dict=False)[0]
        check_finite("the autoencoder's picture", image)
        return torch.from_numpy(np.array(pipe.image_processor.postprocess(image)[0])).mT  # (512, 3, width), bytes

    width, scale = clip_size(pipe)[1], pipe.vae_scale_factor
    pixels = _in_strips(pipe.vae.decoder, decode_strip, latents.shape[-1], width, scale, loop)
    return Image.fromarray(pixels.mT.numpy())


def _in_strips(
    network: nn.Module, one_strip: Callable[[Tensor], Tensor], n_columns: int, width: int, per_column: int, loop: bool
) -> Tensor:
    """Let a part of the autoencoder work on all latent columns, those of a clip and a margin at once."""
    if n_columns <= width:
        with circular_time(network) if loop else nullcontext():
            return one_strip(torch.arange(n_columns))
    strips = []
    for start in range(0, n_columns, width):
        first, stop = start - MARGIN, start + width + MARGIN
        first, stop = (first, stop) if loop else (max(0, first), min(n_columns, stop))
        strip = one_strip(torch.arange(first, stop) % n_columns)
        wanted = slice((start - first) * per_column, (min(start + width, n_columns) - first) * per_column)
        strips.append(strip[..., wanted])
    return torch.cat(strips, dim=-1)


def clip_size(pipe: Pipeline) -> tuple[int, int]:
    """Latent rows and columns of the clips the model was trained on: 64 and 64."""
    size = pipe.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)
