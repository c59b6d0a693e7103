"""The denoiser and its text encoder: noise and words → latents.

A U-Net of Stable Diffusion's plan with narrower layers, trained on v-prediction (https://arxiv.org/abs/2202.00512)
under a schedule that ends in pure noise (https://arxiv.org/abs/2305.08891). The text encoder knows what captions tell
before it comes here (`text`), and is trained on at a tenth of the U-Net's learning rate. Besides cross-attention, the
pooled text goes to every layer along with the time step (diffusers' `addition_embed_type="text"`): timbre is a matter
of every layer. The distance of partials depends on where in frequency they are, but nothing tells a convolution that,
save the edges of the picture: so the network is taught to find out (`PlaceReader`).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..networks import circular_time
from ..sampling import CIRCULAR_SHARE
from .captions import caption
from .dataset import Dataset
from .run import Muon, cosine, fastest_dtype, set_learning_rate, train
from .text import WIDTH, anchors_of, tokenize, train_text_encoder, train_tokenizer
from .vocabulary import CLIP_SECONDS, DRUMS, FUSION

CHANNELS = (48, 96, 192, 192)
BATCH = 16
WEIGHT_OF_KIND = {"solo": 1.0, "style": 1.3, DRUMS: 3.0, "effect": 0.7, FUSION: 4.0}  # of each class, in a draw
FAVOUR = 3.0  # times as often
EMPTY_CAPTIONS = 0.1
FULL_CAPTIONS = 0.4  # that tell all that is known: what is told rarely is learned slowly
TEXT_RATE = 0.1  # learning rate of the text encoder beside the U-Net's
CLOSING = 0.1  # share of batches with the little noise and the circular layers that close a loop in generation
N_WAVES = 16  # half cosines over frequency that tell where a row is; the fastest turns in 4 rows of 64
PLACE = 0.1  # weight of the error in telling that
STEPS = {"use_karras_sigmas": True, "sigma_max": 40.0, "sigma_min": 0.05}  # from noise as good as pure to hardly any
N_FOR_POWER = 1024  # clips to measure the latents' spectrum on
VISIBLE = 0.5  # share of the error that counts as much as can be seen through the noise
NOISY = 0.45  # power of an even draw of time steps: below 1 favours the noisy ones, where the words decide


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net (17.6 M parameters)."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=6,  # diffusers' name for the number of heads
        transformer_layers_per_block=(1, 1, 2, 1),  # two at 16 × 16, down and up
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def new_scheduler() -> DDIMScheduler:
    """The noise schedule to train with: 1000 steps to pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


class TextDenoiser(nn.Module):
    """Text encoder and U-Net as one network: (noisy latents, time step, tokens) → v."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Latents [shape=(n, 4, 64, 64)], time steps [shape=(n,)], tokens [shape=(n, 77)] → v [like the latents]."""
        words = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timestep, words).sample


class PlaceReader(nn.Module):
    """Reads from a U-Net's features on which row they are; its error teaches the U-Net to know. Training only.

    Convolutions can learn where they are from the zeros beyond the edges (https://arxiv.org/abs/2001.08248, whose
    readout this is), but have little reason to begin, since it pays only once it is precise. So the middle block and
    the up blocks but the last are asked for half cosines over the rows, 1 … `N_WAVES` to a picture's height.
    """

    def __init__(self, network: TextDenoiser) -> None:
        super().__init__()
        self.network = network
        unet = network.unet
        narrower = unet.config.block_out_channels[::-1]
        self.heads = nn.ModuleList([nn.Conv2d(width, N_WAVES, 1) for width in (narrower[0], *narrower[:-1])])
        self.features: list[torch.Tensor] = []
        blocks = [unet.mid_block, *unet.up_blocks[:-1]]
        self.hooks = [block.register_forward_hook(lambda _m, _i, out: self.features.append(out)) for block in blocks]

    def remove_hooks(self) -> None:
        """Leave the network as it was."""
        for hook in self.hooks:
            hook.remove()

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's v, and the mean squared error of what it knows about rows (0.5: nothing)."""
        self.features.clear()
        v = self.network(noisy, timestep, tokens)
        errors = []
        for head, features in zip(self.heads, self.features, strict=True):
            told = head(features).float()
            errors.append((told - half_cosines(told.shape[-2]).to(told.device)).square().mean())
        return v, torch.stack(errors).mean()


def half_cosines(n_rows: int) -> torch.Tensor:
    """1 … `N_WAVES` half cosines over the rows [shape=(N_WAVES, n_rows, 1)]."""
    rows = (torch.arange(n_rows) + 0.5) / n_rows
    return torch.cos(torch.pi * torch.arange(1, N_WAVES + 1)[:, None] * rows)[..., None]


