"""The denoiser: a U-Net and its text encoder, trained to turn noise into latents that fit a caption.

A U-Net of Stable Diffusion's kind with narrower layers, trained on v-prediction (https://arxiv.org/abs/2202.00512)
with a schedule that ends in pure noise (https://arxiv.org/abs/2305.08891). The text encoder has been trained on
captions before (`text`), and is trained on at a tenth of the U-Net's learning rate. Besides cross-attention, the
pooled text is added to the time embedding of every layer (diffusers' `addition_embed_type="text"`), since timbre
concerns every layer. How far apart partials are depends on their frequency, but a convolution cannot tell at which
frequency it is, except near the edges of the picture: so the network is trained to find out (`PositionProbe`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..clip import Clip
from ..generate import text_to_audio
from ..models import keep_settings, load_pipeline
from ..networks import circular_time
from ..sampling import CIRCULAR_SHARE
from .autoencoder import encode_dataset, measured_indices, training_indices
from .checkpoints import HasState, data_id, load_checkpoint
from .config import TextEncoderConfig, TrainConfig
from .dataset import Dataset
from .exporting import check_target, export, is_composed, settings_for
from .loop import CHECKPOINT, Batch, Task, generators, is_main_process, new_accelerator, only_run_in, run_loop, seeded
from .optimizers import MuonAdamW, averaged_weights
from .processes import printed_once
from .progress import Snapshot
from .text import WIDTH, label_embeddings, tokenize, train_text_encoder, train_tokenizer

WIDTHS = (48, 96, 192, 192)
FAVOUR = 3.0  # how many times as often `favoured` labels are drawn
N_WAVES = 16  # half cosines over frequency by which a position is described; the fastest turns in 4 rows of 64
STEPS = {"use_karras_sigmas": True, "sigma_max": 40.0, "sigma_min": 0.05}  # from almost pure noise to almost none
N_FOR_POWER = 1024  # clips on which the latents' spectrum is measured
N_TIMESTEPS = 1000
NOISE_LEVELS = (30, 150, 300, 450, 600, 750, 870, 990)  # time steps at which a snapshot measures the loss
N_MEASURED = 16  # held-out clips for that
N_PROMPTS = 4


def new_unet(widths: tuple[int, ...] = WIDTHS, *, text_width: int = WIDTH) -> UNet2DConditionModel:
    """An untrained U-Net with `widths` channels at its four levels; riffling's has 17.6 M parameters."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
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

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Latents [shape=(n, 4, 64, 64)], time steps [shape=(n,)], tokens [shape=(n, 77)] → v [as the latents]."""
        prompt_embeds = self.text_encoder(tokens).last_hidden_state
        v: Tensor = self.unet(noisy, timestep, prompt_embeds).sample
        return v


class PositionProbe(nn.Module):
    """Predicts from a U-Net's features in which row they are; its error trains the U-Net to represent that.

    Convolutions can infer their position from the zeros beyond the edges (https://arxiv.org/abs/2001.08248, whose
    readout this is), but have little reason to begin, since it only pays once it is precise. So the middle block and
    all up blocks but the last are asked for half cosines over the rows, 1 to `N_WAVES` to a picture's height. The probe
    is not part of the model.
    """

    def __init__(self, network: TextDenoiser) -> None:
        super().__init__()
        self.network = network
        unet = network.unet
        widths = unet.config.block_out_channels[::-1]
        self.heads = nn.ModuleList([nn.Conv2d(width, N_WAVES, 1) for width in (widths[0], *widths[:-1])])
        self.features: list[Tensor] = []
        blocks = [unet.mid_block, *unet.up_blocks[:-1]]
        self.hooks = [block.register_forward_hook(self._keep) for block in blocks]

    def _keep(self, _block: nn.Module, _inputs: Any, features: Tensor) -> None:
        """Keep a block's features, but not those of the many steps in which a snapshot generates clips."""
        if self.network.training:
            self.features.append(features)

    def remove_hooks(self) -> None:
        """Leave the network as it was."""
        for hook in self.hooks:
            hook.remove()

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The network's v, and the mean squared error of the predicted positions (0.5: no information)."""
        self.features.clear()
        v = self.network(noisy, timestep, tokens)
        errors = []
        for head, features in zip(self.heads, self.features, strict=True):
            predicted = head(features).float()
            target = half_cosines(predicted.shape[-2]).to(predicted.device)
            errors.append((predicted - target).square().mean())
        return v, torch.stack(errors).mean()


