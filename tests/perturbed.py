"""Notebooks on a machine that calculates a little differently: ``pytest -p tests.perturbed --nbval notebooks``.

Another processor, another number of threads or another version of a library changes the last bits of sums. The phase
that is found for a picture is chaotic: it makes large differences out of those. As a plugin of pytest this module lets
every kernel add noise of 1e-6 to the waveforms that are analysed, to the pictures' amplitudes before their phase is
found, and to the U-Net's predictions. A number that a notebook prints, and that differs from the saved one then, is no
fact that holds elsewhere.

The noise is the same at every call with the same shape: two ways to the same result still give the same result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

SIZE = 1e-6  # relative to the standard deviation
STARTUP = "import sys\nsys.path.insert(0, {folder!r})\nimport perturbed\nperturbed.perturb()\nsys.path.pop(0)\n"


def with_noise(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with noise of `SIZE` added."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
    return tensor + SIZE * tensor.std(correction=0) * noise


def first_argument_with_noise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function: its first argument is a tensor that gets some noise."""

    def wrapped(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        return function(with_noise(tensor), *args, **options)

    return wrapped


def perturb() -> None:
    """Change the package and the U-Net of this process; to be called before anything else imports from them."""
    import diffusers

    from riffusion_lab import spectrogram

    # Before `phase` and `clip` take it from there
    spectrogram.mel_from_waveform = first_argument_with_noise(spectrogram.mel_from_waveform)
    from riffusion_lab import phase

    phase._griffin_lim = first_argument_with_noise(phase._griffin_lim)
    unet = diffusers.UNet2DConditionModel
    forward = unet.forward

    def forward_with_noise(self: Any, *args: Any, return_dict: bool = True, **options: Any) -> Any:
        sample = with_noise(forward(self, *args, return_dict=False, **options)[0])
        if not return_dict:
            return (sample,)
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=sample)

    unet.forward = forward_with_noise


def pytest_configure(config: pytest.Config) -> None:
    """Give the kernels a profile of IPython whose start-up file calls `perturb`."""
    del config
    profile = Path(mkdtemp(prefix="perturbed-")) / "profile_default" / "startup"
    profile.mkdir(parents=True)
    startup = STARTUP.format(folder=str(Path(__file__).parent))
    (profile / "perturb.py").write_text(startup, encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parents[1])
