"""Train the small U-Net of lesson 10 several times in other ways: riffusion_lab/training/data/lesson_10_curves.json.

Three targets (ε, x₀, v), and v without caption dropout, three runs each with other seeds. Of each run: the error of the
clean latents that follow from its predictions, by time step, on clips it was not trained on; and how many of 48
generated clips riffling's classifier recognizes among its 49 classes, by guidance scale. One thread; about 15 minutes:

    python tools/lesson_curves.py
"""

import json

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, UniPCMultistepScheduler
from torch import Tensor

from riffusion_lab import load_pipeline
from riffusion_lab.training.classifier import classify, load_classifier
from riffusion_lab.training.denoiser import STEPS, new_scheduler
from riffusion_lab.training.lesson import FILE, load_lesson_clips
from riffusion_lab.training.optimizers import cosine_schedule, set_learning_rate

OUTPUT = FILE.with_name("lesson_10_curves.json")
N_STEPS, BATCH, LEARNING_RATE, POWER = 320, 16, 4e-3, 0.7  # as in the notebook
SEEDS = (0, 1, 2)
LEVELS = (10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990)
SCALES = (1.0, 2.0, 4.0)
N_EACH = 16  # generated clips of each prompt
EMPTY = 3  # the number of the empty prompt
CLIPS = load_lesson_clips()
KEPT = new_scheduler().alphas_cumprod


def shares(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of clip and of noise is in the mixture, each [shape=(n, 1, 1, 1)]."""
    kept = KEPT[timestep].view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


def wanted(target: str, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what the network is to predict."""
    a, b = shares(timestep)
    return {"epsilon": noise, "x0": clean, "v": a * noise - b * clean}[target]


def as_v(target: str, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Return the v that follows from a prediction."""
    a, b = shares(timestep)
    if target == "epsilon":
        return (prediction - b * noisy) / a
    return prediction if target == "v" else (a * noisy - prediction) / b


def new_unet() -> UNet2DModel:
    """The U-Net of the notebook."""
    return UNet2DModel(
        sample_size=(64, 16),
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 24, 32),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        add_attention=False,
        norm_num_groups=8,
        num_class_embeds=4,
        resnet_time_scale_shift="scale_shift",
    ).to(memory_format=torch.channels_last)


def train(target: str, dropout: float, seed: int) -> UNet2DModel:
    """One run."""
    torch.manual_seed(seed)
    unet = new_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for step in range(N_STEPS):
        set_learning_rate(optimizer, LEARNING_RATE * cosine_schedule(step / N_STEPS, warmup=0.05))
        chosen = CLIPS.training[torch.randint(len(CLIPS.training), (BATCH,), generator=generator)]
        clean, labels = CLIPS.latents[chosen], CLIPS.labels[chosen].clone()
        labels[torch.rand(BATCH, generator=generator) < dropout] = EMPTY
        place = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        timestep = (1000 * place**POWER).long().clamp(max=990 if target == "epsilon" else 999)
        noise = torch.randn(clean.shape, generator=generator)
        a, b = shares(timestep)
        prediction = unet(a * clean + b * noise, timestep, labels).sample
        F.mse_loss(prediction, wanted(target, clean, noise, timestep)).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return unet.eval()


@torch.no_grad()
def errors(unet: UNet2DModel, target: str) -> list[float]:
    """Mean squared error of the clean latents, at each time step of `LEVELS`."""
    clean, labels = CLIPS.latents[CLIPS.held_out], CLIPS.labels[CLIPS.held_out]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for level in LEVELS:
        timestep = torch.full((len(clean),), level)
        a, b = shares(timestep)
        noisy = a * clean + b * noise
        v = as_v(target, unet(noisy, timestep, labels).sample, noisy, timestep)
        found.append(float((a * noisy - b * v - clean).square().mean()))
    return found


@torch.no_grad()
def generate(unet: UNet2DModel, target: str, labels: Tensor, scale: float) -> Tensor:
    """Latents [shape=(n, 4, 64, 16)] for labels [shape=(n,)]."""
    scheduler = UniPCMultistepScheduler.from_config(new_scheduler().config, **STEPS)
    scheduler.set_timesteps(12)
    latents = torch.randn((len(labels), 4, 64, 16), generator=torch.Generator().manual_seed(0))
    both = torch.cat([torch.full_like(labels, EMPTY), labels])
    for step in scheduler.timesteps:
        timestep, noisy = step.expand(len(both)), torch.cat([latents, latents])
        v = as_v(target, unet(noisy, timestep, both).sample, noisy, timestep)
        without, with_prompt = v.chunk(2)
        latents = scheduler.step(without + scale * (with_prompt - without), step, latents).prev_sample
    return latents


@torch.no_grad()
def recognized(latents: Tensor, labels: Tensor, vae: torch.nn.Module) -> int:
    """How many of the clips riffling's classifier gives the name of their prompt."""
    classifier = load_classifier()
    pictures = [vae.decode(part).sample.mean(dim=1, keepdim=True).clamp(-1, 1) for part in latents.split(8)]
    _, answers = classify(classifier, pictures)
    names = [classifier.choices["class"][i] for i in answers["class"]]
    return sum(name == CLIPS.prompts[label] for name, label in zip(names, labels.tolist(), strict=True))


def run(target: str, dropout: float, seed: int, vae: torch.nn.Module) -> dict:
    """Train once and measure."""
    unet = train(target, dropout, seed)
    labels = torch.arange(len(CLIPS.prompts)).repeat_interleave(N_EACH)
    scales = SCALES if target == "v" else (2.0,)
    counts = {scale: recognized(generate(unet, target, labels, scale), labels, vae) for scale in scales}
    found = {"target": target, "dropout": dropout, "seed": seed, "errors": [round(e, 4) for e in errors(unet, target)]}
    found["recognized"] = {f"{scale:g}": count for scale, count in counts.items()}
    print(found, flush=True)
    return found


def main() -> None:
    """All runs."""
    torch.set_num_threads(1)
    vae = load_pipeline(device="cpu").vae
    ways = [("v", 0.1), ("v", 0.0), ("epsilon", 0.1), ("x0", 0.1)]
    runs = [run(target, dropout, seed, vae) for target, dropout in ways for seed in SEEDS]
    real = CLIPS.held_out
    content = {
        "timesteps": LEVELS,
        "n_clips": N_EACH * len(CLIPS.prompts),
        "real_recognized": recognized(CLIPS.latents[real], CLIPS.labels[real], vae),
        "n_real": len(real),
        "runs": runs,
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
