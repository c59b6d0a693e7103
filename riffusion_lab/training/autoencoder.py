"""The autoencoder: pictures [shape=(3, 512, 512)] to latents [shape=(4, 64, 64)] and back.

diffusers' `AutoencoderTiny` (after https://github.com/madebyollin/taesd), trained on the absolute and squared
differences of pictures. Noise on the latents in training makes the decoder tolerate the denoiser's small errors.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..clip import Clip
from ..files import whole_folder, write_whole
from ..image import Picture
from ..networks import circular_time
from ..params import PARAMS
from .checkpoints import HasState, data_id, weights_id
from .config import AutoencoderConfig, DecoderConfig
from .dataset import Dataset
from .loop import Batch, Task, is_main_process, run_loop, seeded
from .optimizers import MuonAdamW, fastest_dtype
from .progress import Snapshot

ENCODE_BATCH = 16
WRAPPED = 96  # pixels of the other end that a loop's picture is encoded with
N_MEASURED = 16  # held-out clips on which a snapshot measures the autoencoder
N_HEARD = 2  # of them can be listened to


def new_autoencoder(width: int = 32) -> AutoencoderTiny:
    """An untrained autoencoder with `width` channels in every layer; riffling's has 32 (0.45 M parameters)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 1, 2, 4),
        num_decoder_blocks=(4, 2, 1, 0),
        scaling_factor=1.0,
    )


class WhitenedAutoencoder(nn.Module):
    """An autoencoder with batch normalization between its halves, so that latents have mean 0 and variance 1."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.whiten = nn.BatchNorm2d(4, affine=False, momentum=0.02)

    def forward(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Pictures [shape=(n, 3, height, width), range [-1, 1]], encoded, with noise added to the latents, decoded."""
        latents = self.whiten(self.vae.encode(pictures).latents)
        reconstructed: Tensor = self.vae.decode(latents + noise).sample
        return reconstructed

    @torch.no_grad()
    def folded(self) -> AutoencoderTiny:
        """The autoencoder with the whitening folded into the encoder's last convolution. Changes it in place."""
        last = self.vae.encoder.layers[-1]
        mean = self.whiten.get_buffer("running_mean")
        scale = (self.whiten.get_buffer("running_var") + self.whiten.eps).rsqrt()
        last.weight.mul_(scale[:, None, None, None])
        last.bias.copy_((last.bias - mean) * scale)
        self.whiten.reset_running_stats()
        return self.vae


