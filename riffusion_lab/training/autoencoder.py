"""The autoencoder: pictures [shape=(3, 512, 512)] ↔ latents [shape=(4, 64, 64)].

diffusers' `AutoencoderTiny` (after https://github.com/madebyollin/taesd), trained from nothing on the pictures'
absolute differences. Noise on the latents in training makes them forgive the denoiser its small errors.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import nn
from tqdm.auto import tqdm

from ..networks import circular_time
from .dataset import Dataset
from .run import Muon, autocast, cosine, descend, fastest_dtype, set_learning_rate, train

WIDTH = 32  # channels, everywhere
CROP = 256  # pixels; the networks see at most some 150 of them from one place
BATCH = 16
LATENT_NOISE = 0.08
SQUARED = 6.0  # weight of the squared error beside the absolute one
AUDIBLE = 3.2  # weight of the spectral convergence beside the picture's own error
GRAIN = 0.02  # weight of how far off fine grain is, in dB
NEAR = 0.1  # weight of the distance from the latents that a denoiser was trained on
WRAP = 96  # pixels of the other end that a loop's picture is encoded with


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder of riffling's size (0.45 M parameters)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 2, 4),
        num_decoder_blocks=(4, 2, 1, 0),
        scaling_factor=1.0,
    )


class LatentAutoencoder(nn.Module):
    """The autoencoder with a whitening between its halves, so that latents come out centred and of unit variance."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.whiten = nn.BatchNorm2d(4, affine=False, momentum=0.02)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [shape=(n, 3, height, width), -1…1] there and back, through noise in training."""
        latents = self.whiten(self.vae.encode(pictures).latents)
        if self.training:
            latents = latents + LATENT_NOISE * torch.randn_like(latents)
        return self.vae.decode(latents).sample

    @torch.no_grad()
    def folded(self) -> AutoencoderTiny:
        """The autoencoder with the whitening folded into the encoder's last convolution. Changes it in place."""
        last, scale = self.vae.encoder.layers[-1], (self.whiten.running_var + self.whiten.eps).rsqrt()
        last.weight.mul_(scale[:, None, None, None])
        last.bias.copy_((last.bias - self.whiten.running_mean) * scale)
        self.whiten.reset_running_stats()
        return self.vae


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error of the picture, and half that of its differences both ways (sharp lines).

    The absolute error aims at the median of what could be, the squared one at its mean.
    """
    loss = F.l1_loss(output, target) + SQUARED * F.mse_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def train_autoencoder(
    dataset: Dataset,
    folder: str | Path,
    *,
    start_from: AutoencoderTiny | None = None,
    minutes: float = 12.0,
    learning_rate: float = 1e-3,
) -> AutoencoderTiny:
    """Train from nothing or from a trained one, or go on after a break; write `folder/vae` and return it.

    Parameters
    ----------
    dataset : Dataset
    folder : path
        For the checkpoint and the result, in diffusers' format.
    start_from : AutoencoderTiny, optional
        Default: an untrained one.
    minutes : float
        Time budget.
    """
    rng = np.random.default_rng()
    torch.manual_seed(0)
    training, _ = dataset.split()
    model = LatentAutoencoder(start_from or new_autoencoder()).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)

    def crops() -> torch.Tensor:
        pictures = []
        for i in rng.choice(training, BATCH):
            y, x = rng.integers(0, 512 - CROP + 1, 2)
            pictures.append(dataset.picture(int(i))[y : y + CROP, x : x + CROP])
        return torch.from_numpy(np.stack(pictures)).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1

    def step(progress: float) -> torch.Tensor:
        set_learning_rate(optimizer, learning_rate * cosine(progress))
        pictures = crops().contiguous(memory_format=torch.channels_last)
        with autocast():
            output = model(pictures)
        loss = reconstruction_loss(output.float(), pictures)
        return descend(optimizer, loss)

    train(step, {"model": model, "optimizer": optimizer}, Path(folder) / "autoencoder.pt", minutes=minutes)
    vae = model.eval().folded().to(memory_format=torch.contiguous_format)
    vae.save_pretrained(Path(folder) / "vae")
    return vae


def grain(pictures: torch.Tensor) -> torch.Tensor:
    """Power of what is finer than 5 pixels, place by place, in dB beside one grey level.

    A mean of all details that could be has too little of it. Below -20 dB it makes no difference any more.

    Parameters
    ----------
    pictures : Tensor [shape=(n, channels, height, width), -1…1]

    Returns
    -------
    Tensor [shape=(n, channels, (height - 5) // 4, (width - 5) // 4)]
        Each over 9 × 9 pixels.
    """
    smooth = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    power = F.avg_pool2d((pictures - smooth).square(), 9, stride=4)
    return 10 * torch.log10(power * 127.5**2 + 0.01)


def amplitudes(pixels: torch.Tensor) -> torch.Tensor:
    """Mel amplitudes that pixels [-1…1] stand for, 1 at the loudest: as in `image`."""
    return ((1 - pixels) / 2) ** 4


def train_for_the_ear(
    vae: AutoencoderTiny,
    dataset: Dataset,
    folder: str | Path,
    *,
    both_halves: bool = False,
    minutes: float = 30.0,
    learning_rate: float = 8e-4,
) -> AutoencoderTiny:
    """Train the decoder on, also on how far off amplitudes and fine grain are; write `folder/vae` and return it.

    A pixel is the fourth root of an amplitude. To the eye, which the autoencoder was trained for, most of a picture is
    its quiet places; to the ear they are nothing. Latents stay what they are, so that a denoiser trained on them still
    fits, unless the encoder is trained on as well.

    Parameters
    ----------
    vae : AutoencoderTiny
        As it was before training, also to go on after a break.
    dataset : Dataset
    folder : path
        For the checkpoint and the result, in diffusers' format.
    both_halves : bool
        Train the encoder on as well. Its latents stay near what they were (`NEAR`), but must be encoded again.
    minutes : float
        Time budget.
    """
    rng = np.random.default_rng()
    torch.manual_seed(0)
    training, _ = dataset.split()
    vae.to(memory_format=torch.channels_last).train()
    encode_as_before = copy.deepcopy(vae.encoder)
    trained = vae if both_halves else vae.decoder
    optimizer = Muon(trained.parameters(), lr=learning_rate, weight_decay=0.0)

    def crops() -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [shape=(n, 1, CROP, CROP)], and how loud their clips are on the whole."""
        pictures, loudness = [], []
        for i in rng.choice(training, BATCH // 2):
            y, x = rng.integers(0, 512 - CROP + 1, 2)
            whole = dataset.pictures(np.array([i]))
            pictures.append(whole[..., y : y + CROP, x : x + CROP])
            loudness.append(amplitudes(whole).square().mean().sqrt())
        return torch.cat(pictures), torch.stack(loudness)

    def step(progress: float) -> torch.Tensor:
        set_learning_rate(optimizer, learning_rate * cosine(progress))
        pictures, loudness = crops()
        with autocast():
            grey = pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                known = encode_as_before(grey).float()
            clean = vae.encode(grey).latents.float() if both_halves else known
            noisy = clean + LATENT_NOISE * torch.rand(len(clean), 1, 1, 1) * torch.randn_like(clean)
            output = vae.decode(noisy.contiguous(memory_format=torch.channels_last)).sample.float()
        off = amplitudes(output.mean(dim=1, keepdim=True)) - amplitudes(pictures)
        convergence = (off.square().mean(dim=(1, 2, 3)).sqrt() / loudness).mean()
        wrong_grain = F.l1_loss(grain(output), grain(pictures).expand(-1, 3, -1, -1))
        loss = reconstruction_loss(output, pictures.expand_as(output)) + AUDIBLE * convergence + GRAIN * wrong_grain
        return descend(optimizer, loss + NEAR * F.mse_loss(clean, known))

    train(step, {"trained": trained, "optimizer": optimizer}, Path(folder) / "decoder.pt", minutes=minutes)
    vae = vae.eval().to(memory_format=torch.contiguous_format)
    vae.save_pretrained(Path(folder) / "vae")
    return vae


@torch.no_grad()
def encode_dataset(vae: AutoencoderTiny, dataset: Dataset, file: str | Path) -> np.ndarray:
    """Latents of all clips, encoded as the loops they are.

    Returns
    -------
    np.ndarray [shape=(n, 4, 64, 64), float16]
        Also written to `file`; read from there if it is there.
    """
    file = Path(file)
    if file.exists():
        return np.load(file)
    latents = np.empty((len(dataset), 4, 64, 64), np.float16)
    dtype = fastest_dtype("cpu")
    encode = vae.encoder.to(dtype, memory_format=torch.channels_last)
    for start in tqdm(range(0, len(dataset), BATCH), desc="latents", mininterval=10):
        indices = np.arange(start, min(start + BATCH, len(dataset)))
        # Faster than circular convolutions: let each picture see enough of its other end, then cut that off.
        pictures = F.pad(dataset.pictures(indices), (WRAP, WRAP, 0, 0), mode="circular").expand(-1, 3, -1, -1)
        latent = encode(pictures.to(dtype, memory_format=torch.channels_last))
        latents[indices] = latent[..., WRAP // 8 : -WRAP // 8].float().numpy()
    encode.float()
    np.save(file, latents)
    return latents


@torch.no_grad()
def there_and_back(vae: AutoencoderTiny, picture: torch.Tensor) -> torch.Tensor:
    """What is left of a loop's picture [shape=(1, 1, 512, 512), -1…1] after encoding and decoding."""
    with circular_time(vae):
        again = vae.decode(vae.encode(picture.expand(-1, 3, -1, -1)).latents).sample
    return again.mean(dim=1, keepdim=True).clamp(-1, 1)


def fidelity(again: list[torch.Tensor], pictures: list[torch.Tensor]) -> dict[str, float]:
    """How well pictures [shape=(1, 1, height, width)] came back.

    Returns
    -------
    dict
        psnr: peak signal-to-noise ratio in dB, against the full range of 255. convergence: what is heard of that, the
        mean spectral convergence of the mel amplitudes that the pictures stand for, at the best gain.
    """
    errors, convergences = [], []
    for back, picture in zip(again, pictures, strict=True):
        errors.append(F.mse_loss(back, picture).item() / 4)
        heard, wanted = amplitudes(back), amplitudes(picture)
        gain = (heard * wanted).sum() / heard.square().sum()
        convergences.append(((gain * heard - wanted).norm() / wanted.norm()).item())
    return {"psnr": float(-10 * np.log10(np.mean(errors))), "convergence": float(np.mean(convergences))}
