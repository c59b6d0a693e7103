"""Few steps: a student that jumps along its teacher's paths from noise to latents, in one pass a step.

A path of the teacher is the latents at each step of its solver, everything included: classifier-free guidance,
perturbed attention, the static noise, the circular last third. The student starts as a copy of the teacher's U-Net and
learns to get from any point of a path to the end of the part that the point lies in, by one step of DDIM. So it does
what progressive distillation does (https://arxiv.org/abs/2202.00512, appendix G, for guided teachers
https://arxiv.org/abs/2210.03142), but directly: its targets are the teacher's own paths, which are computed once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..clip import Clip
from ..files import write_whole
from ..generate import text_to_audio
from ..hashing import weights_hash
from ..latents import latent_size
from ..models import ModelSettings, keep_settings, load_pipeline, model_settings
from ..networks import circular_time
from ..prompts import encode_prompt, pad_to_same_length
from ..sampling import CIRCULAR_SHARE, Conditioning, draw_noise, from_noise, isolated_pipeline, scale_static_noise
from .checkpoints import HasState, weights_id
from .clip_cache import save_array
from .config import DistillConfig
from .dataset import composed_captions
from .exporting import check_target, export
from .loop import Batch, Task, generators, is_main_process, new_accelerator, on_device, only_run_in, run_loop
from .optimizers import averaged_weights
from .processes import printed_once
from .progress import Snapshot

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's names
BATCH = 8  # paths that the teacher computes at once
OPEN_EVERY = (
    3  # every third batch of paths is open: no step is circular, as for long clips and for clips that are no loops
)
HELD_OUT = 32  # paths on which the student is measured
N_PROMPTS = 4


def few_step_scheduler(teacher: StableDiffusionPipeline, num_inference_steps: int) -> EulerDiscreteScheduler:
    """A stock scheduler whose steps end where equal parts of the teacher's do.

    The teacher's noise levels are spaced as in https://arxiv.org/abs/2206.00364, equation 5: evenly in σ^(1/7). So
    every n-th of them is such a spacing as well, with a higher σ_min. Its steps are Euler's, which for v-prediction is
    DDIM.

    Parameters
    ----------
    teacher : StableDiffusionPipeline
    num_inference_steps : int
        Of the student.

    Returns
    -------
    EulerDiscreteScheduler

    Raises
    ------
    ValueError
        If the teacher's own number of steps is no multiple, or its levels are spaced otherwise.
    """
    sigmas = teacher_sigmas(teacher)
    n_steps = len(sigmas) - 1
    if not 1 < num_inference_steps < n_steps or n_steps % num_inference_steps:
        divisors = [str(n) for n in range(2, n_steps) if n_steps % n == 0]
        raise ValueError(
            f"num_inference_steps must be a divisor of the teacher's {n_steps} steps ({', '.join(divisors)}), "
            f"not {num_inference_steps}"
        )
    cuts = sigmas[:: n_steps // num_inference_steps]
    config = dict(teacher.scheduler.config) | {
        "use_karras_sigmas": True,
        "sigma_max": round(float(cuts[0]), 6),
        "sigma_min": round(float(cuts[-2]), 6),
        "timestep_spacing": "leading",  # so that the first latents are the noise itself
    }
    scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(num_inference_steps)
    if not torch.allclose(scheduler.sigmas, cuts, rtol=1e-3):
        raise ValueError(
            f"the teacher's noise levels {_rounded(cuts)} are not spaced as EulerDiscreteScheduler's, "
            f"{_rounded(scheduler.sigmas)}: give it a scheduler with use_karras_sigmas"
        )
    return scheduler


def teacher_sigmas(teacher: StableDiffusionPipeline) -> Tensor:
    """Noise levels of the teacher's recommended number of steps [shape=(steps + 1,)]; the last one is 0."""
    scheduler = copy.deepcopy(teacher.scheduler)
    scheduler.set_timesteps(model_settings(teacher).num_inference_steps)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise ValueError(
            f"the teacher's {type(scheduler).__name__} has no noise levels: give it a UniPCMultistepScheduler with "
            "use_karras_sigmas"
        )
    return sigmas.float().cpu()