class VisibleError:
    """The error of a prediction, where much noise is more that of what can be seen through it.

    Of waves over a picture (a mode of its Fourier transform) with a power of S over the clips, S / (S + σ²) can be told
    through noise of σ: Wiener's filter. What is far below the noise is not decided at that step, and whatever is said
    of it is forgotten on the way; but it makes nearly all of the plain error there, and so of the gradient's noise.
    So half of the error counts by this filter, scaled to the same size.

    Parameters
    ----------
    latents : Tensor [shape=(n, 4, 64, 64)]
        Some of the clips, to measure S on.
    """

    def __init__(self, latents: torch.Tensor) -> None:
        self.power = torch.fft.fft2(latents - latents.mean(dim=0), norm="ortho").abs().square().mean(dim=0)

    def weights(self, sigma: torch.Tensor) -> torch.Tensor:
        """How much each mode's error counts beside noise of `sigma` [shape=(n,)] → [shape=(n, 4, 64, 64)]."""
        variance = sigma.square()[:, None, None, None]
        seen = self.power / (self.power + variance)
        unknown = seen * variance  # the error that is left where all is Gaussian
        same_size = unknown.sum(dim=(1, 2, 3), keepdim=True) / (seen * unknown).sum(dim=(1, 2, 3), keepdim=True)
        return 1 - VISIBLE + VISIBLE * same_size * seen

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Mean squared error of predictions [shape=(n, 4, 64, 64)] by these weights."""
        off = torch.fft.fft2(prediction - target, norm="ortho").abs().square()
        return (self.weights(sigma) * off).mean()


class Batches:
    """Draws latents and captions: every class by its weight, another caption each time, turned by whole bars."""

    def __init__(
        self,
        latents: np.ndarray,
        dataset: Dataset,
        tokenizer: CLIPTokenizer,
        rng: np.random.Generator,
        favoured: Collection[str] = (),
    ) -> None:
        self.latents, self.facts, self.tokenizer, self.rng = latents, dataset.facts, tokenizer, rng
        self.indices, _ = dataset.split()
        labels = [self.facts[i]["label"] for i in self.indices]
        counts = {label: labels.count(label) for label in set(labels)}
        weights = np.array(
            [WEIGHT_OF_KIND[self.facts[i]["kind"]] / counts[self.facts[i]["label"]] for i in self.indices]
        )
        weights *= np.where([label in favoured for label in labels], FAVOUR, 1.0)
        self.probabilities = weights / weights.sum()

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [shape=(n, 4, 64, 64), float32] and tokens [shape=(n, 77)]."""
        latents, captions = [], []
        for i in self.rng.choice(self.indices, n, p=self.probabilities):
            turn = self.rng.integers(0, 64) // _columns_per_bar(self.facts[i]) * _columns_per_bar(self.facts[i])
            latents.append(np.roll(self.latents[i], turn, axis=-1))
            full, empty = self.rng.random() < FULL_CAPTIONS, self.rng.random() < EMPTY_CAPTIONS
            captions.append("" if empty else caption(self.facts[i], self.rng, full=full))
        return torch.from_numpy(np.stack(latents)).float(), tokenize(self.tokenizer, captions)


def _columns_per_bar(facts: dict) -> int:
    """Latent columns in a bar, where that is a whole number; else those of the whole clip."""
    if "bpm" not in facts:
        return 1  # rain has no bars
    n_bars = round(facts["bpm"] * CLIP_SECONDS / 60) / facts["metre"]
    return round(64 / n_bars) if n_bars in (1, 2, 4) else 64


