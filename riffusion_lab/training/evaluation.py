"""How good is a model? Clips are generated from captions of held-out clips, and compared with these.

A classifier that had no part in training the model says what it hears. *Adherence* is its accuracy on generated clips
divided by its accuracy on the real clips of the same captions; texture, mode and tempo count where the caption names
them. The *Fréchet distance* (https://arxiv.org/abs/1706.08500, here in the classifier's own embedding) compares two
sets as a whole; the one between two sets of real clips of the same size is as good as it can get.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .. import __version__
from ..generate import text_to_audio
from ..hashing import weights_hash
from ..models import execution_device, model_settings
from ..values import check_whole
from .autoencoder import fidelity, reconstruct
from .classifier import Classifier, class_scores, classify, clip_distance, load_classifier, picture_tensor
from .dataset import Dataset
from .evaluation_page import save_report
from .kept_clips import KeptClips
from .metrics import (
    column_steps,
    distance_of_means,
    diversity,
    estimate_tempo,
    frechet_distance,
    is_tempo,
    nearest_correlation,
    thumbnails,
)
from .reference import N_CLIPS, Reference, make_reference, shipped_reference
from .targets import choice_targets
from .vocabulary import CLASSES, DRUMS, EFFECT_NAMES, INSTRUMENTS, MODE_WORDS, STYLE_NAMES

if TYPE_CHECKING:  # importing it makes transformers log warnings: see models.quiet
    from diffusers import StableDiffusionPipeline

__all__ = [
    "CLASSES",
    "Classifier",
    "class_scores",
    "clip_distance",
    "default_settings",
    "evaluate",
    "load_classifier",
]

VOCABULARY_SETTINGS = ("vocabulary", "tempi_bpm")  # of a model's settings, what says nothing about how it makes clips
COMPOSER_GROUPS = {
    "styles": tuple(STYLE_NAMES),
    "instruments": tuple(INSTRUMENTS),
    "drums": (DRUMS,),
    "effects": tuple(EFFECT_NAMES),
}
KEPT = "evaluation_clips"  # folder of generated clips, until the evaluation is finished
RUN = ("half", "seed")  # which run it is, no measure
SEED_STRIDE = 100_000  # between the seeds of a clip in two runs


def default_settings(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """What a model's clips depend on beside its weights, unless an option says otherwise, as JSON has it."""
    settings = {name: value for name, value in asdict(model_settings(pipe)).items() if name not in VOCABULARY_SETTINGS}
    if not settings["start_sigmas"]:  # only models of few steps have them
        del settings["start_sigmas"]
    scheduler = type(pipe.scheduler)
    defaults = {name: parameter.default for name, parameter in signature(scheduler.__init__).parameters.items()}
    changed = {name: value for name, value in pipe.scheduler.config.items() if value != defaults.get(name, value)}
    content: dict[str, Any] = json.loads(json.dumps(settings | {"scheduler": {"class": scheduler.__name__, **changed}}))
    return content


