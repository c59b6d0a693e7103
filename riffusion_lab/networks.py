"""Temporary changes to a network's forward pass: circular in time, in overlapping windows, with perturbed attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import Pipeline, model_settings

WIDE = 128  # columns: from this width on, computing a convolution's edges twice is faster than copying its input

_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_locks_guard = Lock()
_offload_lock = RLock()


@contextmanager
def locked(network: nn.Module) -> Iterator[None]:
    """Keep other threads from using a network while it may be changed.

    A live session generates clips in its own thread, beside the notebook's cells, and both may use the same weights.
    There is one lock per network, so one thread can decode while another one denoises. Offloaded networks share one
    lock, since each moves the others between devices. Locks are reentrant. A callback runs while the U-Net's lock is
    held, so it must not wait for a thread that generates with the same network.

    Parameters
    ----------
    network : torch.nn.Module
        A U-Net, an autoencoder or a text encoder (with its tokenizer, which keeps state, too); a compiled network
        shares the lock of the network that it was compiled from.
    """
    network = getattr(network, "_orig_mod", network)
    with _locks_guard:
        lock = _locks.setdefault(network, RLock())
    if is_offloaded(network):
        lock = _offload_lock
    with lock:
        yield


def is_offloaded(network: nn.Module) -> bool:
    """Whether accelerate or diffusers moves weights of a network to the device only while they are used."""
    return any(hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook") for layer in network.modules())


@contextmanager
def circular_time(network: nn.Module) -> Iterator[None]:
    """Make a network's convolutions wrap around in time: the right edge of the picture is next to its left edge.

    Along frequency (height) the convolutions keep their zero padding, since the lowest band is not next to the highest.
    The network is restored on exit, even after an error.

    Parameters
    ----------
    network : torch.nn.Module
        A U-Net, or the encoder or decoder of an autoencoder.

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
        and "_conv_forward" not in vars(layer)  # already circular
    ]
    with ExitStack() as stack:
        for layer in zero_padded:
            layer._conv_forward = partial(_circular_convolution, layer)  # type: ignore[method-assign]
            stack.callback(vars(layer).pop, "_conv_forward", None)
        yield


def _circular_convolution(layer: nn.Conv2d, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Replace ``nn.Conv2d._conv_forward``; image [shape=(batch, channels, height, width)]."""
    height, width = cast("tuple[int, int]", layer.padding)
    is_same = layer.stride[1] == 1 and layer.dilation[1] == 1 and layer.kernel_size[1] == 2 * width + 1
    if is_same and width > 0 and image.shape[-1] >= WIDE:
        if image.device.type == "cpu":  # takes a third less time; all later layers then use this layout too
            image = image.contiguous(memory_format=torch.channels_last)
        result = F.conv2d(image, weight, bias, layer.stride, (height, width), layer.dilation, layer.groups)
        around_seam = torch.cat([image[..., -2 * width :], image[..., : 2 * width]], dim=-1)
        seam = F.conv2d(around_seam, weight, bias, layer.stride, (height, 0), layer.dilation, layer.groups)
        result[..., -width:] = seam[..., :width]
        result[..., :width] = seam[..., width:]
        return result
    image = F.pad(image, (width, width, 0, 0), mode="circular")
    return F.conv2d(image, weight, bias, layer.stride, (height, 0), layer.dilation, layer.groups)


@contextmanager
def sliding_windows(unet: nn.Module, *, width: int, hop: int, loop: bool) -> Iterator[None]:
    """Let a U-Net denoise latents wider than those it was trained on, in overlapping windows.

    At every step each window is predicted on its own, and the predictions are averaged where windows overlap:
    MultiDiffusion (https://arxiv.org/abs/2302.08113, eq. 5). Memory hardly grows with the latents. The U-Net is
    restored on exit, even after an error.

    Parameters
    ----------
    unet : torch.nn.Module
        A ``UNet2DConditionModel``.
    width, hop : int
        Width of a window and step from one to the next, in latent columns.
    loop : bool
        Let windows wrap around from the end to the beginning.

    Notes
    -----
    Taught in: 03
    """
    predict_window = unet.forward
    has_own_forward = "forward" in vars(unet)  # accelerate's hooks set one

    def forward(sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        kwargs["return_dict"] = False
        total = torch.zeros_like(sample)  # (batch, 4, 64, columns)
        n_windows = sample.new_zeros(sample.shape[-1])
        for columns in windows(sample.shape[-1], width=width, hop=hop, loop=loop):
            total[..., columns] += predict_window(sample[..., columns], *args, **kwargs)[0]
            n_windows[columns] += 1
        return (total / n_windows,)

    unet.forward = forward
    try:
        yield
    finally:
        if has_own_forward:
            unet.forward = predict_window
        else:
            del unet.forward


def windows(n_columns: int, *, width: int, hop: int, loop: bool) -> list[Tensor]:
    """Columns of each window: integer tensors [shape=(width,)] that together cover ``n_columns``."""
    if loop:
        starts = list(range(0, n_columns, hop))
    else:
        starts = [*range(0, n_columns - width, hop), n_columns - width]
    return [torch.arange(start, start + width) % n_columns for start in starts]


@contextmanager
def perturbed_attention(pipe: Pipeline) -> Iterator[None]:
    """Weaken the unconditional prediction, so that guidance also steers away from poorly structured pictures.

    In the blocks that the model names (`pag_applied_layers`), the unconditional first half of the batch has no
    self-attention: each position keeps its own value instead of attending to the others. This is perturbed-attention
    guidance (https://arxiv.org/abs/2403.17377), but without that paper's third prediction. Most models name no blocks;
    then nothing changes. The U-Net is restored on exit, even after an error.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Call it, or its U-Net, with guidance only: the first half of each batch must be unconditional.

    Notes
    -----
    Taught in: 03, 09
    """
    blocks = model_settings(pipe).pag_applied_layers
    with ExitStack() as stack:
        for name, layer in pipe.unet.named_modules():
            if name.removeprefix("_orig_mod.").startswith(blocks) and name.endswith(".attn1"):
                stack.callback(layer.set_processor, layer.processor)
                layer.set_processor(_PerturbedAttention(layer.processor))
        yield


@dataclass(frozen=True)
class _PerturbedAttention:
    """An attention processor, as diffusers calls it, that skips self-attention in the first half of the batch."""

    attend: Callable[..., Tensor]

    def __call__(self, attention: Any, hidden_states: Tensor, **options: Any) -> Tensor:
        unconditional = hidden_states[: len(hidden_states) // 2]
        own_values = attention.to_out[0](attention.to_v(unconditional))
        attended = self.attend(attention, hidden_states, **options)
        return torch.cat([own_values, attended[len(own_values) :]])