def _rounded(sigmas: Tensor) -> list[float]:
    return [round(float(sigma), 3) for sigma in sigmas]


@dataclass(frozen=True)
class Paths:
    """Latents at each step of the teacher's paths, in files of `BATCH` paths each."""

    files: list[Path]
    prompts: list[str]  # of each path

    def __len__(self) -> int:
        return len(self.prompts)

    def is_open(self, i: int) -> bool:
        """Whether no step of path `i` was circular."""
        return is_open(i // BATCH)

    def latents(self, i: int, steps: Sequence[int]) -> Tensor:
        """Latents of path `i` before some steps [shape=(len(steps), 4, 64, 64), float32]; the last ones are clean."""
        path = np.load(self.files[i // BATCH], mmap_mode="r")[i % BATCH]
        return torch.from_numpy(path[list(steps)].astype(np.float32))


def is_open(batch: int) -> bool:
    """Whether the paths of a batch are open. The first ones are loops."""
    return batch % OPEN_EVERY == OPEN_EVERY - 1


def cache_paths(
    teacher: StableDiffusionPipeline,
    prompts: Sequence[str],
    folder: Path,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Paths:
    """Compute the teacher's paths; those that are in the folder already are kept.

    Parameters
    ----------
    teacher : StableDiffusionPipeline
    prompts : sequence of str
        One for each path; as many as there are whole batches of are used.
    folder : Path
        0.43 MB for each path of 12 steps.
    seed : int
        Of the noise.
    dtype : torch.dtype
        In which the networks compute. In bfloat16, on a processor that has it, riffling took half the time, and its
        paths ended 0.6 % (of the latents' norm) beside those in float32.

    Returns
    -------
    Paths

    Raises
    ------
    ValueError
        If the folder holds paths of another teacher, other prompts, or another seed or dtype.
    """
    n_batches = len(prompts) // BATCH
    prompts = list(prompts[: n_batches * BATCH])
    folder.mkdir(parents=True, exist_ok=True)
    _check_origin(folder / "paths.json", _origin(teacher, prompts, seed) | {"dtype": str(dtype)})
    files = [folder / f"paths-{number:05d}.npy" for number in range(n_batches)]
    missing = [number for number in range(n_batches) if not files[number].exists()]
    for number in tqdm(missing, desc="paths of the teacher", unit="batch", disable=not missing):
        batch = prompts[number * BATCH : (number + 1) * BATCH]
        with torch.autocast(teacher.device.type, dtype, enabled=dtype != torch.float32):
            path = teacher_path(teacher, batch, [seed, number], loop=not is_open(number))
        save_array(files[number], path.half().numpy())
    return Paths(files, prompts)


def _origin(teacher: StableDiffusionPipeline, prompts: Sequence[str], seed: int) -> dict[str, object]:
    settings = model_settings(teacher)
    return {
        "teacher": weights_hash(teacher),
        "sigmas": _rounded(teacher_sigmas(teacher)),
        "guidance_scale": settings.guidance_scale,
        "prompts": text_hash(prompts),
        "seed": seed,
    }


def text_hash(texts: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of some texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _check_origin(file: Path, origin: Mapping[str, object]) -> None:
    """Write where paths come from, or raise a ValueError if those that are there come from elsewhere."""
    if not file.exists():
        write_whole(file, (json.dumps(origin, indent=1) + "\n").encode())
        return
    found = json.loads(file.read_text())
    if differing := [name for name in origin if found.get(name) != origin[name]]:
        raise ValueError(
            f"{file.parent} holds paths that differ in {', '.join(differing)}: use another folder, or delete that one"
        )


@torch.no_grad()
def teacher_path(
    teacher: StableDiffusionPipeline, prompts: Sequence[str], seed: Sequence[int], *, loop: bool
) -> Tensor:
    """Latents before each step of the teacher, and after the last [shape=(n, steps + 1, 4, 64, 64), float32]."""
    settings = model_settings(teacher)
    generator = generators(seed[0], "noise of the paths", seed[1])[1]
    empty = encode_prompt(teacher, "")
    n_columns = latent_size(teacher)[1]
    batch = [
        Conditioning(
            prompt_embeds=encode_prompt(teacher, prompt),
            negative_prompt_embeds=empty,
            noise=draw_noise(teacher, generator, n_columns),
            generator=generator,
            guidance_scale=settings.guidance_scale,
        )
        for prompt in prompts
    ]
    noise = torch.cat([conditioning.noise for conditioning in batch])
    latents = [scale_static_noise(teacher, noise).cpu()]

    def keep(_pipe: object, _step: int, _timestep: object, tensors: Mapping[str, Tensor]) -> None:
        latents.append(tensors["latents"].cpu())

    from_noise(
        isolated_pipeline(teacher),
        batch,
        num_inference_steps=settings.num_inference_steps,
        loop=loop,
        callback=keep,
    )
    return torch.stack(latents, dim=1).float()


class DistillationTask(Task):
    """Trains a U-Net to predict the v by which one step of DDIM leads along a path to the end of its part."""

    name = "distill"
    network: UNet2DConditionModel

    def __init__(self, teacher: StableDiffusionPipeline, paths: Paths, config: DistillConfig) -> None:
        self.teacher, self.paths, self.config = teacher, paths, config
        self.scheduler = few_step_scheduler(teacher, config.num_inference_steps)
        self.sigmas = teacher_sigmas(teacher)
        self.timesteps = timesteps_of(self.scheduler, self.sigmas)
        self.part = self.n_steps // config.num_inference_steps  # how many of the teacher's steps a student's one spans
        self.settings = few_step_settings(teacher, config.num_inference_steps)
        self.network = copy.deepcopy(teacher.unet).float().cpu().train().requires_grad_(True)
        self.network.to(memory_format=torch.channels_last)
        self.vae = copy.deepcopy(teacher.vae).float().cpu()
        self.text_encoder = copy.deepcopy(teacher.text_encoder).float().cpu()
        self.data_id = f"{weights_id(teacher.unet)}-{text_hash(paths.prompts)[:16]}"
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.average = EMAModel(
            self.network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True
        )
        n_training = len(paths) - HELD_OUT
        self.loops = np.array([i for i in range(n_training) if not paths.is_open(i)])
        self.open = np.array([i for i in range(n_training) if paths.is_open(i)])

    def state(self) -> Mapping[str, HasState]:
        """The weights and their running average."""
        return {"network": self.network, "average": self.average}

    def to(self, device: torch.device) -> None:
        """Move the average, and what snapshots need."""
        self.average.to(device)
        self.vae.to(device)
        self.text_encoder.to(device)

    def after_step(self) -> None:
        """Update the running average."""
        self.average.step(self.network.parameters())

    @property
    def n_steps(self) -> int:
        """Of the teacher."""
        return len(self.sigmas) - 1

    def is_late(self, step: int) -> bool:
        """Whether the student's step to which this step of the teacher belongs is circular in loops."""
        start = step // self.part * self.part
        return 1 - start / self.n_steps <= CIRCULAR_SHARE

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:  # noqa: ARG002 - no noise
        """Points of paths and where they lead: all early ones, or all late ones of loops, or of open paths."""
        is_late = bool(rng.random() < self.config.late_share)
        both = np.concatenate([self.loops, self.open])
        is_circular = is_late and bool(rng.random() < len(self.loops) / len(both))
        candidates = (self.loops if is_circular else self.open) if is_late else both
        steps = [step for step in range(self.n_steps) if self.is_late(step) == is_late]
        starts = [step for step in steps if step % self.part == 0]
        points = []
        for i in rng.choice(candidates, self.config.batch_size):
            is_start = rng.random() < self.config.start_share
            points.append((int(i), int(rng.choice(starts if is_start else steps))))
        return self._batch(points, is_circular=is_circular)

    def _batch(self, points: Sequence[tuple[int, int]], *, is_circular: bool) -> Batch:
        """Latents of points (path, step), the v that leads on, and embeddings."""
        latents, targets = [], []
        for i, step in points:
            end = (step // self.part + 1) * self.part
            here, there = self.paths.latents(i, [step, end])
            latents.append(here)
            targets.append(velocity_between(here, there, self.sigmas[step], self.sigmas[end]))
        with torch.no_grad():
            prompt_embeds = [encode_prompt(self.teacher, self.paths.prompts[i]) for i, _ in points]
        return {
            "latents": torch.stack(latents),
            "target": torch.stack(targets),
            "timestep": torch.stack([self.timesteps[step] for _, step in points]),
            "prompt_embeds": torch.cat(pad_to_same_length(self.teacher, prompt_embeds)).float().cpu(),
            "is_circular": is_circular,
        }

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of v."""
        return {"loss": self._error(network, batch).mean()}

    def _error(self, network: nn.Module, batch: Batch) -> Tensor:
        """Squared error of v of each example [shape=(n,)]."""
        latents = batch["latents"].contiguous(memory_format=torch.channels_last)
        with circular_time(self.network) if batch["is_circular"] else nullcontext():
            v = network(latents, batch["timestep"], batch["prompt_embeds"], return_dict=False)[0]
        return (v.float() - batch["target"]).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Error of v at each of the teacher's steps on held-out paths, and clips from four prompts."""
        with averaged_weights(self.average, self.network):
            return Snapshot(noise_loss=self.held_out_errors(), clips=self._clips())

    @torch.no_grad()
    def held_out_errors(self) -> dict[int, float]:
        """Error of v, relative to its variance, on held-out loops; by the time step from which it leads."""
        indices = range(len(self.paths) - HELD_OUT, len(self.paths))
        loops = [i for i in indices if not self.paths.is_open(i)]
        errors = {}
        for step in range(self.n_steps):
            batch = on_device(
                self._batch([(i, step) for i in loops], is_circular=self.is_late(step)), self.network.device
            )
            error = self._error(self.network, batch).mean() / batch["target"].var()
            errors[round(float(self.timesteps[step]))] = float(error)
        return errors

    def _clips(self) -> list[Clip]:
        pipe = self.assemble()
        pipe.set_progress_bar_config(disable=True)
        prompts = self.config.sample_prompts or tuple(self.paths.prompts[-N_PROMPTS:])
        return text_to_audio(pipe, list(prompts), seed=list(range(len(prompts))))

    def assemble(self) -> StableDiffusionPipeline:
        """The student as diffusers' own pipeline; all but the U-Net is the teacher's."""
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.teacher.tokenizer,
            unet=self.network,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        keep_settings(pipe, self.name, self.settings)
        return pipe


def velocity_between(here: Tensor, there: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """The v with which one step of DDIM leads from latents at noise level σ to latents at a lower one.

    With α = 1 / √(1 + σ²), latents are α (x₀ + σ ε), and v = α ε − α σ x₀ (https://arxiv.org/abs/2202.00512). A step
    of DDIM keeps ε and x₀, so both follow from two points of its line.

    Parameters
    ----------
    here, there : Tensor
        Latents whose variance is that of the noise, as the teacher's scheduler has them.
    sigma, next_sigma : Tensor
        Scalars, σ > σ' ≥ 0.

    Returns
    -------
    Tensor [like here]
    """
    alpha, next_alpha = 1 / (1 + sigma**2).sqrt(), 1 / (1 + next_sigma**2).sqrt()
    scaled, next_scaled = here / alpha, there / next_alpha  # x₀ + σ ε, x₀ + σ' ε
    epsilon = (scaled - next_scaled) / (sigma - next_sigma)
    x0 = scaled - sigma * epsilon
    return alpha * epsilon - alpha * sigma * x0


def timesteps_of(scheduler: EulerDiscreteScheduler, sigmas: Tensor) -> Tensor:
    """The time steps that a scheduler passes to the network at these noise levels; the last level is 0 and has none."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    return scheduler.timesteps


def few_step_settings(teacher: StableDiffusionPipeline, num_inference_steps: int) -> ModelSettings:
    """Recommended settings of the student: guidance and perturbed attention are inside."""
    return replace(
        model_settings(teacher),
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
        pag_applied_layers=(),
        start_sigmas=tuple(round(float(sigma), 6) for sigma in teacher_sigmas(teacher)[:-1]),
    )


@printed_once()
def distill(
    teacher: StableDiffusionPipeline,
    folder: str | Path,
    config: DistillConfig | None = None,
    *,
    prompts: Sequence[str] | None = None,
) -> StableDiffusionPipeline:
    """Train a model of few steps from one of riffling's kind, or resume an interrupted run.

    First the teacher's paths are computed, then a copy of its U-Net learns to follow them in a few long steps. Call it
    again with the same arguments to resume either.

    Parameters
    ----------
    teacher : StableDiffusionPipeline
        Its recommended number of steps, guidance scale and so on are used.
    folder : path
        For ``paths``, the checkpoint, ``report.html``, and ``model``: the result.
    config : DistillConfig, optional
    prompts : sequence of str, optional
        For the paths; repeated, or left out, until there are ``config.n_paths``. Default: captions of the composer.

    Returns
    -------
    StableDiffusionPipeline
        The student, on the CPU. ``guidance_scale`` is 1, one pass a step.

    Raises
    ------
    ValueError
        If the teacher does not predict v, its steps cannot be divided so, or the folder holds something else.
    FloatingPointError, OSError, KeyboardInterrupt
        See `run_loop`.
    """
    config = config or DistillConfig()
    folder = Path(folder)
    check_target(folder)
    _check_teacher(teacher)
    few_step_scheduler(teacher, config.num_inference_steps)  # raises an error now if there is none
    prompts = path_prompts(config, prompts)
    dtype = DTYPES[new_accelerator(config).mixed_precision]
    folder.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first(), only_run_in(folder) if is_main_process() else nullcontext():
        paths = cache_paths(teacher, prompts, folder / "paths", config.seed, dtype=dtype)
    task = DistillationTask(teacher, paths, config)
    run_loop(task, config, folder)
    task.average.copy_to(task.network.parameters())
    return _save_model(task, folder / "model")


def _check_teacher(teacher: StableDiffusionPipeline) -> None:
    prediction_type = teacher.scheduler.config.get("prediction_type")
    if prediction_type != "v_prediction":
        raise ValueError(f"the teacher predicts {prediction_type!r}: distillation is for models that predict v")


def path_prompts(config: DistillConfig, prompts: Sequence[str] | None) -> list[str]:
    """A prompt for each path, some of them empty."""
    if prompts is None:
        prompts = composed_captions(config.n_paths, config.seed)
    if not prompts:
        raise ValueError("prompts is empty: pass some, or None for captions of the composer")
    rng, _ = generators(config.seed, "prompts of the paths", 0)
    return ["" if rng.random() < config.caption_dropout else prompts[i % len(prompts)] for i in range(config.n_paths)]


def _save_model(task: DistillationTask, folder: Path) -> StableDiffusionPipeline:
    task.network.eval().cpu().to(memory_format=torch.contiguous_format)
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            export(task.assemble(), folder, settings=task.settings, dtype=torch.float32, overwrite=True)
    return load_pipeline(folder, device="cpu")