def half_cosines(n_rows: int) -> Tensor:
    """1 to `N_WAVES` half cosines over the rows [shape=(N_WAVES, n_rows, 1)]."""
    rows = (torch.arange(n_rows) + 0.5) / n_rows
    return torch.cos(torch.pi * torch.arange(1, N_WAVES + 1)[:, None] * rows)[..., None]


class VisibleError:
    """The error of a prediction, with more weight on what can be seen through the noise.

    Of a mode of the Fourier transform over a picture whose power over the clips is S, the share S / (S + σ²) can be
    told through noise of σ: Wiener's filter. What is far below the noise is not decided at that step, and whatever is
    predicted for it is forgotten on the way; but it makes nearly all of the plain error there, and so of the gradient's
    noise. So a share of the error counts by this filter, scaled to the same size.

    Parameters
    ----------
    latents : Tensor [shape=(n, 4, 64, 64)]
        Some of the clips, to measure S on.
    share : float
        Of the error that is weighted so; the rest counts alike.
    """

    def __init__(self, latents: Tensor, share: float = 0.5) -> None:
        power = torch.fft.fft2(latents - latents.mean(dim=0), norm="ortho").abs().square().mean(dim=0)
        self.power = power.clamp(min=1e-6)  # of a single clip it is 0
        self.share = share

    def weights(self, sigma: Tensor) -> Tensor:
        """Weight of each mode's error beside noise of `sigma` [shape=(n,)] → [shape=(n, 4, 64, 64)]."""
        variance = sigma.square()[:, None, None, None]
        visible = self.power / (self.power + variance)
        unknown = visible * variance  # the error that is left where all is Gaussian
        same_size = unknown.sum(dim=(1, 2, 3), keepdim=True) / (visible * unknown).sum(dim=(1, 2, 3), keepdim=True)
        return 1 - self.share + self.share * same_size * visible

    def __call__(self, prediction: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared error of predictions [shape=(n, 4, 64, 64)] by these weights."""
        squared = torch.fft.fft2(prediction - target, norm="ortho").abs().square()
        return (self.weights(sigma) * squared).mean()


class ClipSampler:
    """Draws latents and captions: classes by their weights, new captions each time, loops rolled by whole bars."""

    def __init__(self, latents: np.ndarray, dataset: Dataset, tokenizer: CLIPTokenizer, config: TrainConfig) -> None:
        self.latents, self.dataset, self.tokenizer, self.config = latents, dataset, tokenizer, config
        self.indices = training_indices(dataset)
        self.columns_per_bar = [dataset.columns_per_bar(int(i)) for i in self.indices]
        self.probabilities = self._probabilities()
        is_loop = np.array([columns is not None for columns in self.columns_per_bar])
        self.loop_probabilities = self.probabilities * is_loop
        self.has_loops = bool(self.loop_probabilities.sum() > 0)
        if self.has_loops:
            self.loop_probabilities /= self.loop_probabilities.sum()

    def _probabilities(self) -> np.ndarray:
        labels = [self.dataset.label(int(i)) for i in self.indices]
        counts = {label: labels.count(label) for label in set(labels)}
        kinds = [self.dataset.facts[i].get("kind") for i in self.indices]
        weights = np.array(
            [self.config.kind_weights.get(kind, 1.0) / counts[label] for kind, label in zip(kinds, labels, strict=True)]
        )
        weights *= np.where([label in self.config.favoured for label in labels], FAVOUR, 1.0)
        if weights.sum() == 0:
            raise ValueError(f"kind_weights leave no clip to draw: {self.config.kind_weights}")
        return weights / weights.sum()

    def draw(self, n: int, rng: np.random.Generator, *, loops_only: bool = False) -> tuple[Tensor, Tensor]:
        """Latents [shape=(n, 4, 64, 64), float32] and tokens [shape=(n, 77)]."""
        probabilities = self.loop_probabilities if loops_only else self.probabilities
        latents, captions = [], []
        for place in rng.choice(len(self.indices), n, p=probabilities):
            latents.append(self._rolled(int(place), rng))
            captions.append(self._caption(int(self.indices[place]), rng))
        return torch.from_numpy(np.stack(latents)).float(), tokenize(self.tokenizer, captions)

    def _rolled(self, place: int, rng: np.random.Generator) -> np.ndarray:
        latents: np.ndarray = self.latents[self.indices[place]]
        n_columns = latents.shape[-1]
        columns = self.columns_per_bar[place] or n_columns
        return np.roll(latents, rng.integers(0, n_columns) // columns * columns, axis=-1)

    def _caption(self, i: int, rng: np.random.Generator) -> str:
        full = bool(rng.random() < self.config.full_captions)
        is_empty = rng.random() < self.config.caption_dropout
        return "" if is_empty else self.dataset.caption(i, rng, full=full)


class DenoiserTask(Task):
    """Trains a `TextDenoiser` on latents and captions; the model is a running average of its weights."""

    name = "denoiser"
    network: PositionProbe

    def __init__(
        self,
        denoiser: TextDenoiser,
        tokenizer: CLIPTokenizer,
        dataset: Dataset,
        config: TrainConfig,
        *,
        vae: AutoencoderTiny,
        latents: np.ndarray,
    ) -> None:
        self.denoiser, self.tokenizer, self.vae, self.dataset, self.config = denoiser, tokenizer, vae, dataset, config
        self.data_id = data_id(dataset, denoiser, vae)
        self.sampler = ClipSampler(latents, dataset, tokenizer, config)
        self.settings = settings_for(dataset)
        self.scheduler = new_scheduler()
        self.sigmas = (1 / self.scheduler.alphas_cumprod - 1).sqrt().clamp(max=STEPS["sigma_max"])
        rng, _ = generators(config.seed, "power of the latents", 0)
        self.error = VisibleError(self.sampler.draw(N_FOR_POWER, rng)[0], config.visible_share)
        denoiser.train().to(memory_format=torch.channels_last)
        with seeded(config.seed):
            self.network = PositionProbe(denoiser)
        groups: list[dict[str, Any]] = [
            {"params": [*denoiser.unet.parameters(), *self.network.heads.parameters()]},
            {"params": denoiser.text_encoder.parameters(), "share": config.text_learning_rate, "orthogonal": False},
        ]
        self.optimizer = MuonAdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.99))
        self.average = EMAModel(
            denoiser.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True
        )

    def state(self) -> Mapping[str, HasState]:
        """The weights, the probe's, and the running average."""
        return {"network": self.denoiser, "heads": self.network.heads, "average": self.average}

    def clipped_parameters(self) -> list[nn.Parameter]:
        """The model's, without the probe's."""
        return list(self.denoiser.parameters())

    def to(self, device: torch.device) -> None:
        """Move the average and what the loss needs."""
        self.average.to(device)
        self.error.power = self.error.power.to(device)
        self.sigmas = self.sigmas.to(device)
        self.vae.to(device)

    def after_step(self) -> None:
        """Update the running average."""
        self.average.step(self.denoiser.parameters())

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        """Latents, captions, noise, and a time step from each equal part of their distribution."""
        n = self.config.batch_size
        is_circular = self.sampler.has_loops and bool(rng.random() < self.config.circular_share)
        clean, tokens = self.sampler.draw(n, rng, loops_only=is_circular)
        position = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # one in each of n equal parts
        position = position * CIRCULAR_SHARE if is_circular else position**self.config.timestep_power
        return {
            "clean": clean,
            "tokens": tokens,
            "timestep": (N_TIMESTEPS * position).long().clamp(max=N_TIMESTEPS - 1),
            "noise": torch.randn(clean.shape, generator=generator),
            "is_circular": is_circular,
        }

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Error of v, and of the predicted positions."""
        clean, noise, timestep = batch["clean"], batch["noise"], batch["timestep"]
        noisy = self.scheduler.add_noise(clean, noise, timestep).contiguous(memory_format=torch.channels_last)
        with circular_time(self.denoiser) if batch["is_circular"] else nullcontext():
            v, position_error = network(noisy, timestep, batch["tokens"])
        target = self.scheduler.get_velocity(clean, noise, timestep)
        error = self.error(v.float(), target, self.sigmas[timestep])
        return {"loss": error, "position": self.config.position_weight * position_error}

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Loss by noise level on held-out clips, and clips from four prompts."""
        indices, measured_on = measured_indices(self.dataset, N_MEASURED)
        with averaged_weights(self.average, self.denoiser):
            return Snapshot(noise_loss=self._noise_loss(indices), measured_on=measured_on, clips=self._clips())

    def _noise_loss(self, indices: np.ndarray) -> dict[int, float]:
        """Loss at each of `NOISE_LEVELS`, on clips [shape=(n,)], captions and noise that are always the same."""
        rng, generator = generators(self.config.seed, "measured clips", 0)
        captions = [self.dataset.caption(int(i), rng, full=True) for i in indices]
        tokens = tokenize(self.tokenizer, captions).to(self.sigmas.device)
        clean = torch.from_numpy(np.asarray(self.sampler.latents[indices])).float().to(self.sigmas.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        losses = {}
        for level in NOISE_LEVELS:
            timestep = torch.full((len(clean),), level, device=clean.device)
            v = self.denoiser(self.scheduler.add_noise(clean, noise, timestep), timestep, tokens)
            target = self.scheduler.get_velocity(clean, noise, timestep)
            losses[level] = float(self.error(v.float(), target, self.sigmas[timestep]))
        return losses

    def _clips(self) -> list[Clip]:
        pipe = assemble(self.denoiser, self.tokenizer, self.vae)
        keep_settings(pipe, self.name, self.settings)
        pipe.set_progress_bar_config(disable=True)
        prompts = self.config.sample_prompts or held_out_prompts(self.dataset)
        return text_to_audio(pipe, list(prompts), seed=list(range(len(prompts))))


def held_out_prompts(dataset: Dataset) -> tuple[str, ...]:
    """Full captions of four held-out clips (of others if none is held out).

    Of different labels, or where there are none, of different captions in the files, as far as there are.
    """
    indices, _ = measured_indices(dataset, len(dataset))
    order = np.random.default_rng(0).permutation(indices)
    names = {int(i): dataset.label(int(i)) or dataset.facts[i].get("caption", f"clip {i}") for i in order}
    first_of_name = {name: i for i, name in reversed(names.items())}
    chosen = [*reversed(first_of_name.values()), *(i for i in names if i not in first_of_name.values())]
    rng = np.random.default_rng(0)
    return tuple(dataset.caption(i, rng, full=True) for i in chosen[:N_PROMPTS])


@printed_once()
def train(
    dataset: Dataset,
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    vae: AutoencoderTiny | None = None,
    start_from: StableDiffusionPipeline | None = None,
) -> StableDiffusionPipeline:
    """Train a U-Net and its text encoder on the clips and captions of a data set, or resume an interrupted run.

    Call it again with the same arguments to resume; with a fixed number of steps, the weights are then the same to the
    bit as those of a run without a break. Ctrl-C stops after a step and saves. While it runs, ``report.html`` in the
    folder shows the loss and makes four prompts heard; in a notebook a display shows the same.

    Parameters
    ----------
    dataset : Dataset
        Any, with any captions.
    folder : path
        For the checkpoint, ``report.html``, ``metrics.jsonl``, ``latents.npy``, and ``model``: the result, which
        ``load_pipeline(folder / "model")`` loads.
    config : TrainConfig, optional
        Its number of steps is the budget. The defaults are riffling's.
    vae : AutoencoderTiny, optional
        Encodes the clips, and is not trained. Default: that of `start_from`, or riffling's.
    start_from : StableDiffusionPipeline, optional
        A model of riffling's kind; copies of its U-Net, text encoder and tokenizer are trained on. Default: an
        untrained U-Net; a new tokenizer and text encoder if the clips are the composer's, else copies of riffling's.

    Returns
    -------
    StableDiffusionPipeline
        The model, with the running average of the weights, on the CPU.

    Raises
    ------
    TypeError
        If a path is passed instead of what it holds, or the settings are no `TrainConfig`.
    ValueError
        If settings contradict each other, the data set has no clips to train on, or the folder holds a run with other
        settings or data.
    FloatingPointError, OSError, KeyboardInterrupt
        See `run_loop`.
    """
    config = config or TrainConfig()
    folder = Path(folder)
    check_target(folder)
    _check_arguments(dataset, config, start_from)
    _check_start(start_from, config)
    base = start_from or load_pipeline("riffling", device="cpu")
    load_checkpoint(folder / CHECKPOINT, config, data_id(dataset))  # refuses others before a text encoder is trained
    new_accelerator(config)  # refuses a device or precision that is not there, and begins to work with other processes
    vae = copy.deepcopy(vae or base.vae).float().cpu().eval()
    denoiser, tokenizer = _first_denoiser(dataset, folder, config, start_from, base)
    load_checkpoint(folder / CHECKPOINT, config, data_id(dataset, denoiser, vae))  # refuses others before
    latents = _encode(vae, dataset, folder)  # those in the folder are overwritten
    task = DenoiserTask(denoiser, tokenizer, dataset, config, vae=vae, latents=latents)
    try:
        run_loop(task, config, folder)
    finally:
        task.network.remove_hooks()
    task.average.copy_to(denoiser.parameters())
    return _save_model(task, folder / "model")


def _encode(vae: AutoencoderTiny, dataset: Dataset, folder: Path) -> np.ndarray:
    """Latents of all clips, in the folder; not while another process trains there, which reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first(), only_run_in(folder) if is_main_process() else nullcontext():
        return encode_dataset(vae, dataset, folder / "latents.npy")


def _check_arguments(dataset: object, config: object, start_from: object) -> None:
    """Raise a TypeError for a path instead of what is in it, or other settings than those of this stage."""
    if isinstance(dataset, (str, os.PathLike)):
        raise TypeError(f"dataset is the path {str(dataset)!r}: pass Dataset.load({str(dataset)!r})")
    if isinstance(start_from, (str, os.PathLike)):
        raise TypeError(f"start_from is {str(start_from)!r}: pass load_pipeline({str(start_from)!r})")
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config must be a TrainConfig, not {config!r}")


def _check_start(start_from: StableDiffusionPipeline | None, config: TrainConfig) -> None:
    """Raise a ValueError if a model is not of riffling's kind, or is to have other widths."""
    if start_from is None:
        return
    prediction_type = start_from.scheduler.config.get("prediction_type")
    if prediction_type != "v_prediction":
        raise ValueError(
            f"start_from predicts {prediction_type!r}, not 'v_prediction' as riffling does: this training is for "
            "models of riffling's kind"
        )
    if not isinstance(start_from.vae, AutoencoderTiny):
        raise ValueError(
            f"start_from has an {type(start_from.vae).__name__}, not an AutoencoderTiny as riffling has: this training "
            "is for models of riffling's kind"
        )
    widths = tuple(start_from.unet.config.block_out_channels)
    if config.widths not in (None, widths):
        raise ValueError(f"widths {config.widths} differ from those of start_from, {widths}: leave widths out")


def _first_denoiser(
    dataset: Dataset,
    folder: Path,
    config: TrainConfig,
    start_from: StableDiffusionPipeline | None,
    base: StableDiffusionPipeline,
) -> tuple[TextDenoiser, CLIPTokenizer]:
    """The networks as they are before the first step, and the tokenizer."""
    if config.new_text_encoder and not is_composed(dataset):
        raise ValueError(
            "new_text_encoder needs the facts of the composer's clips, which this data set does not have: leave it "
            "out, so that the text encoder of start_from, or riffling's, is trained on"
        )
    if config.new_text_encoder or (start_from is None and is_composed(dataset)):
        tokenizer = _tokenizer(dataset, folder / "tokenizer")
        anchors = label_embeddings(start_from.text_encoder, start_from.tokenizer) if start_from else None
        text_encoder = train_text_encoder(
            dataset, tokenizer, folder / "text_encoder", _text_config(config), anchors=anchors
        )
    else:
        tokenizer = base.tokenizer
        text_encoder = copy.deepcopy(base.text_encoder).float().cpu()
    if start_from is not None:
        unet = copy.deepcopy(start_from.unet).float().cpu()
    else:
        with seeded(config.seed):
            unet = new_unet(config.widths or WIDTHS, text_width=text_encoder.config.hidden_size)
    return TextDenoiser(unet, text_encoder), tokenizer


def _text_config(config: TrainConfig) -> TextEncoderConfig:
    return TextEncoderConfig(
        steps=config.text_steps,
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        save_every_s=config.save_every_s,
    )


def _tokenizer(dataset: Dataset, folder: Path) -> CLIPTokenizer:
    """The tokenizer in a folder, or one trained on captions of all clips."""
    with PartialState().main_process_first():
        if not folder.exists():
            rng = np.random.default_rng(0)
            captions = (dataset.caption(i, rng) for i in range(len(dataset)) for _ in range(4))
            temporary = folder.with_name(f".{folder.name}.part")
            train_tokenizer(captions).save_pretrained(temporary)
            temporary.rename(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def _save_model(task: DenoiserTask, folder: Path) -> StableDiffusionPipeline:
    denoiser = task.denoiser.eval().cpu().to(memory_format=torch.contiguous_format)
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            pipe = assemble(denoiser, task.tokenizer, task.vae.cpu())
            export(pipe, folder, settings=task.settings, dtype=torch.float32, overwrite=True)
    return load_pipeline(folder, device="cpu")


def assemble(denoiser: TextDenoiser, tokenizer: CLIPTokenizer, vae: AutoencoderTiny) -> StableDiffusionPipeline:
    """The whole model as diffusers' own pipeline.

    Its solver is UniPC (https://arxiv.org/abs/2302.04867). Its steps are small where little noise is left, as in
    https://arxiv.org/abs/2206.00364: a last step as wide as the others gives the mean of all plausible details.
    """
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=UniPCMultistepScheduler.from_config(new_scheduler().config, **STEPS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
