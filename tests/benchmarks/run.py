"""How fast, beside the original's way: ``python tests/benchmarks/run.py``. Prints tables in Markdown; takes 15 minutes.

Ratios come from paired runs: both ways after one another, on the same input, several times, warmed up. Nothing else
should be running. Nothing here is asserted, for times differ from machine to machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import numpy as np
import psutil
import soundfile
import torch
from diffusers import DDIMScheduler
from nbclient import NotebookClient

from riffusion_lab import Clip, Prompt, interpolate, load_pipeline, text_to_audio
from riffusion_lab.hashing import weights_hash
from riffusion_lab.image import image_from_mel, mel_from_image
from riffusion_lab.latents import decode, encode
from riffusion_lab.params import PARAMS
from riffusion_lab.phase import PhaseStream, spectral_convergence, waveform_from_mel
from riffusion_lab.prompts import encode_prompt
from riffusion_lab.seed_clips import SEED_CLIPS, seed_clip
from riffusion_lab.spectrogram import mel_from_waveform
from riffusion_lab.training import Dataset, TrainConfig, train

ROOT = Path(__file__).parents[2]
CLIP_S = 5.12
METHODS = ("riffusion", "fast", "best")


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that `work` takes, and what it gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def dry_sound(seed: int) -> Clip:
    """Plucked harmonic tones and clicks, without any reverberation."""
    rng, rate = np.random.default_rng(seed), PARAMS.sample_rate
    n_samples = round(CLIP_S * rate)
    sound = np.zeros(n_samples)
    for k in range(12):
        start = k * n_samples // 12
        since = np.arange(n_samples - start) / rate
        pitch = 55 * 2 ** (rng.integers(12, 48) / 12)
        for harmonic in (h for h in range(1, 9) if h * pitch < 9_500):
            tone = np.sin(2 * np.pi * (harmonic * pitch * since + rng.random()))
            sound[start:] += tone * np.exp(-(2 + harmonic) * since) / harmonic
        if k % 3 == 0:
            sound[start:] += 0.5 * rng.standard_normal(len(since)) * np.exp(-60 * since)
    return Clip.from_audio(0.3 * sound / np.abs(sound).max(), rate)


def picture_psnr(waveform: torch.Tensor, clip: Clip) -> float:
    """PSNR in dB of the picture of a reconstructed sound, against the clip's own."""
    mel = mel_from_waveform(waveform, PARAMS)
    old, new = (np.asarray(image.convert("L"), float) for image in (clip.image, image_from_mel(mel, PARAMS)[0]))
    return 10 * np.log10(255**2 / np.square(new - old).mean())


def cut_open(clip: Clip) -> Clip:
    """Cut 5.12 s out of a repeated loop, in the middle of its notes, as a clip of a song is."""
    return Clip.from_audio(np.tile(clip.waveform, 2)[:, 60_000 : 60_000 + clip.waveform.shape[1]], PARAMS.sample_rate)


def benchmark_phase() -> None:
    """Picture → waveform, by each method. Pictures of open sounds are those that Riffusion's own tool draws."""
    groups = {
        "rendered music, cut out": [cut_open(seed_clip(name)) for name in SEED_CLIPS],
        "dry sounds": [dry_sound(seed) for seed in range(4)],
    }
    for method in METHODS:  # warm up
        waveform_from_mel(torch.ones(1, 512, 512), PARAMS, method=method)
    print(
        "\n| Picture → waveform | method | seconds | times faster | SC | picture PSNR (dB) |\n|---|---|---|---|---|---|"
    )
    for name, clips in groups.items():
        found = {method: [] for method in METHODS}
        for clip in clips:
            mel = mel_from_image(clip.image, PARAMS, clip.maximum)
            for method in METHODS:
                seconds, waveform = timed(lambda m=mel, way=method: waveform_from_mel(m, PARAMS, method=way))
                found[method].append(
                    (seconds, spectral_convergence(waveform, mel, PARAMS), picture_psnr(waveform, clip))
                )
        table = {method: np.array(rows) for method, rows in found.items()}
        for method, rows in table.items():
            ratio = np.median(table["riffusion"][:, 0] / rows[:, 0])
            seconds, error, psnr = np.median(rows[:, 0]), *rows[:, 1:].mean(axis=0)
            print(f"| {name} | {method} | {seconds:.2f} | {ratio:.1f} | {error:.3f} | {psnr:.1f} |", flush=True)


