"""Train riffling, stage by stage: `python -m riffusion_lab.training STAGE`.

The stages, in their order: data, autoencoder, decoder, classifier, denoiser, export, evaluate.

Each stage takes up where it was broken off; to begin one again, delete its files in the folder.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from inspect import signature
from multiprocessing import get_context
from pathlib import Path

from ..models import keep_freed_memory

STAGES = ("data", "autoencoder", "decoder", "classifier", "denoiser", "export", "evaluate")


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m riffusion_lab.training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, default=Path("data"), help="for clips, checkpoints and results")
    parser.add_argument("--seed", type=int, default=0, help="stage data: another one makes other clips")
    parser.add_argument("--minutes", type=float, help="time budget of a training stage")
    parser.add_argument("--start-from", help="stages autoencoder and denoiser: train this model on")
    parser.add_argument("--both-halves", action="store_true", help="stage decoder: train the encoder as well")
    parser.add_argument("--new-text", action="store_true", help="stage denoiser: with a new text encoder all the same")
    parser.add_argument(
        "--favoured", metavar="CLASS", nargs="*", default=[], help="stage denoiser: draw these more often"
    )
    parser.add_argument("--mean-with", metavar="MODEL", help="stage export: the mean of the weights and this model's")
    parser.add_argument("--n-clips", type=int, default=512, help="stage evaluate: clips to evaluate on")
    parser.add_argument(
        "--also-taught", type=Path, metavar="FOLDER", nargs="*", default=[], help="stage evaluate: with other clips"
    )
    parser.add_argument(
        "--other-half", action="store_true", help="stage evaluate: with the other held-out clips, kept nowhere"
    )
    parser.add_argument(
        "--instead",
        type=json.loads,
        metavar="JSON",
        default={},
        help="stage evaluate: other settings to try, kept nowhere: guidance_scale, num_inference_steps, scheduler "
        """(a class of diffusers) and its own, as in '{"guidance_scale": 1.3, "sigma_max": 80}'""",
    )
    arguments = parser.parse_args()
    folder = arguments.folder
    budget = {} if arguments.minutes is None else {"minutes": arguments.minutes}
    keep_freed_memory()
    globals()[f"_{arguments.stage}"](folder, budget, arguments)


def _data(folder: Path, _budget: dict, arguments: argparse.Namespace) -> None:
    from .dataset import make_dataset

    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        make_dataset(folder / "clips", executor, seed=arguments.seed)


def _autoencoder(folder: Path, budget: dict, arguments: argparse.Namespace) -> None:
    from ..models import load_pipeline
    from .autoencoder import encode_dataset, train_autoencoder
    from .dataset import load_dataset

    dataset = load_dataset(folder / "clips")
    start_from = load_pipeline(arguments.start_from, device="cpu").vae if arguments.start_from else None
    vae = train_autoencoder(dataset, folder, start_from=start_from, **budget)
    _say_there_and_back(vae, dataset)
    latents = encode_dataset(vae, dataset, folder / "latents.npy")
    print(f"latents: mean {latents.mean(dtype='f8'):.3f}, standard deviation {latents.std(dtype='f8'):.3f}", flush=True)


def _decoder(folder: Path, budget: dict, arguments: argparse.Namespace) -> None:
    from diffusers import AutoencoderTiny

    from .autoencoder import train_for_the_ear
    from .dataset import load_dataset

    dataset = load_dataset(folder / "clips")
    vae = AutoencoderTiny.from_pretrained(folder / "vae")
    vae = train_for_the_ear(vae, dataset, folder, both_halves=arguments.both_halves, **budget)
    _say_there_and_back(vae, dataset)
    if arguments.both_halves:
        (folder / "latents.npy").unlink(missing_ok=True)  # the stage denoiser encodes again


def _say_there_and_back(vae, dataset) -> None:
    import numpy as np

    from .autoencoder import fidelity, there_and_back

    pictures = [dataset.pictures(np.array([i])) for i in dataset.split()[1][:64]]
    print(_said(fidelity([there_and_back(vae, picture) for picture in pictures], pictures)), flush=True)


def _said(fidelity: dict[str, float]) -> str:
    psnr, convergence = fidelity["psnr"], fidelity["convergence"]
    return f"held-out pictures there and back: {psnr:.2f} dB PSNR, spectral convergence {convergence:.3f}"


def _classifier(folder: Path, budget: dict, _arguments: argparse.Namespace) -> None:
    import numpy as np

    from .dataset import load_dataset
    from .evaluation import judge, targets, train_classifier

    dataset = load_dataset(folder / "clips")
    model = train_classifier(dataset, folder, **budget)
    _, held_out = dataset.split()
    _, answers = judge(model, [dataset.pictures(np.array([i])) for i in held_out])
    for name, right in targets([dataset.facts[i] for i in held_out]).items():
        known = right.numpy() >= 0
        print(f"classifier: {(answers[name] == right.numpy())[known].mean():.3f} right on held-out {name}", flush=True)


def _denoiser(folder: Path, budget: dict, arguments: argparse.Namespace) -> None:
    import torch
    from diffusers import AutoencoderTiny

    from ..models import load_pipeline
    from .autoencoder import encode_dataset
    from .dataset import load_dataset
    from .denoiser import assemble, train_denoiser

    dataset = load_dataset(folder / "clips")
    start_from = load_pipeline(arguments.start_from, device="cpu") if arguments.start_from else None
    is_new = (folder / "vae").is_dir() or not start_from
    vae = AutoencoderTiny.from_pretrained(folder / "vae") if is_new else start_from.vae
    latents = encode_dataset(vae, dataset, folder / "latents.npy")
    network, tokenizer = train_denoiser(
        latents,
        dataset,
        folder,
        start_from=start_from,
        new_text=arguments.new_text,
        favoured=arguments.favoured,
        **budget,
    )
    assemble(network.to(memory_format=torch.contiguous_format), tokenizer, vae).save_pretrained(folder / "riffling")


def _export(folder: Path, _budget: dict, arguments: argparse.Namespace) -> None:
    from shutil import copyfile

    from diffusers import StableDiffusionPipeline

    from ..models import load_pipeline
    from .dataset import load_dataset
    from .export import average, export

    weights = Path(__file__).parents[1] / "weights"
    pipe = StableDiffusionPipeline.from_pretrained(folder / "riffling", safety_checker=None)
    if arguments.mean_with:
        average(pipe, load_pipeline(arguments.mean_with, device="cpu"))
    export(pipe, load_dataset(folder / "clips"), weights / "riffling")
    if (classifier := folder / "classifier.safetensors").exists():
        copyfile(classifier, weights / "classifier.safetensors")


def _evaluate(folder: Path, _budget: dict, arguments: argparse.Namespace) -> None:
    import diffusers

    from ..models import load_pipeline
    from .dataset import load_dataset
    from .evaluation import evaluate, load_classifier, save_report

    pipe, settings = load_pipeline(), dict(arguments.instead)
    options = {name: settings.pop(name) for name in ("guidance_scale", "num_inference_steps") if name in settings}
    solver = getattr(diffusers, settings.pop("scheduler", type(pipe.scheduler).__name__))
    known = {**pipe.scheduler.config, **signature(solver).parameters}
    if unknown := sorted(settings.keys() - known.keys()):
        raise SystemExit(f"--instead: {solver.__name__} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    pipe.scheduler = solver.from_config({**pipe.scheduler.config, **settings})
    dataset = load_dataset(folder / "clips")
    others = [load_dataset(other / "clips") for other in arguments.also_taught]
    options |= {"also_taught": others, "other_half": arguments.other_half, "n_clips": arguments.n_clips}
    report = evaluate(pipe, dataset, load_classifier(), **options)
    if not (arguments.instead or arguments.other_half):
        save_report(report, Path(__file__).parents[1] / "weights" / "riffling" / "evaluation.json")
    for name, numbers in report["groups"].items():
        print(f"{name:12s} adherence {numbers['adherence']:.2f} (n = {numbers['n']}, real {numbers['real']:.3f})")
    print(f"Fréchet distance {report['frechet']:.2f}, of it between the means {report['frechet_means']:.2f}; ", end="")
    print(f"between rendered clips {report['frechet_real_real']:.2f}")
    print(f"as a share of the rendered clips': diversity {report['diversity']:.2f}, ", end="")
    print(f"step over the seam {report['seam']:.2f}, between all columns {report['steps']:.2f}")
    print(_said(back := report["autoencoder"]), end="")
    print(f", Fréchet distance {back['frechet']:.2f}, of it between the means {back['frechet_means']:.2f}")
    alike = report["likest_taught"]
    print(f"likest training clip: {alike['generated']:.2f}, of held-out clips {alike['held_out']:.2f}; ", end="")
    print(f"{alike['above']:.1%} above the 99th percentile of those")


if __name__ == "__main__":
    main()
