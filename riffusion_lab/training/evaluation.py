"""How good is the model? A small classifier listens, and numbers follow.

The classifier is trained on rendered clips only and never used to train the model. *Adherence* is its accuracy on
generated clips divided by its accuracy on rendered clips of the same captions; texture, mode and tempo count where the
caption tells them. The *Fréchet distance* (https://arxiv.org/abs/1706.08500, here in the classifier's own embedding)
compares the two sets as a whole; that between two sets of rendered clips of the same size says what is as good as the
same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.signal import find_peaks
from scipy.spatial.distance import pdist
from torch import nn
from tqdm.auto import tqdm

from ..generate import text_to_audio
from ..hashing import weights_hash
from ..models import model_settings
from ..params import COLUMNS_PER_S
from .autoencoder import fidelity, reconstruct, training_indices
from .captions import caption
from .checkpoints import data_id
from .config import ClassifierConfig
from .dataset import Dataset
from .loop import Batch, Task, is_main_process, run_loop, seeded
from .targets import IGNORED, choice_targets
from .vocabulary import CLASSES, DRUMS, EFFECT_NAMES, INSTRUMENTS, MODE_WORDS, STYLE_NAMES, TEXTURES

MODES = tuple(MODE_WORDS)
TAUGHT = ("vocabulary", "tempi_bpm")  # of a model's settings, what says nothing about how it makes clips
EMBEDDING = 64
GROUPS = {
    "styles": tuple(STYLE_NAMES),
    "instruments": tuple(INSTRUMENTS),
    "drums": (DRUMS,),
    "effects": tuple(EFFECT_NAMES),
}


class Classifier(nn.Module):
    """Says what a picture sounds like: one of `CLASSES`, its texture and its mode."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for below, width in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(below, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)  # 256 × 256 → 8 × 8
        self.embedding = nn.Linear(2 * 8 * 128 // 2, EMBEDDING)
        self.heads = nn.ModuleDict(
            {
                "class": nn.Linear(EMBEDDING, len(CLASSES)),
                "texture": nn.Linear(EMBEDDING, len(TEXTURES)),
                "mode": nn.Linear(EMBEDDING, len(MODES)),
            }
        )

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [shape=(n, 1, 512, 512), -1…1] → [shape=(n, 64)]."""
        features = self.layers(F.avg_pool2d(pictures, 2))  # (n, 128, 8, 8): frequency is kept, time averaged
        return self.embedding(F.relu(features.mean(dim=-1).flatten(1)))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores (logits) for each of class, texture and mode."""
        embedding = F.relu(self.embed(pictures))
        return {name: head(embedding) for name, head in self.heads.items()}


def targets(facts: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Numbers of the right answers; `IGNORED` where there is none."""
    answers = choice_targets(facts, {"label": CLASSES, "texture": TEXTURES, "mode": MODES})
    return {"class": answers["label"], "texture": answers["texture"], "mode": answers["mode"]}


class ClassifierTask(Task):
    """Trains a `Classifier` on clips rolled in time, blurred and with noise, so that it does not judge by fine grain.

    Its batch normalization sees one process's part of a batch at a time.
    """

    name = "classifier"
    network: Classifier

    def __init__(self, dataset: Dataset, config: ClassifierConfig) -> None:
        self.dataset, self.config = dataset, config
        self.indices = training_indices(dataset)
        self.data_id = data_id(dataset)
        with seeded(config.seed):
            self.network = Classifier().train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=config.weight_decay)

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        """Pictures of random clips, and the right answers."""
        chosen = rng.choice(self.indices, self.config.batch_size)
        pictures = self.dataset.pictures(chosen).roll(int(rng.integers(512)), dims=-1)
        if rng.random() < 0.5:
            pictures = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
        noise = torch.randn(pictures.shape, generator=generator)
        pictures = pictures + rng.uniform(0, self.config.noise) * noise
        return {"pictures": pictures, "targets": targets([self.dataset.facts[i] for i in chosen])}

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Cross entropy of class, texture and mode, where there is a right answer."""
        scores = network(batch["pictures"])
        errors = [self._error(scores[name], right) for name, right in batch["targets"].items()]
        return {"loss": torch.stack(errors).sum()}

    def _error(self, scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Mean over the clips that have an answer; 0 if none has."""
        smoothing = self.config.label_smoothing
        total = F.cross_entropy(scores, right, label_smoothing=smoothing, ignore_index=IGNORED, reduction="sum")
        return total / (right != IGNORED).sum().clamp(min=1)


def train_classifier(dataset: Dataset, folder: str | Path, config: ClassifierConfig | None = None) -> Classifier:
    """Train a classifier on rendered clips, or resume; writes ``classifier.safetensors`` (float16) in the folder.

    Parameters
    ----------
    dataset : Dataset
    folder : path
        See `run_loop`.
    config : ClassifierConfig, optional
    """
    config = config or ClassifierConfig()
    task = ClassifierTask(dataset, config)
    run_loop(task, config, folder)
    model = task.network.cpu().eval()
    if is_main_process():
        state = {name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}
        save_file({name: v.contiguous() for name, v in state.items()}, Path(folder) / "classifier.safetensors")
    return model


@lru_cache(maxsize=2)
def load_classifier(file: str | Path | None = None) -> Classifier:
    """The classifier that ships with the package, or another one."""
    if file is None:
        file = str(resources.files("riffusion_lab") / "weights" / "classifier.safetensors")
    model = Classifier()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
    return model.eval()


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """A clip's picture as the classifier takes it [shape=(1, 1, 512, 512)]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32).mean(axis=-1))[None, None] / 127.5 - 1


@torch.no_grad()
def class_scores(picture: Image.Image, classifier: Classifier | None = None) -> dict[str, float]:
    """Probability of each of `CLASSES` for one picture, the likeliest first."""
    scores = (classifier or load_classifier())(as_tensor(picture))["class"][0].softmax(dim=0)
    return {CLASSES[i]: float(scores[i]) for i in scores.argsort(descending=True)}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two Gaussians fitted to embeddings [shape=(n, 64)]: |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)."""
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real.clip(min=0)
    mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(mean + np.trace(covariance_a + covariance_b) - 2 * np.sqrt(eigenvalues).sum())


def tempo_in_picture(picture: torch.Tensor) -> float:
    """Beats per minute at which the onsets of a looped picture [shape=(1, 1, 512, 512)] look most like themselves.

    Autocorrelation of the rises of brightness along time, between 40 and 240 bpm, interpolated between columns; of
    peaks that are nearly alike, the fastest.
    """
    onsets = (picture[0, 0].roll(1, dims=-1) - picture[0, 0]).clamp(min=0).sum(dim=0)  # loud is dark
    blur = torch.exp(-0.5 * (torch.arange(257) / 26) ** 2)  # by 30 ms: a beat is no whole number of columns
    spectrum = torch.fft.rfft(onsets - onsets.mean()) * blur
    alike = torch.fft.irfft(spectrum.abs().square()).numpy()
    first, last = (round(COLUMNS_PER_S * 60 / bpm) for bpm in (240, 40))
    peaks = find_peaks(alike[first - 1 : last + 1])[0] + first - 1
    lag = next((lag for lag in peaks if alike[lag] > 0.9 * alike[peaks].max()), last)
    left, middle, right = alike[lag - 1 : lag + 2]
    return 60 * COLUMNS_PER_S / (lag + (left - right) / (2 * (left - 2 * middle + right)))


def keeps_tempo(picture: torch.Tensor, bpm: float) -> bool:
    """Whether a picture's tempo is the one asked for, up to octaves, within 3 %."""
    octaves = np.log2(tempo_in_picture(picture) / bpm)
    return bool(abs(octaves - round(octaves)) < np.log2(1.03))


def diversity(embedding: np.ndarray, labels: list[str]) -> float:
    """Mean distance between embeddings [shape=(n, 64)] of one label, over labels that occur more than once."""
    groups = [embedding[np.array(labels) == label] for label in set(labels)]
    return float(np.mean([pdist(group).mean() for group in groups if len(group) > 1]))


def is_told(fact: dict, name: str, prompt: str) -> bool:
    """Whether a prompt tells the texture, the mode or the tempo ("bpm", as a number) of the clip it was made for."""
    value = fact.get(name)
    words = {"texture": (value,), "mode": MODE_WORDS.get(value, ()), "bpm": (f"{value} bpm",)}[name]
    return value is not None and any(word in prompt for word in words)


def steps(picture: torch.Tensor) -> np.ndarray:
    """Mean change of grey between columns of a looped picture [shape=(512,)]; the first is that over the seam."""
    return (picture - picture.roll(1, dims=-1)).abs().mean(dim=(0, 1, 2)).numpy()


def thumbnails(pictures: Iterable[torch.Tensor]) -> torch.Tensor:
    """Batches of pictures [shape=(…, 1, 512, 512)] in small [shape=(n, 64, 64)], each of mean 0 and length 1."""
    small = torch.cat([F.avg_pool2d(batch, 8)[:, 0] for batch in pictures])
    return F.normalize((small - small.mean(dim=(1, 2), keepdim=True)).flatten(1)).view_as(small)


def likeness(ours: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """Correlation of each of our `thumbnails` with the most alike of the others, however both are turned in time."""
    spectra = torch.fft.rfft(ours).conj().permute(2, 0, 1)  # (33, n, 64)
    best = torch.zeros(len(ours))
    for part in others.split(512):
        cross = torch.fft.irfft(spectra @ torch.fft.rfft(part).permute(2, 1, 0), n=64, dim=0)
        best = best.maximum(cross.amax(dim=(0, 2)))
    return best.numpy()


def held_out_halves(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Two sets of held-out clips, each with every class in like parts; fusions are of no one class."""
    _, held_out = dataset.split()
    of_a_class = [int(i) for i in held_out if dataset.facts[i]["label"] in CLASSES]
    ordered = sorted(of_a_class, key=lambda i: CLASSES.index(dataset.facts[i]["label"]))
    return ordered[::2], ordered[1::2]


@torch.no_grad()
def judge(classifier: Classifier, pictures: list[torch.Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings [shape=(n, 64)] and answers (numbers of class, texture, mode) for pictures."""
    embeddings, answers = [], {"class": [], "texture": [], "mode": []}
    for picture in pictures:
        embeddings.append(classifier.embed(picture)[0].numpy())
        for name, scores in classifier(picture).items():
            answers[name].append(int(scores.argmax()))
    return np.stack(embeddings), {name: np.array(numbers) for name, numbers in answers.items()}


def default_settings(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """What a model's clips depend on beside its weights, unless told otherwise, as JSON has it: no tuples."""
    settings = {name: value for name, value in asdict(model_settings(pipe)).items() if name not in TAUGHT}
    solver = type(pipe.scheduler)
    usual = {name: parameter.default for name, parameter in signature(solver.__init__).parameters.items()}
    unusual = {name: value for name, value in pipe.scheduler.config.items() if value != usual.get(name, value)}
    return json.loads(json.dumps(settings | {"scheduler": {"class": solver.__name__, **unusual}}))


def evaluate(
    pipe: StableDiffusionPipeline,
    dataset: Dataset,
    classifier: Classifier,
    *,
    also_taught: Sequence[Dataset] = (),
    other_half: bool = False,
    n_clips: int = 512,
    batch_size: int = 4,
    **options: Any,
) -> dict:
    """Generate from captions of held-out clips, and compare with these clips.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    dataset : Dataset
    classifier : Classifier
    also_taught : sequence of Dataset
        Where else the model may know clips from: all of theirs are looked through for the one that is most alike.
    other_half : bool
        With the captions of the other half of the held-out clips, to see what was chosen too well for the first.
    n_clips : int
        How many to generate; of few, Fréchet distances come out larger.
    batch_size : int
    **options
        As in `text_to_audio`; default: the model's own.

    Returns
    -------
    dict
        The weights' hash and the settings; adherence and accuracies by group ("tempo": drums, and its number in the
        prompt), diversity, the step over the seam and the mean step between columns as a share of the rendered clips',
        Fréchet distances (and what of that lies between the means), what the autoencoder alone leaves of the rendered
        clips (`autoencoder.fidelity`, and the same distances and shares), likeness to the training clip that is most
        alike (in the middle, and the share of clips above the 99th percentile of held-out ones), confusions, and the
        prompts with their seeds and answers.
    """
    ours, others = held_out_halves(dataset)[:: -1 if other_half else 1]
    rng = np.random.default_rng(0)
    ours = sorted(rng.permutation(ours)[:n_clips].tolist())
    others = sorted(rng.permutation(others)[: len(ours)].tolist())
    facts = [dataset.facts[i] for i in ours]
    prompts = [caption(f, rng) for f in facts]
    generated = []
    for start in tqdm(range(0, len(ours), batch_size), desc="generate", unit_scale=batch_size, mininterval=10):
        part = slice(start, start + batch_size)
        seeds = list(range(len(ours)))[part]
        clips = text_to_audio(pipe, prompts[part], seed=seeds, batch_size=batch_size, **options)
        generated += [as_tensor(clip.image) for clip in clips]
    embedding, answers = judge(classifier, generated)
    rendered = [dataset.pictures(np.array([i])) for i in ours]
    real_embedding, real_answers = judge(classifier, rendered)
    other_embedding, _ = judge(classifier, [dataset.pictures(np.array([i])) for i in others])
    right = {name: numbers.numpy() for name, numbers in targets(facts).items()}
    report: dict = {"weights_sha256": weights_hash(pipe), "settings": default_settings(pipe) | options}
    report |= {"n_clips": len(ours), "groups": {}}
    labels = [f["label"] for f in facts]
    for group, members in GROUPS.items():
        where = np.array([label in members for label in labels])
        report["groups"][group] = _accuracies(
            answers["class"][where], real_answers["class"][where], right["class"][where]
        )
    for name in ("texture", "mode"):
        where = np.array([is_told(fact, name, prompt) for fact, prompt in zip(facts, prompts, strict=True)])
        report["groups"][name] = _accuracies(answers[name][where], real_answers[name][where], right[name][where])
    has_beat = [i for i, f in enumerate(facts) if f.get("drums") and is_told(f, "bpm", prompts[i])]
    on_beat = [[keeps_tempo(clips[i], facts[i]["bpm"]) for i in has_beat] for clips in (generated, rendered)]
    report["groups"]["tempo"] = _accuracies(*map(np.array, on_beat), np.ones(len(has_beat), bool))
    report["diversity"] = diversity(embedding, labels) / diversity(real_embedding, labels)
    report |= _distances(embedding, real_embedding) | _shares_of_steps(generated, rendered)
    report["frechet_real_real"] = frechet_distance(other_embedding, real_embedding)
    again = [reconstruct(pipe.vae, picture) for picture in tqdm(rendered, desc="reconstruct", mininterval=10)]
    alone = _distances(judge(classifier, again)[0], real_embedding) | _shares_of_steps(again, rendered)
    report["autoencoder"] = fidelity(again, rendered) | alone
    taught = [(dataset, dataset.split()[0]), *((other, np.arange(len(other))) for other in also_taught)]
    taught = [thumbnails(map(d.pictures, np.array_split(clips, len(clips) // 64 + 1))) for d, clips in taught]
    taught = torch.cat(taught)
    likest, usual = (likeness(thumbnails(clips), taught) for clips in (generated, rendered))
    report["likest_taught"] = {"generated": float(np.median(likest)), "held_out": float(np.median(usual))}
    report["likest_taught"]["above"] = float((likest > np.quantile(usual, 0.99)).mean())
    heard = [CLASSES[i] for i in answers["class"]]
    mistakes = Counter((label, h) for label, h in zip(labels, heard, strict=True) if h != label)
    report["confusions"] = [f"{label} → {h}: {n}" for (label, h), n in mistakes.most_common(30)]
    report["prompts"] = [
        {"prompt": p, "seed": s, "label": label, "heard": h}
        for s, (p, label, h) in enumerate(zip(prompts, labels, heard, strict=True))
    ]
    return report


def _distances(embedding: np.ndarray, real: np.ndarray) -> dict[str, float]:
    between_means = float(np.square(embedding.mean(axis=0) - real.mean(axis=0)).sum())
    return {"frechet": frechet_distance(embedding, real), "frechet_means": between_means}


def _shares_of_steps(pictures: list[torch.Tensor], rendered: list[torch.Tensor]) -> dict[str, float]:
    ours, theirs = (np.mean([steps(picture) for picture in group], axis=0) for group in (pictures, rendered))
    return {"seam": float(ours[0] / theirs[0]), "steps": float(ours.mean() / theirs.mean())}


def _accuracies(generated: np.ndarray, real: np.ndarray, right: np.ndarray) -> dict[str, float]:
    on_generated, on_real = float((generated == right).mean()), float((real == right).mean())
    return {"n": len(right), "generated": on_generated, "real": on_real, "adherence": on_generated / on_real}


def save_report(report: dict, file: str | Path) -> None:
    """Write a report as JSON."""
    Path(file).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