def benchmark_chain(pipe, turbo) -> None:
    """Prompt → waveform: ours, and plain diffusers with 50 steps of DDIM and the original's way back to sound."""
    plain_scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")

    def plain(seed: int) -> torch.Tensor:
        ours_scheduler, pipe.scheduler = pipe.scheduler, plain_scheduler
        generator = torch.Generator().manual_seed(seed)
        picture = pipe("jazz", num_inference_steps=50, guidance_scale=2.5, generator=generator).images[0]
        pipe.scheduler = ours_scheduler
        return waveform_from_mel(mel_from_image(picture, PARAMS), PARAMS, method="riffusion")

    ways = {
        "plain diffusers, 50 steps of DDIM; original conversion": plain,
        "riffling, defaults": lambda seed: text_to_audio(pipe, "jazz", seed=seed).waveform,
        "riffling-turbo, defaults": lambda seed: text_to_audio(turbo, "jazz", seed=seed).waveform,
    }
    for way in ways.values():  # warm up
        way(0)
    times = np.array([[timed(lambda s=seed, w=way: w(s))[0] for way in ways.values()] for seed in range(1, 6)])
    print("\n| Prompt → waveform, 5.12 s | seconds | × real time | times faster |\n|---|---|---|---|")
    for name, column in zip(ways, times.T, strict=True):
        seconds, ratio = np.median(column), np.median(times[:, 0] / column)
        print(f"| {name} | {seconds:.2f} | {CLIP_S / seconds:.2f} | {ratio:.1f} |", flush=True)
    benchmark_parts(turbo)


def benchmark_parts(turbo) -> None:
    """What a clip of riffling-turbo's is made of, timed one after another."""
    sample, timestep = torch.randn(1, 4, 64, 64), torch.tensor(500)
    embeds = encode_prompt(turbo, "jazz")
    clip = text_to_audio(turbo, "jazz")
    latents = encode(turbo, clip.image, loop=True)
    mel = mel_from_image(clip.image, PARAMS)
    parts = {
        "text": lambda: encode_prompt(turbo, "jazz"),
        "a pass of the U-Net": lambda: turbo.unet(sample, timestep, embeds),
        "decoder": lambda: decode(turbo, latents, loop=True),
        "hash of the weights, for the recipe": lambda: weights_hash(turbo),
        "waveform": lambda: waveform_from_mel(mel, PARAMS, loop=True),
    }
    print("\n| Parts of a clip of riffling-turbo | ms |\n|---|---|")
    with torch.no_grad():
        for name, work in parts.items():
            work()
            print(f"| {name} | {1000 * np.median([timed(work)[0] for _ in range(9)]):.0f} |", flush=True)


def benchmark_growth(pipe) -> None:
    """What longer sounds, larger batches and more clips cost."""
    print("\n| Growth | 1 | 2 | 4 | 8 |\n|---|---|---|---|---|")
    mel = mel_from_image(seed_clip("groove").image, PARAMS)
    sizes = (1, 2, 4, 8)
    longer = [timed(lambda n=n: waveform_from_mel(mel.repeat(1, 1, n), PARAMS))[0] / n for n in sizes]
    print("| waveform of 5.12 s × n, s for each 5.12 s | " + " | ".join(f"{seconds:.2f}" for seconds in longer) + " |")
    stream, pushes = PhaseStream(PARAMS), []
    for _ in range(8):
        pushes.append(timed(lambda: stream.push(mel))[0])
    print("| stream, s for the n-th clip | " + " | ".join(f"{pushes[n - 1]:.2f}" for n in sizes) + " |")
    batches = []
    for n in sizes:
        seeds = list(range(n))
        batches.append(timed(lambda s=seeds, n=n: text_to_audio(pipe, "jazz", seed=s, batch_size=n))[0] / n)
    print("| pictures in batches of n, s for each | " + " | ".join(f"{seconds:.2f}" for seconds in batches) + " |")
    lengths = [timed(lambda n=n: text_to_audio(pipe, "jazz", duration_s=CLIP_S * n))[0] / n for n in sizes]
    print("| picture of 5.12 s × n, s for each 5.12 s | " + " | ".join(f"{seconds:.2f}" for seconds in lengths) + " |")


