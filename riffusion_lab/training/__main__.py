"""Train riffling, or a model of your own, stage by stage: `python -m riffusion_lab.training STAGE`.

data         compose and render the clips of riffling, or cut a folder of sounds (--from)
autoencoder  pictures to latents and back, from nothing
decoder      train its decoder on, with the error of what is heard
classifier   the judge, trained on the clips' labels
denoiser     U-Net and text encoder; without the stages above with riffling's autoencoder
distill      a model that needs a few steps, from one that needs many (--start-from; default: riffling)
export       write the model in half precision to another folder (--to)
evaluate     measure a model (--model)

For a model of your own, data, denoiser and export are enough. Each stage works in its own folder within --folder,
resumes if it was interrupted, and writes report.html there while it runs. Nothing is written into the package.
Several processes share the work of a training stage: start it with `accelerate launch --num_processes 2 -m` (one for
each GPU) or, on CPUs, `torchrun --nproc_per_node 2 -m` instead of `python -m`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import DEVICES, AutoencoderConfig, ClassifierConfig, DecoderConfig, DistillConfig, Settings, TrainConfig
from .processes import is_first_process, n_processes, printed_once

if TYPE_CHECKING:  # loading them takes seconds, and --help needs none
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    from .dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class ComposeConfig(Settings):
    """Settings of the stage data."""

    seed: int = 0  # another one makes other clips

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "seed")


@dataclass(frozen=True, kw_only=True)
class CutConfig(Settings):
    """Settings of the stage data for a folder of sounds; see `Dataset.from_folder`."""

    hop_s: float = 5.12  # seconds from one cut to the next
    on_beat: bool = False  # begin every clip on a beat
    silence_db: float = -60.0  # dBFS: clips that are mostly below are dropped
    max_similarity: float | None = 0.9  # of small pictures: more is a near-duplicate; null keeps them
    label_from_folder: bool = False  # use names of sub-folders as labels, and in captions that are only files' names
    strict: bool = False  # stop at the first file that cannot be read


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Settings of the stage export."""

    mean_with: str | None = None  # another model, trained on from the same one: export the mean of the weights
    overwrite: bool = False  # replace a model that is in the folder


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Settings of the stage evaluate."""

    n_clips: int = 512  # to generate
    batch_size: int = 4
    device: str = "auto"  # of the model: "cpu", "cuda"; "auto": CUDA if there is one, in half precision
    halves: tuple[int, ...] = (0,)  # of the held-out clips: 0, 1
    seeds: tuple[int, ...] = (0,)  # a run for each half and seed; of several, the spread is measured
    also_trained_on: tuple[str, ...] = ()  # further folders of clips, among which copies are looked for

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of(DEVICES, "device")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage; errors in what the user passed end it with one line."""
    options = _parser().parse_args(arguments)
    try:
        with printed_once():
            _run(options)
    except KeyboardInterrupt as interrupt:
        if is_first_process():
            print(str(interrupt) or "stopped; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from interrupt
    except (OSError, ValueError, ImportError, FloatingPointError, BrokenExecutor) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m riffusion_lab.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--folder", type=Path, default=Path("data"), help="for clips, checkpoints and models")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file with the stage's settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="show the stage's settings as JSON, and do nothing else")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="stage data: a folder of sounds")
    parser.add_argument(
        "--start-from",
        metavar="MODEL",
        help="stages autoencoder and denoiser: train a copy of this model on; stage distill: the teacher",
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="stages export and evaluate: where to write")
    parser.add_argument(
        "--model", metavar="FOLDER", help="stages export and evaluate: the model; default: the one trained here"
    )
    parser.add_argument(
        "--override",
        metavar="JSON",
        default="{}",
        help="stage evaluate: try other settings of the model: guidance_scale, num_inference_steps, scheduler (a class "
        """of diffusers) and its own, such as '{"guidance_scale": 1.3, "sigma_max": 80}'""",
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    run, config_class, own_options = STAGES[options.stage]
    if options.stage == "data" and options.source:
        config_class = CutConfig
    _check_options(options, own_options)
    if n_processes() > 1 and options.stage not in SHARED_STAGES:
        raise ValueError(
            f"the stage {options.stage} runs in one process, not in {n_processes()}: start it with python -m"
        )
    config = config_class.from_json(options.config) if options.config else config_class()
    config = config.override(options.set)
    if options.list:
        print(json.dumps(config.to_dict(), indent=1))
        return
    from ..models import keep_freed_memory, quiet

    keep_freed_memory()
    with quiet(bars=True):  # importing it makes transformers log warnings
        import_module("diffusers").StableDiffusionPipeline  # noqa: B018
    run(options, config)


def _check_options(options: argparse.Namespace, own_options: tuple[str, ...]) -> None:
    """Raise a ValueError for an option of another stage."""
    defaults = {"source": None, "start_from": None, "to": None, "model": None, "override": "{}"}
    for name, default in defaults.items():
        if getattr(options, name) != default and name not in own_options:
            option = "--from" if name == "source" else f"--{name.replace('_', '-')}"
            stages = [stage for stage, (_, _, theirs) in STAGES.items() if name in theirs]
            raise ValueError(f"{option} is not for the stage {options.stage}, but for {', '.join(stages)}")


def _dataset(options: argparse.Namespace) -> Dataset:
    from .dataset import Dataset

    return Dataset.load(options.folder / "clips")


def _data(options: argparse.Namespace, config: ComposeConfig | CutConfig) -> None:
    from .dataset import Dataset

    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        if isinstance(config, ComposeConfig):
            Dataset.from_composer(options.folder / "clips", executor, seed=config.seed)
        else:
            Dataset.from_folder(options.source, options.folder / "clips", executor=executor, **config.to_dict())


def _autoencoder(options: argparse.Namespace, config: AutoencoderConfig) -> None:
    from ..models import load_pipeline
    from .autoencoder import train_autoencoder

    dataset = _dataset(options)
    start_from = load_pipeline(options.start_from, device="cpu").vae if options.start_from else None
    vae = train_autoencoder(dataset, options.folder / "autoencoder", config, start_from=start_from)
    _print_fidelity(vae, dataset)


def _decoder(options: argparse.Namespace, config: DecoderConfig) -> None:
    from .autoencoder import finetune_decoder

    dataset = _dataset(options)
    vae = _trained_autoencoder(options.folder, ("autoencoder",))
    if vae is None:
        raise FileNotFoundError(
            f"there is no autoencoder in {options.folder}: run the stage autoencoder first. (The stage denoiser works "
            "without both, with riffling's)"
        )
    _print_fidelity(finetune_decoder(vae, dataset, options.folder / "decoder", config), dataset)


def _trained_autoencoder(folder: Path, stages: tuple[str, ...]) -> AutoencoderTiny | None:
    """The result of the first of the stages that has one."""
    from diffusers import AutoencoderTiny

    for stage in stages:
        if (folder / stage / "vae" / "config.json").exists():
            return AutoencoderTiny.from_pretrained(folder / stage / "vae")
    return None


def _print_fidelity(vae: AutoencoderTiny, dataset: Dataset) -> None:
    from .autoencoder import autoencoder_snapshot

    snapshot = autoencoder_snapshot(vae, dataset)
    print(_fidelity_text(snapshot.numbers, snapshot.measured_on), flush=True)


def _fidelity_text(numbers: dict[str, float], measured_on: str) -> str:
    psnr, convergence = numbers["psnr"], numbers["convergence"]
    return f"{measured_on}, reconstructed: {psnr:.2f} dB PSNR, spectral convergence {convergence:.3f}"


def _classifier(options: argparse.Namespace, config: ClassifierConfig) -> None:
    from .classifier import answers, classify, train_classifier

    dataset = _dataset(options)
    model = train_classifier(dataset, options.folder / "classifier", config)
    _, held_out = dataset.split()
    if len(held_out) == 0:
        print("classifier: not measured, since no clip is held out", flush=True)
        return
    _, given = classify(model, (dataset.pictures([i]) for i in held_out))
    for name, right in answers(dataset, held_out, model.choices).items():
        has_answer = right.numpy() >= 0
        if has_answer.any():
            accuracy = (given[name] == right.numpy())[has_answer].mean()
            print(f"classifier: {accuracy:.3f} right on held-out {name}", flush=True)


def _denoiser(options: argparse.Namespace, config: TrainConfig) -> None:
    from ..models import load_pipeline
    from .denoiser import train

    dataset = _dataset(options)
    start_from = load_pipeline(options.start_from, device="cpu") if options.start_from else None
    vae = _trained_autoencoder(options.folder, ("decoder", "autoencoder"))
    train(dataset, options.folder / "denoiser", config, vae=vae, start_from=start_from)
    print(f"the model is in {options.folder / 'denoiser' / 'model'}", flush=True)


def _distill(options: argparse.Namespace, config: DistillConfig) -> None:
    import numpy as np

    from ..models import load_pipeline
    from .distillation import distill

    teacher = load_pipeline(options.start_from or "riffling", device="cpu")
    prompts = None
    if (options.folder / "clips").exists():
        dataset = _dataset(options)
        rng = np.random.default_rng(config.seed)
        prompts = [dataset.caption(int(i), rng) for i in rng.permutation(dataset.split()[0])]
    else:
        print("no clips in the folder: the prompts are captions of the composer")
    distill(teacher, options.folder / "distill", config, prompts=prompts)
    print(f"the model is in {options.folder / 'distill' / 'model'}", flush=True)


def _export(options: argparse.Namespace, config: ExportConfig) -> None:
    from ..models import load_pipeline
    from .exporting import average, check_target, check_vacant, export

    if options.to is None:
        raise ValueError("the stage export needs --to FOLDER, where to write the model")
    check_target(options.to)
    check_vacant(options.to, overwrite=config.overwrite)
    pipe = load_pipeline(options.model or options.folder / "denoiser" / "model", device="cpu")
    if config.mean_with:
        average(pipe, load_pipeline(config.mean_with, device="cpu"))
    classifier = options.folder / "classifier" / "classifier.safetensors"
    others = [classifier] if classifier.exists() else []
    export(pipe, options.to, overwrite=config.overwrite, other_files=others)
    print(f"exported to {options.to}", flush=True)


def _evaluate(options: argparse.Namespace, config: EvaluateConfig) -> None:
    from ..models import load_pipeline
    from .classifier import load_classifier
    from .dataset import Dataset
    from .evaluation import evaluate

    pipe = load_pipeline(options.model or options.folder / "denoiser" / "model", device=_device(config.device))
    overrides = _override(pipe, options.override)
    own = options.folder / "classifier" / "classifier.safetensors"
    has_clips = (options.folder / "clips").exists()
    if not has_clips:
        print("no clips in the folder: comparing with the composer's held-out clips that ship with the package")
    target = options.to or options.folder
    report = evaluate(
        pipe,
        _dataset(options) if has_clips else None,
        classifier=load_classifier(own) if has_clips and own.exists() else None,
        n_clips=config.n_clips,
        halves=config.halves,
        seeds=config.seeds,
        known_clips=[Dataset.load(Path(other) / "clips") for other in config.also_trained_on],
        batch_size=config.batch_size,
        folder=target,
        **overrides,
    )
    _print_report(report)
    print(f"all of it is in {target / 'evaluation.json'} and {target / 'evaluation.html'}")


def _device(device: str) -> str:
    """Name of a device; "auto" is CUDA if there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _override(pipe: StableDiffusionPipeline, text: str) -> dict[str, Any]:
    """Give a pipeline another scheduler or other settings of it; return the settings of generation."""
    import diffusers

    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--override {text!r} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--override {text!r} is not a JSON object such as " + '{"guidance_scale": 1.3}')
    names = ("guidance_scale", "num_inference_steps")
    options = {name: settings.pop(name) for name in names if name in settings}
    name = settings.pop("scheduler", type(pipe.scheduler).__name__)
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None:
        raise ValueError(f"--override: diffusers has no scheduler {name!r}; DDIMScheduler is one")
    allowed = {**pipe.scheduler.config, **signature(scheduler_class).parameters}
    if unknown := sorted(settings.keys() - allowed.keys()):
        raise ValueError(f"--override: {name} has no setting {', '.join(unknown)}; it has {', '.join(allowed)}")
    pipe.scheduler = scheduler_class.from_config({**pipe.scheduler.config, **settings})
    return options


def _print_report(report: dict[str, Any]) -> None:
    for name, numbers in report["groups"].items():
        print(f"{name:12s} adherence {numbers['adherence']:.2f} (n = {numbers['n']:.0f}, real {numbers['real']:.3f})")
    print(_distance_text(report) + f"; between real clips {report['frechet_real_real']:.2f}")
    ratios = {"diversity": "diversity", "seam": "step over the seam", "steps": "mean step between columns"}
    named = [f"{text} {report[name]:.2f}" for name, text in ratios.items() if name in report]
    print(f"as a share of the real clips': {', '.join(named)}")
    if alone := report.get("autoencoder"):
        print(f"{_fidelity_text(alone, 'held-out clips')}, {_distance_text(alone)}")
    if similar := report.get("memorization"):
        print(
            f"highest correlation with a training clip: {similar['generated']:.2f}, of held-out clips "
            f"{similar['held_out']:.2f}; {similar['above']:.1%} above the 99th percentile of those"
        )


def _distance_text(measures: dict[str, Any]) -> str:
    return f"Fréchet distance {measures['frechet']:.2f}, of it between the means {measures['frechet_means']:.2f}"


# Of each stage: the function, the class of its settings, and its own options
STAGES: dict[str, tuple[Callable[[argparse.Namespace, Any], None], type[Settings], tuple[str, ...]]] = {
    "data": (_data, ComposeConfig, ("source",)),
    "autoencoder": (_autoencoder, AutoencoderConfig, ("start_from",)),
    "decoder": (_decoder, DecoderConfig, ()),
    "classifier": (_classifier, ClassifierConfig, ()),
    "denoiser": (_denoiser, TrainConfig, ("start_from",)),
    "distill": (_distill, DistillConfig, ("start_from",)),
    "export": (_export, ExportConfig, ("model", "to")),
    "evaluate": (_evaluate, EvaluateConfig, ("model", "override", "to")),
}
SHARED_STAGES = ("autoencoder", "decoder", "classifier", "denoiser", "distill")  # several processes may share the work


if __name__ == "__main__":
    main()