def evaluate(
    pipe: StableDiffusionPipeline,
    reference: Reference | Dataset | None = None,
    *,
    classifier: Classifier | None = None,
    n_clips: int = N_CLIPS,
    halves: Sequence[int] = (0,),
    seeds: Sequence[int] = (0,),
    known_clips: Sequence[Dataset] = (),
    batch_size: int = 4,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Generate from captions of held-out clips, and compare with these clips.

    Clips are generated on the device that the model is on; the classifier works on the CPU.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
        Any model that `load_pipeline` gives.
    reference : Reference or Dataset, optional
        What to compare with. Default: the held-out clips of the package's composer, which ship with it. A data set is
        also needed to tell memorization, and what the autoencoder alone loses.
    classifier : Classifier, optional
        Default: the one that ships with the package, which knows the composer's labels. For a data set with labels of
        its own, one that was trained on them.
    n_clips : int
        How many clips to generate in each run; of few, Fréchet distances come out larger.
    halves, seeds : sequences of int
        A run for each pair: halves of the held-out clips, 0 or 1, and seeds from 0. Settings that were chosen on one
        half may look too good there, so look at the other.
    known_clips : sequence of Dataset
        Further clips that the model was trained on, for memorization.
    batch_size : int
    folder : path, optional
        Where to write ``evaluation.json`` and ``evaluation.html``. Until these are written, each generated clip is kept
        in its sub-folder ``evaluation_clips``: after an interruption, the same call goes on with those that are
        missing. Default: nothing is written.
    **options
        As in `text_to_audio`; default: the model's own.

    Returns
    -------
    dict
        ``weights_sha256``, ``settings``, ``device``, ``dtype``, ``riffusion_lab`` (the version), ``n_clips``, and the
        measures of the run. Of several runs: the means of their measures, ``spread`` (standard deviations), and
        ``runs`` (the measures of each).

        Measures are ``groups`` (for each its size n, the accuracies on generated and real clips, and adherence),
        ``frechet``, ``frechet_means`` (the part of it that lies between the means), ``frechet_real_real``,
        ``diversity``, ``seam`` and ``steps`` (the step over a loop's seam and the mean step between columns; all three
        as a share of the real clips'), ``confusions``, and ``prompts`` with their seeds, the classifier's answers, and
        in which groups these are right.
        With a data set also ``memorization`` (highest correlation with a training clip: the median of generated and of
        held-out clips, and the share of generated clips above the 99th percentile of held-out ones) and
        ``autoencoder`` (the same measures for real clips that were only encoded and decoded).

    Raises
    ------
    OSError
        If the folder is a file, or cannot be written.
    ValueError
        If half, seed or number of clips is impossible, or the reference clips were judged by another classifier.
    """
    _check(n_clips, halves, seeds, batch_size)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)  # before hours of work
    if isinstance(reference, (str, os.PathLike)):
        raise TypeError(f"reference is the path {str(reference)!r}: pass Dataset.load({str(reference)!r})")
    classifier = classifier or load_classifier()
    if reference is None or isinstance(reference, Reference):
        real_clips = RealClips(None, reference or shipped_reference(), known_clips)
    else:
        real_clips = RealClips(reference, make_reference(reference, classifier), known_clips)
    if real_clips.reference.classifier_sha256 != classifier.sha256():
        raise ValueError(
            "the reference clips were judged by another classifier, whose embeddings differ: "
            "give their data set as the reference instead"
        )
    origin = _origin(pipe, options)
    kept = KeptClips(None if folder is None else Path(folder) / KEPT, origin)
    runs = []
    for half, seed in itertools.product(halves, seeds):
        rows = real_clips.reference.rows(half, n_clips)
        pictures, requests = _generate(
            pipe, real_clips.reference, rows, seed=seed, batch_size=batch_size, options=options, kept=kept
        )
        runs.append({"half": half, "seed": seed} | _measures(pictures, requests, real_clips, classifier, rows))
    report = origin | {"n_clips": len(runs[0]["prompts"])} | _summary(runs)
    if real_clips.dataset is not None:
        report["autoencoder"] = _autoencoder_measures(pipe, real_clips, classifier, rows)
    report |= {"runs": runs} if len(runs) > 1 else {}
    if folder is not None:
        save_report(report, Path(folder))
        kept.remove()
    return report


def _origin(pipe: StableDiffusionPipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the clips of an evaluation beside prompts and seeds."""
    return {
        "weights_sha256": weights_hash(pipe),
        "settings": default_settings(pipe) | dict(options),
        "device": execution_device(pipe).type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "riffusion_lab": __version__,
    }


def _check(n_clips: int, halves: Sequence[int], seeds: Sequence[int], batch_size: int) -> None:
    for name, value in {"n_clips": n_clips, "batch_size": batch_size}.items():
        check_whole(name, value, -math.inf, math.inf)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if n_clips < 2:
        raise ValueError(f"n_clips must be at least 2, not {n_clips}; the Fréchet distance needs a few hundred")
    if not halves or not set(halves) <= {0, 1}:
        raise ValueError(f"halves must be (0,), (1,) or (0, 1), not {halves!r}")
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be numbers from 0 on, such as (0, 1, 2), not {seeds!r}")


@dataclass(frozen=True)
class RealClips:
    """What generated clips are compared with: reference clips, and their data set where it is at hand."""

    dataset: Dataset | None
    reference: Reference
    known_clips: Sequence[Dataset]

    def pictures(self, rows: np.ndarray) -> list[torch.Tensor]:
        """Pictures of some of the reference clips [shape=(1, 1, 512, 512), each]."""
        assert self.dataset is not None
        return [self.dataset.pictures(self.reference.indices[[row]]) for row in rows]

    def is_loop(self, row: int) -> bool:
        """Whether a reference clip is a loop."""
        assert self.dataset is not None
        return self.dataset.columns_per_bar(int(self.reference.indices[row])) is not None

    def training_thumbnails(self) -> torch.Tensor:
        """Thumbnails of all clips that the model may know from its training."""
        assert self.dataset is not None
        parts = [(self.dataset, self.dataset.split()[0])]
        parts += [(dataset, np.arange(len(dataset))) for dataset in self.known_clips]
        batches = ((part, batch) for part, clips in parts for batch in np.array_split(clips, len(clips) // 64 + 1))
        return thumbnails(part.pictures(batch) for part, batch in batches if len(batch))


def _generate(
    pipe: StableDiffusionPipeline,
    reference: Reference,
    rows: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    kept: KeptClips,
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Pictures [shape=(1, 1, 512, 512), each] for captions of reference clips, and these captions with their seeds."""
    requests = [
        {"prompt": reference.prompts[row], "seed": n + SEED_STRIDE * seed, "label": reference.facts[row]["class"]}
        for n, row in enumerate(rows)
    ]
    pictures = []
    for start in tqdm(range(0, len(requests), batch_size), desc="generate", unit_scale=batch_size, mininterval=10):
        batch = requests[start : start + batch_size]
        pictures += [picture_tensor(image) for image in _images(pipe, batch, options, kept)]
    return pictures, requests


def _images(
    pipe: StableDiffusionPipeline, batch: list[dict[str, Any]], options: Mapping[str, Any], kept: KeptClips
) -> list[Image.Image]:
    """Pictures of a batch of clips: those that are kept, or new ones if one is missing.

    A batch is generated as a whole, since rounding may depend on what else is in it.
    """
    prompts, seeds = ([request[name] for request in batch] for name in ("prompt", "seed"))
    before = [kept.read(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    images = [image for image in before if image is not None]
    if len(images) == len(batch):
        return images
    clips = text_to_audio(pipe, prompts, seed=seeds, batch_size=len(batch), **options)
    for prompt, seed, clip in zip(prompts, seeds, clips, strict=True):
        kept.write(prompt, seed, clip.image)
    return [clip.image for clip in clips]


@dataclass(frozen=True)
class Comparison:
    """Generated clips beside real clips of the same captions, one of each in every place.

    Embeddings have the shape (n, 64), answers are numbers [shape=(n,)] for each kind of name.
    """

    pictures: list[torch.Tensor]
    prompts: list[str]
    facts: list[dict[str, Any]]
    embeddings: np.ndarray
    answers: Mapping[str, np.ndarray]
    real_embeddings: np.ndarray
    real_answers: Mapping[str, np.ndarray]
    real_tempi_bpm: np.ndarray
    real_steps: tuple[float, float]  # mean over the seam, mean between all columns


def compare(pictures: list[torch.Tensor], reference: Reference, rows: np.ndarray, classifier: Classifier) -> Comparison:
    """Put pictures [shape=(1, 1, 512, 512), each] beside as many reference clips."""
    embeddings, answers = classify(classifier, pictures)
    return Comparison(
        pictures=pictures,
        prompts=[reference.prompts[row] for row in rows],
        facts=[reference.facts[row] for row in rows],
        embeddings=embeddings,
        answers=answers,
        real_embeddings=reference.embeddings[rows],
        real_answers={name: numbers[rows] for name, numbers in reference.answers.items()},
        real_tempi_bpm=reference.tempi_bpm[rows],
        real_steps=(float(reference.seam_steps[rows].mean()), float(reference.mean_steps[rows].mean())),
    )


def _measures(
    pictures: list[torch.Tensor],
    requests: list[dict[str, Any]],
    real_clips: RealClips,
    classifier: Classifier,
    rows: np.ndarray,
) -> dict[str, Any]:
    """What one run measures; see `evaluate`."""
    reference = real_clips.reference
    pairs = compare(pictures, reference, rows, classifier)
    other_half = (reference.halves != reference.halves[rows[0]]) & (reference.ranks < len(rows))
    groups = answer_groups(pairs, reference.choices)
    measures: dict[str, Any] = {"groups": accuracies(groups)}
    measures |= _diversity(pairs) | _distances(pairs) | _step_ratios(pairs)
    measures["frechet_real_real"] = frechet_distance(reference.embeddings[other_half], pairs.real_embeddings)
    if real_clips.dataset is not None:
        measures["memorization"] = _memorization(pictures, real_clips, rows)
    names = [reference.choices["class"][number] for number in pairs.answers["class"]]
    requests = [request | {"right": _right_answers(groups, i)} for i, request in enumerate(requests)]
    return measures | _confusions(requests, names)


@dataclass(frozen=True)
class Group:
    """Which answers about clips are right; arrays have the shape (n,)."""

    is_member: np.ndarray  # whether the caption names something of this group
    correct: np.ndarray
    real_correct: np.ndarray  # of the real clips of the same captions


def answer_groups(pairs: Comparison, choices: Mapping[str, Sequence[str]]) -> dict[str, Group]:
    """Right answers by group: of labels, and of what captions name besides."""
    targets = {name: numbers.numpy() for name, numbers in choice_targets(pairs.facts, choices).items()}
    correct = {name: pairs.answers[name] == targets[name] for name in targets}
    real_correct = {name: pairs.real_answers[name] == targets[name] for name in targets}
    labels = np.array([fact["class"] for fact in pairs.facts])
    groups = {}
    for group, members in _label_groups(choices["class"]).items():
        groups[group] = Group(np.isin(labels, members), correct["class"], real_correct["class"])
    for name in set(targets) - {"class"}:
        groups[name] = Group(_is_named(pairs, name), correct[name], real_correct[name])
    groups["tempo"] = _tempo_answers(pairs)
    return groups


def accuracies(groups: Mapping[str, Group]) -> dict[str, dict[str, float]]:
    """Accuracy on generated and on real clips; no group where no real clip is recognized: nothing is divided by 0."""
    measured = {}
    for name, group in groups.items():
        real = group.real_correct[group.is_member]
        if real.any():
            generated = float(group.correct[group.is_member].mean())
            numbers = {"generated": generated, "real": float(real.mean()), "adherence": generated / float(real.mean())}
            measured[name] = {"n": len(real)} | numbers
    return measured


def _right_answers(groups: Mapping[str, Group], i: int) -> dict[str, bool]:
    """In which of the groups of clip `i` the answer about it is right."""
    return {name: bool(group.correct[i]) for name, group in groups.items() if group.is_member[i]}


def _label_groups(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The composer's labels by kind; other labels each for itself, and all together."""
    if tuple(classes) == CLASSES:
        return COMPOSER_GROUPS
    return {"all": tuple(classes)} | {label: (label,) for label in classes}


def _is_named(pairs: Comparison, name: str) -> np.ndarray:
    """For each clip, whether its caption names this fact."""
    return np.array([is_named(prompt, fact, name) for prompt, fact in zip(pairs.prompts, pairs.facts, strict=True)])


def is_named(caption: str, facts: Mapping[str, Any], name: str) -> bool:
    """Whether a caption names a clip's "texture", "mode" or tempo ("bpm", as a number)."""
    value = facts.get(name)
    if value is None:
        return False
    words = {"texture": (value,), "mode": MODE_WORDS.get(value, ()), "bpm": (f"{value} bpm",)}[name]
    return any(word in caption for word in words)


def _tempo_answers(pairs: Comparison) -> Group:
    """Whether clips with drums have the tempo that their caption names."""
    has_drums = np.array([bool(fact.get("drums")) for fact in pairs.facts])
    chosen = _is_named(pairs, "bpm") & has_drums
    correct, real_correct = np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
    for i in np.flatnonzero(chosen):
        correct[i] = is_tempo(estimate_tempo(pairs.pictures[i]), pairs.facts[i]["bpm"])
        real_correct[i] = is_tempo(float(pairs.real_tempi_bpm[i]), pairs.facts[i]["bpm"])
    return Group(chosen, correct, real_correct)


def _diversity(pairs: Comparison) -> dict[str, float]:
    """Diversity within labels as a share of the real clips'; nothing where every label occurs once."""
    labels = [str(fact["class"]) for fact in pairs.facts]
    if len(set(labels)) == len(labels):
        return {}
    return {"diversity": diversity(pairs.embeddings, labels) / diversity(pairs.real_embeddings, labels)}


def _distances(pairs: Comparison) -> dict[str, float]:
    return {
        "frechet": frechet_distance(pairs.embeddings, pairs.real_embeddings),
        "frechet_means": distance_of_means(pairs.embeddings, pairs.real_embeddings),
    }


def _step_ratios(pairs: Comparison) -> dict[str, float]:
    """Step over the seam and mean step between columns, as a share of the real clips'."""
    steps = np.mean([column_steps(picture) for picture in pairs.pictures], axis=0)
    real_seam, real_mean = pairs.real_steps
    return {"seam": float(steps[0] / real_seam), "steps": float(steps.mean() / real_mean)}


def _memorization(pictures: list[torch.Tensor], real_clips: RealClips, rows: np.ndarray) -> dict[str, float]:
    """Highest correlation with a training clip, of generated and of held-out clips."""
    training = real_clips.training_thumbnails()
    generated = nearest_correlation(thumbnails(pictures), training)
    held_out = nearest_correlation(thumbnails(real_clips.pictures(rows)), training)
    return {
        "generated": float(np.median(generated)),
        "held_out": float(np.median(held_out)),
        "above": float((generated > np.quantile(held_out, 0.99)).mean()),
    }


def _autoencoder_measures(
    pipe: StableDiffusionPipeline, real_clips: RealClips, classifier: Classifier, rows: np.ndarray
) -> dict[str, float]:
    """What the autoencoder alone leaves of the real clips."""
    pictures = real_clips.pictures(rows)
    loops = [real_clips.is_loop(row) for row in rows]
    progress = tqdm(zip(pictures, loops, strict=True), total=len(rows), desc="reconstruct", mininterval=10)
    again = [reconstruct(pipe.vae, picture, loop=loop) for picture, loop in progress]
    pairs = compare(again, real_clips.reference, rows, classifier)
    return fidelity(again, pictures) | _distances(pairs) | _step_ratios(pairs)


def _confusions(requests: list[dict[str, Any]], names: list[str]) -> dict[str, list[Any]]:
    """The most frequent mistakes, and every request with the classifier's answer."""
    asked = [request["label"] for request in requests]
    mistakes = Counter(pair for pair in zip(asked, names, strict=True) if pair[0] not in (None, pair[1]))
    return {
        "confusions": [f"{label} → {name}: {n}" for (label, name), n in mistakes.most_common(30)],
        "prompts": [request | {"heard": name} for request, name in zip(requests, names, strict=True)],
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The measures of one run; of several the means of their numbers, with standard deviations as "spread"."""
    if len(runs) == 1:
        return {name: value for name, value in runs[0].items() if name not in RUN}
    numbers = [_numbers(run) for run in runs]
    return {**_nested(numbers, np.mean), "spread": _nested(numbers, lambda values: np.std(values, ddof=1))}


def _numbers(measures: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among the measures, and groups of them."""
    kept = {name: _numbers(value) if isinstance(value, dict) else value for name, value in measures.items()}
    return {name: value for name, value in kept.items() if isinstance(value, dict | float | int) and name not in RUN}


def _nested(runs: list[dict[str, Any]], average: Callable[[list[float]], Any]) -> dict[str, Any]:
    """Average equal entries of nested dictionaries, where all have them."""
    common = [name for name in runs[0] if all(name in run for run in runs)]
    result: dict[str, Any] = {}
    for name in common:
        values = [run[name] for run in runs]
        result[name] = _nested(values, average) if isinstance(values[0], dict) else float(average(values))
    return result