def reconstruction_loss(output: Tensor, target: Tensor, *, squared_weight: float = 6.0) -> Tensor:
    """Absolute and squared error of pictures, and half the error of their differences along both axes (sharp lines).

    The absolute error alone is least for the median of all plausible values, the squared one for their mean.
    """
    loss = F.l1_loss(output, target) + squared_weight * F.mse_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def draw_crops(dataset: Dataset, indices: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    """A random square of each picture [shape=(n, 1, size, size), range [-1, 1]]."""
    crops = []
    for i in indices:
        y, x = rng.integers(0, 512 - size + 1, 2)
        crops.append(dataset.picture(int(i))[y : y + size, x : x + size])
    return torch.from_numpy(np.stack(crops)).float()[:, None] / 127.5 - 1


def _in_three_channels(pictures: Tensor) -> Tensor:
    return pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class AutoencoderTask(Task):
    """Trains a `WhitenedAutoencoder` on crops. Its batch normalization sees one process's part of a batch at a time."""

    name = "autoencoder"
    network: WhitenedAutoencoder

    def __init__(self, vae: AutoencoderTiny, dataset: Dataset, config: AutoencoderConfig) -> None:
        self.dataset, self.config = dataset, config
        self.data_id = data_id(dataset, vae)
        self.indices = training_indices(dataset)
        self.network = WhitenedAutoencoder(vae).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=config.weight_decay)

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        """Crops of random clips, and noise for their latents."""
        n, size = self.config.batch_size, self.config.crop
        pictures = draw_crops(self.dataset, rng.choice(self.indices, n), size, rng)
        noise = torch.randn((n, 4, size // 8, size // 8), generator=generator)
        return {"pictures": pictures, "noise": self.config.latent_noise * noise}

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Error of the pictures."""
        pictures = _in_three_channels(batch["pictures"])
        output = network(pictures, batch["noise"])
        return {"loss": reconstruction_loss(output, pictures, squared_weight=self.config.squared_weight)}

    def snapshot(self) -> Snapshot:
        """How well held-out clips are reconstructed, and two of them to listen to."""
        return autoencoder_snapshot(copy.deepcopy(self.network).eval().folded(), self.dataset)


def train_autoencoder(
    dataset: Dataset,
    folder: str | Path,
    config: AutoencoderConfig | None = None,
    *,
    start_from: AutoencoderTiny | None = None,
) -> AutoencoderTiny:
    """Train an autoencoder, or resume an interrupted run; writes ``vae`` in the folder, in diffusers' layout.

    Parameters
    ----------
    dataset : Dataset
    folder : path
        See `run_loop`.
    config : AutoencoderConfig, optional
    start_from : AutoencoderTiny, optional
        Train a copy of this one on. Default: an untrained one.
    """
    config = config or AutoencoderConfig()
    with seeded(config.seed):
        vae = copy.deepcopy(start_from).float() if start_from else new_autoencoder(config.width)
    task = AutoencoderTask(vae, dataset, config)
    run_loop(task, config, folder)
    return _save(task.network.eval().folded(), folder)


def _save(vae: AutoencoderTiny, folder: str | Path) -> AutoencoderTiny:
    vae = vae.to("cpu", memory_format=torch.contiguous_format).eval()
    if is_main_process():
        with whole_folder(Path(folder) / "vae") as part:
            vae.save_pretrained(part)
    return vae


def training_indices(dataset: Dataset) -> np.ndarray:
    """Indices of the clips to train on.

    Raises
    ------
    ValueError
        If there are none.
    """
    indices, _ = dataset.split()
    if len(indices) == 0:
        raise ValueError(f"the data set has no clips to train on, of {len(dataset)} in all: add some")
    return indices


def measured_indices(dataset: Dataset, n: int) -> tuple[np.ndarray, str]:
    """Clips on which a network is measured, always the same ones.

    Parameters
    ----------
    dataset : Dataset
    n : int
        The most clips.

    Returns
    -------
    indices : np.ndarray [shape=(up to n,), int64]
        Of held-out clips; if there are none, of clips to train on.
    description : str
        What these clips are: "16 held-out clips", or "16 clips to train on, since none is held out".
    """
    training, held_out = dataset.split()
    has_held_out = len(held_out) > 0
    indices = np.sort(np.random.default_rng(0).permutation(held_out if has_held_out else training)[:n])
    clips = "clip" if len(indices) == 1 else "clips"
    if has_held_out:
        return indices, f"{len(indices)} held-out {clips}"
    return indices, f"{len(indices)} {clips} to train on, since none is held out"


def autoencoder_snapshot(vae: AutoencoderTiny, dataset: Dataset) -> Snapshot:
    """How well held-out clips are reconstructed, and two of them to listen to."""
    indices, measured_on = measured_indices(dataset, N_MEASURED)
    pictures = [dataset.pictures([i]) for i in indices]
    loops = [dataset.columns_per_bar(int(i)) is not None for i in indices]
    device = next(vae.parameters()).device
    outputs = [reconstruct(vae, p.to(device), loop=loop).cpu() for p, loop in zip(pictures, loops, strict=True)]
    heard = list(zip(outputs, loops, strict=True))[:N_HEARD]
    clips = [Clip.from_picture(Picture(_as_image(output), PARAMS, loop=loop)) for output, loop in heard]
    return Snapshot(numbers=fidelity(outputs, pictures), measured_on=measured_on, clips=clips)


def _as_image(picture: Tensor) -> Image.Image:
    pixels = ((picture[0, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy()).convert("RGB")


def fine_grain(pictures: Tensor) -> Tensor:
    """Local power of details finer than 5 pixels, in dB relative to one grey level.

    A decoder that predicts the mean of all plausible details has too little of it. Below -20 dB it is not counted.

    Parameters
    ----------
    pictures : Tensor [shape=(n, channels, height, width), range [-1, 1]]

    Returns
    -------
    Tensor [shape=(n, channels, (height - 5) // 4, (width - 5) // 4)]
        Each over 9 × 9 pixels.
    """
    smooth = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    power = F.avg_pool2d((pictures - smooth).square(), 9, stride=4)
    return 10 * torch.log10(power * 127.5**2 + 0.01)


def amplitudes(pixels: Tensor) -> Tensor:
    """Mel amplitudes that pixels in [-1, 1] stand for, 1 at the loudest: as in `image`."""
    return ((1 - pixels) / 2) ** 4


def rms_amplitude(pictures: Tensor) -> Tensor:
    """Root mean square of the mel amplitudes that pictures stand for [shape=()]."""
    return amplitudes(pictures).square().mean().sqrt()


class DecoderTraining(nn.Module):
    """An autoencoder beside its own encoder as it was before."""

    def __init__(self, vae: AutoencoderTiny, *, both_halves: bool) -> None:
        super().__init__()
        self.vae, self.both_halves = vae, both_halves
        self.reference = copy.deepcopy(vae.encoder).requires_grad_(False)
        vae.encoder.requires_grad_(both_halves)

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [shape=(n, 3, height, width)] → decoded pictures, latents before noise, latents as they were."""
        with torch.no_grad():
            reference = self.reference(pictures)
        latents = self.vae.encode(pictures).latents if self.both_halves else reference
        noisy = (latents + noise).contiguous(memory_format=torch.channels_last)
        return self.vae.decode(noisy).sample, latents, reference


class DecoderTask(Task):
    """Trains the decoder (or both halves) on the error of amplitudes and fine grain as well."""

    name = "decoder"
    network: DecoderTraining

    def __init__(self, vae: AutoencoderTiny, dataset: Dataset, config: DecoderConfig) -> None:
        self.dataset, self.config = dataset, config
        self.data_id = data_id(dataset, vae)
        self.indices = training_indices(dataset)
        vae.to(memory_format=torch.channels_last).train()
        self.network = DecoderTraining(vae, both_halves=config.both_halves)
        self.trained = vae if config.both_halves else vae.decoder
        self.optimizer = MuonAdamW(self.trained.parameters(), weight_decay=config.weight_decay)

    def state(self) -> Mapping[str, HasState]:
        """The trained part."""
        return {"trained": self.trained}

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        """Crops, the loudness of their whole clips, and noise for their latents, of a different amount for each."""
        n, size = self.config.batch_size, self.config.crop
        indices = rng.choice(self.indices, n)
        amount = self.config.latent_noise * torch.rand((n, 1, 1, 1), generator=generator)
        loudness = [rms_amplitude(self.dataset.pictures([i])) for i in indices]
        return {
            "pictures": draw_crops(self.dataset, indices, size, rng),
            "loudness": torch.stack(loudness),
            "noise": amount * torch.randn((n, 4, size // 8, size // 8), generator=generator),
        }

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Error of the pictures, spectral convergence, error of the fine grain, change of the latents."""
        config, pictures = self.config, batch["pictures"]
        output, latents, reference = network(_in_three_channels(pictures), batch["noise"])
        error = amplitudes(output.mean(dim=1, keepdim=True)) - amplitudes(pictures)
        convergence = (error.square().mean(dim=(1, 2, 3)).sqrt() / batch["loudness"]).mean()
        grain_error = F.l1_loss(fine_grain(output), fine_grain(pictures).expand(-1, 3, -1, -1))
        of_pictures = reconstruction_loss(output, pictures.expand_as(output), squared_weight=config.squared_weight)
        of_latents = F.mse_loss(latents, reference)
        loss = of_pictures + config.audible_weight * convergence + config.grain_weight * grain_error
        return {"loss": loss + config.latent_weight * of_latents}

    def snapshot(self) -> Snapshot:
        """How well held-out clips are reconstructed, and two of them to listen to."""
        return autoencoder_snapshot(self.network.vae, self.dataset)


def finetune_decoder(
    vae: AutoencoderTiny, dataset: Dataset, folder: str | Path, config: DecoderConfig | None = None
) -> AutoencoderTiny:
    """Train a copy of an autoencoder's decoder on, also on errors of amplitudes and fine grain; writes ``vae``.

    A pixel is the fourth root of an amplitude. Most of a picture is quiet, and the plain error of pixels is dominated
    by these parts, which nobody hears. Latents stay the same, so a denoiser trained on them still fits, unless the
    encoder is trained as well.

    Parameters
    ----------
    vae : AutoencoderTiny
        As it was before this stage, also to resume.
    dataset : Dataset
    folder : path
        See `run_loop`.
    config : DecoderConfig, optional
    """
    config = config or DecoderConfig()
    task = DecoderTask(copy.deepcopy(vae).float(), dataset, config)
    run_loop(task, config, folder)
    task.network.vae.requires_grad_(True)
    return _save(task.network.vae, folder)


@torch.no_grad()
def encode_dataset(vae: AutoencoderTiny, dataset: Dataset, file: str | Path) -> np.ndarray:
    """Latents of all clips; loops are encoded as loops, other clips as they are.

    Returns
    -------
    np.ndarray [shape=(n, 4, 64, 64), float16], memory-mapped
        Written to `file`; read from there if they are those of this autoencoder and these clips.
    """
    file = Path(file)
    origin: dict[str, Any] = {"vae": weights_id(vae), "clips": dataset.fingerprint(), "n_clips": len(dataset)}
    if len(dataset) and "seed" in dataset.facts[0]:
        origin["first_seed"] = dataset.facts[0]["seed"]  # the files of all composed data sets have the same names
    origin_file = file.with_suffix(".json")
    if file.exists() and origin_file.exists() and json.loads(origin_file.read_text()) == origin:
        return np.load(file, mmap_mode="r")
    file.parent.mkdir(parents=True, exist_ok=True)
    origin_file.unlink(missing_ok=True)
    _write_latents(vae, dataset, file)
    write_whole(origin_file, json.dumps(origin).encode())
    return np.load(file, mmap_mode="r")


def _write_latents(vae: AutoencoderTiny, dataset: Dataset, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.part")
    latents = _reserve(temporary, len(dataset))
    dtype = fastest_dtype("cpu")
    encoder = copy.deepcopy(vae.encoder).to("cpu", dtype, memory_format=torch.channels_last).eval()
    is_loop = np.array([dataset.columns_per_bar(i) is not None for i in range(len(dataset))])
    with tqdm(total=len(dataset), desc="latents", disable=None) as bar:
        for loop in (True, False):
            indices = np.flatnonzero(is_loop == loop)
            for start in range(0, len(indices), ENCODE_BATCH):
                part = indices[start : start + ENCODE_BATCH]
                latents[part] = encode_pictures(encoder, dataset.pictures(part).to(dtype), loop=loop).float().numpy()
                bar.update(len(part))
    latents.flush()
    os.replace(temporary, file)


def _reserve(file: Path, n_clips: int) -> np.memmap:
    """A memory-mapped file for latents [shape=(n_clips, 4, 64, 64), float16], full of zeros.

    Zeros are written first: on a full disk that is an OSError, but writing to a mapped file ends the whole process.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
    zeros = bytes(4 * 64 * 64 * 2)
    try:
        with file.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header | {"shape": (n_clips, 4, 64, 64)})
            for _ in range(n_clips):
                stream.write(zeros)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    latents: np.memmap = np.load(file, mmap_mode="r+")
    return latents


def encode_pictures(encoder: nn.Module, pictures: Tensor, *, loop: bool) -> Tensor:
    """Latents [shape=(n, 4, 64, 64)] of pictures [shape=(n, 1, 512, 512), range [-1, 1]].

    Loops are padded with their other end, and the latents of the padding are removed: that gives what circular
    convolutions give, but faster.
    """
    margin = WRAPPED if loop else 0
    padded = F.pad(pictures, (margin, margin, 0, 0), mode="circular") if loop else pictures
    latents: Tensor = encoder(_in_three_channels(padded))
    return latents[..., margin // 8 : latents.shape[-1] - margin // 8]


@torch.no_grad()
def reconstruct(vae: AutoencoderTiny | AutoencoderKL, picture: Tensor, *, loop: bool = True) -> Tensor:
    """A picture [shape=(1, 1, 512, 512), range [-1, 1]], by default a loop, encoded and decoded.

    The autoencoder may be on another device and of another precision, and may be Stable Diffusion's `AutoencoderKL`.
    """
    in_color = picture.expand(-1, 3, -1, -1).to(vae.device, vae.dtype)
    with circular_time(vae) if loop else nullcontext():
        encoded = vae.encode(in_color)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        output = vae.decode(latents).sample
    grey: Tensor = output.float().mean(dim=1, keepdim=True).clamp(-1, 1).to(picture.device)
    return grey


def fidelity(outputs: list[Tensor], pictures: list[Tensor]) -> dict[str, float]:
    """How close reconstructed pictures [shape=(1, 1, height, width)] are to the originals.

    Returns
    -------
    dict
        psnr: peak signal-to-noise ratio in dB, relative to the full range of 255. convergence: the audible part, the
        mean spectral convergence of the mel amplitudes that the pictures stand for, at the best gain.
    """
    errors, convergences = [], []
    for output, picture in zip(outputs, pictures, strict=True):
        errors.append(F.mse_loss(output, picture).item() / 4)
        ours, original = amplitudes(output), amplitudes(picture)
        gain = (ours * original).sum() / ours.square().sum()
        convergences.append(((gain * ours - original).norm() / original.norm()).item())
    return {"psnr": float(-10 * np.log10(np.mean(errors))), "convergence": float(np.mean(convergences))}