def train_denoiser(
    latents: np.ndarray,
    dataset: Dataset,
    folder: str | Path,
    *,
    start_from: StableDiffusionPipeline | None = None,
    new_text: bool = False,
    favoured: Collection[str] = (),
    minutes: float = 85.0,
    text_minutes: float = 5.0,
    learning_rate: float = 6e-4,
    compile_network: bool | None = None,
) -> tuple[TextDenoiser, CLIPTokenizer]:
    """Train U-Net and text encoder from nothing or from a trained model, or go on after a break.

    Parameters
    ----------
    latents : np.ndarray [shape=(n, 4, 64, 64)]
    dataset : Dataset
        The facts of the same clips.
    folder : path
        For tokenizer and checkpoint.
    start_from : StableDiffusionPipeline, optional
        A model of riffling's plan. Its U-Net, text encoder and tokenizer are trained on, its autoencoder must have
        made the latents. Default: untrained ones.
    new_text : bool
        Begin with a new tokenizer and text encoder all the same.
    favoured : collection of str
        Classes to draw three times as often: those that a model to start from has not learned.
    minutes, text_minutes : float
        Time budgets, of U-Net and text encoder together and of a new text encoder before; the learning rates fall to 0
        along them.
    compile_network : bool, optional
        Let torch compile the network first, which takes two minutes and a C++ compiler. Default: where it calculates in
        half precision; there a step was then a fifth faster, in single precision half as slow again.

    Returns
    -------
    TextDenoiser, CLIPTokenizer
        The network with the running average of its weights.
    """
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}
    on = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fastest_dtype(on)
    compile_network = dtype != torch.float32 if compile_network is None else compile_network
    accelerator = Accelerator(mixed_precision=precision[dtype])
    rng = np.random.default_rng()
    torch.manual_seed(0)
    if start_from and not new_text:
        tokenizer, text_encoder = start_from.tokenizer, start_from.text_encoder
    else:
        tokenizer = _tokenizer(dataset, Path(folder) / "tokenizer")
        facts = [dataset.facts[i] for i in dataset.split()[0]]
        known = anchors_of(start_from.text_encoder, start_from.tokenizer) if start_from else None
        text_encoder = train_text_encoder(facts, tokenizer, folder, anchors=known, minutes=text_minutes)
    network = TextDenoiser(start_from.unet if start_from else new_unet(), text_encoder).train()
    network.to(memory_format=torch.channels_last)
    reader = PlaceReader(network)
    parts = [
        {"params": [*network.unet.parameters(), *reader.heads.parameters()]},
        {"params": text_encoder.parameters(), "share": TEXT_RATE, "orthogonal": False},
    ]
    optimizer = Muon(parts, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    average = EMAModel(network.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75, foreach=True)
    scheduler, batches = new_scheduler(), Batches(latents, dataset, tokenizer, rng, favoured)
    error = VisibleError(batches.draw(N_FOR_POWER)[0].to(accelerator.device))
    sigmas = (1 / scheduler.alphas_cumprod - 1).sqrt().clamp(max=STEPS["sigma_max"]).to(accelerator.device)
    running, optimizer = accelerator.prepare(torch.compile(reader) if compile_network else reader, optimizer)
    average.to(accelerator.device)

    def step(progress: float) -> torch.Tensor:
        set_learning_rate(optimizer, learning_rate * cosine(progress))
        clean, tokens = (part.to(accelerator.device) for part in batches.draw(BATCH))
        closes = rng.random() < CLOSING
        timestep = (torch.arange(BATCH) + torch.rand(BATCH)).to(clean.device) / BATCH  # one in each part
        timestep = (1000 * (timestep * CIRCULAR_SHARE if closes else timestep**NOISY)).long()
        noise = torch.randn_like(clean)
        noisy = scheduler.add_noise(clean, noise, timestep).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast(), circular_time(network) if closes else nullcontext():
            v, misplaced = running(noisy, timestep, tokens)
        loss = error(v.float(), scheduler.get_velocity(clean, noise, timestep), sigmas[timestep])
        optimizer.zero_grad()
        accelerator.backward(loss + PLACE * misplaced)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())
        return loss.detach()

    state = {"network": network, "heads": reader.heads, "optimizer": optimizer, "average": average}
    try:
        train(step, state, Path(folder) / "denoiser.pt", minutes=minutes)
    finally:
        reader.remove_hooks()
    average.copy_to(network.parameters())
    return network, tokenizer


def _tokenizer(dataset: Dataset, folder: Path) -> CLIPTokenizer:
    """The tokenizer in `folder`, or one trained on captions of all clips."""
    if not folder.exists():
        rng = np.random.default_rng(0)
        train_tokenizer(caption(facts, rng) for facts in dataset.facts for _ in range(4)).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def assemble(network: TextDenoiser, tokenizer: CLIPTokenizer, vae: AutoencoderTiny) -> StableDiffusionPipeline:
    """The whole model as diffusers' own pipeline.

    Its solver is UniPC (https://arxiv.org/abs/2302.04867). Its steps are small where little noise is left, as in
    https://arxiv.org/abs/2206.00364: from a last step as wide as the others comes a mean of all details that could be.
    """
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=network.text_encoder,
        tokenizer=tokenizer,
        unet=network.unet,
        scheduler=UniPCMultistepScheduler.from_config(new_scheduler().config, **STEPS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