def benchmark_start() -> None:
    """How long one waits before anything happens."""

    def python(code: str, before: str = "pass") -> float:
        timing = f"import time; {before}; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        command = [sys.executable, "-c", timing]
        outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
        return float(np.median([float(output.split()[-1]) for output in outputs]))

    load, libraries = (
        "from riffusion_lab import load_pipeline; load_pipeline()",
        "import diffusers.pipelines.stable_diffusion",
    )
    print("\n| Start | seconds |\n|---|---|")
    print(f"| import riffusion_lab | {python('import riffusion_lab'):.2f} |")
    print(f"| load_pipeline() | {python(load, libraries):.2f} |")
    print(f"| the same, with the import of torch, diffusers and transformers | {python(load):.2f} |")
    print(f"| notebook 00, from Run All to the first clip that the model has made | {first_clip_s():.2f} |", flush=True)


def first_clip_s() -> float:
    """Seconds from Run All in notebook 00, its kernel just started, to the first clip that the model has made."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": folder}})
        with client.setup_kernel():
            started = time.perf_counter()
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
                if "text_to_audio(pipe" in cell.source:
                    return time.perf_counter() - started
    raise ValueError("notebook 00 makes no clip")


def benchmark_memory(pipe) -> None:
    """How much memory long sounds and many clips take, beyond what they are."""
    process = psutil.Process()

    def row(name: str, work: Callable[[], list[np.ndarray]]) -> None:
        before, arrays = process.memory_info().rss, work()
        grown, output = process.memory_info().rss - before, sum(array.nbytes for array in arrays)
        print(f"| {name} | {grown / 1e6:.0f} | {output / 1e6:.0f} |", flush=True)

    def long_clip() -> list[np.ndarray]:
        clip = text_to_audio(pipe, "jazz", duration_s=60, num_inference_steps=3)
        return [clip.waveform, np.asarray(clip.image)]

    def many_clips() -> list[np.ndarray]:
        clips = interpolate(pipe, Prompt("jazz"), Prompt("techno", seed=1), num_clips=100, num_inference_steps=2)
        return [array for clip in clips for array in (clip.waveform, np.asarray(clip.image))]

    print("\n| Memory | grown by (MB) | output (MB) |\n|---|---|---|")
    row("60 s of text_to_audio", long_clip)
    row("the same again", long_clip)
    row("100 clips of interpolate", many_clips)
    row("the same again", many_clips)


def benchmark_training() -> None:
    """Clips from WAV files on one core, with the memory that takes, and steps of riffling's training."""
    with TemporaryDirectory() as folder:
        sounds = Path(folder, "sounds")
        sounds.mkdir()
        for minute in range(10):
            loops = [seed_clip(name).waveform for name in SEED_CLIPS] * 2
            sound = np.concatenate([np.roll(loop, 7_000 * minute, axis=1) for loop in loops], axis=1)
            soundfile.write(sounds / f"{minute}.wav", sound.T, PARAMS.sample_rate)
        print("\n| Training | |\n|---|---|")
        data_in_a_process(sounds, Path(folder, "warm-up"))  # compiles librosa's functions once
        seconds, memory = data_in_a_process(sounds, Path(folder, "clips"))
        length_s = sum(soundfile.info(file).duration for file in sounds.iterdir())
        print(f"| clips from WAV, one core, × real time | {length_s / seconds:.0f} |")
        print(f"| the same, memory at most (MB) | {memory / 1e6:.0f} |", flush=True)
        dataset = Dataset.load(Path(folder, "clips"))
        train(dataset, Path(folder, "run"), TrainConfig(steps=12, sample_every=0, compile_network=False))
        spent = [json.loads(line)["spent_s"] for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        print(f"| a step of riffling's training (16 clips), seconds | {np.median(np.diff(spent)):.2f} |", flush=True)


def data_in_a_process(sounds: Path, cache: Path) -> tuple[float, int]:
    """Seconds that a data set takes in a process of one thread, and the most memory that it uses, in bytes."""
    code = (
        "import resource, sys, time; from riffusion_lab.training import Dataset; started = time.perf_counter(); "
        "Dataset.from_folder(sys.argv[1], sys.argv[2], max_similarity=None); "
        "print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(sounds), str(cache)]
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, kilobytes = run.stdout.split()[-2:]
    return float(seconds), 1024 * int(kilobytes)


def main() -> None:
    """Print all tables."""
    print(
        f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, ", end=""
    )
    print(f"no GPU used, torch {torch.__version__}")
    benchmark_start()
    benchmark_phase()
    benchmark_training()
    pipe = load_pipeline()
    benchmark_chain(pipe, load_pipeline("riffling-turbo"))
    benchmark_growth(pipe)
    benchmark_memory(pipe)


if __name__ == "__main__":
    main()
