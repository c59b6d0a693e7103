"""A small network that names what a picture sounds like, and whose embedding the Fréchet distance is measured in.

It is trained on real clips only and has no part in training a generator, so it can judge one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .dataset import Dataset
from .targets import choice_targets
from .vocabulary import CLASSES, FUSION, MODE_WORDS, TEXTURES

EMBEDDING = 64
WIDTHS = (16, 32, 64, 96, 128)
COMPOSER_CHOICES = {"class": CLASSES, "texture": TEXTURES, "mode": tuple(MODE_WORDS)}
CHOICES_KEY = "choices"  # in the metadata of a classifier's file


class Classifier(nn.Module):
    """Names what a picture sounds like: one linear layer for each kind of name, on a common embedding.

    Parameters
    ----------
    choices : mapping of str to sequence of str
        For each kind of name, such as "class", the names to choose from. Default: those of the package's composer.
    """

    def __init__(self, choices: Mapping[str, Sequence[str]] = COMPOSER_CHOICES) -> None:
        super().__init__()
        self.choices = {name: tuple(values) for name, values in choices.items()}
        layers: list[nn.Module] = []
        for n_in, n_out in zip((1, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)  # 256 × 256 → 8 × 8
        self.embedding = nn.Linear(8 * WIDTHS[-1], EMBEDDING)
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(values)) for name, values in self.choices.items()})

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [shape=(n, 1, 512, 512), -1…1] → embeddings [shape=(n, 64)]."""
        features = self.layers(F.avg_pool2d(pictures, 2))  # (n, 128, 8, 8)
        return self.embedding(F.relu(features.mean(dim=-1).flatten(1)))  # frequency is kept, time averaged

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pictures [shape=(n, 1, 512, 512), -1…1] → logits [shape=(n, choices)] for each kind of name."""
        embeddings = F.relu(self.embed(pictures))
        return {name: head(embeddings) for name, head in self.heads.items()}

    def sha256(self) -> str:
        """Hash of the weights in half precision, as they are saved."""
        digest = hashlib.sha256()
        for name, weights in sorted(self.state_dict().items()):
            digest.update(name.encode() + _halved(weights).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, file: str | Path) -> None:
        """Write the weights in half precision, and the names to choose from, as a safetensors file."""
        state = {name: _halved(weights).contiguous() for name, weights in self.state_dict().items()}
        save_file(state, file, metadata={CHOICES_KEY: json.dumps(self.choices)})


def _halved(weights: torch.Tensor) -> torch.Tensor:
    return weights.half() if weights.is_floating_point() else weights


def dataset_choices(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The names that a classifier of this data set chooses from: the composer's, or the labels that occur.

    Raises
    ------
    ValueError
        If its clips have fewer than two labels.
    """
    labels = {label for i in range(len(dataset)) if (label := dataset.label(i)) is not None}
    if labels - {FUSION} <= set(CLASSES):
        return COMPOSER_CHOICES
    if len(labels) < 2:
        raise ValueError(
            f"a classifier needs clips with two or more labels, these have {len(labels)}: give labels in "
            "captions.jsonl, or sort the sounds into one sub-folder for each label"
        )
    return {"class": tuple(sorted(labels))}


def answers(dataset: Dataset, indices: Iterable[int], choices: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """What a classifier should answer for clips of a data set, as numbers [shape=(n,)]; `IGNORED` where not known."""
    facts: list[dict[str, Any]] = [dict(dataset.facts[i], **{"class": dataset.label(i)}) for i in indices]
    return choice_targets(facts, choices)


def load_classifier(file: str | Path | None = None) -> Classifier:
    """The classifier that ships with the package, or one from a file that `Classifier.save` has written.

    Raises
    ------
    OSError, ValueError
        If there is no such file, or it holds something else.
    """
    if file is None:
        return _load(str(resources.files("riffusion_lab") / "weights" / "classifier.safetensors"))
    if not Path(file).is_file():
        raise FileNotFoundError(f"no classifier at {str(file)!r}: train one with the stage `classifier`")
    return _load(str(file))


@lru_cache(maxsize=2)
def _load(file: str) -> Classifier:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    model = Classifier(json.loads(metadata[CHOICES_KEY]) if CHOICES_KEY in metadata else COMPOSER_CHOICES)
    state = {
        name: weights.float() if weights.is_floating_point() else weights for name, weights in load_file(file).items()
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} holds no classifier of this package: {str(error).splitlines()[0]}") from error
    return model.eval()


def picture_tensor(picture: Image.Image) -> torch.Tensor:
    """A clip's picture as the classifier takes it [shape=(1, 1, height, width), -1…1]: the mean of its channels."""
    pixels = np.asarray(picture.convert("RGB"), np.float32).mean(axis=-1)
    return torch.from_numpy(pixels)[None, None] / 127.5 - 1


@torch.no_grad()
def class_scores(picture: Image.Image, classifier: Classifier | None = None) -> dict[str, float]:
    """Probability of each class for one picture (512 × 512), most probable first."""
    classifier = classifier or load_classifier()
    names = classifier.choices["class"]
    scores = classifier(picture_tensor(picture))["class"][0].softmax(dim=0)
    return {names[i]: float(scores[i]) for i in scores.argsort(descending=True)}


@torch.no_grad()
def classify(classifier: Classifier, pictures: Iterable[torch.Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings and answers for pictures.

    Parameters
    ----------
    pictures : iterable of Tensor [shape=(n, 1, 512, 512), -1…1]

    Returns
    -------
    embeddings : np.ndarray [shape=(total, 64)]
    answers : dict of str to np.ndarray [shape=(total,), int64]
        For each kind of name, the number of the most probable one.
    """
    embeddings: list[torch.Tensor] = []
    answers: dict[str, list[torch.Tensor]] = {name: [] for name in classifier.choices}
    for batch in pictures:
        embedding = classifier.embed(batch)
        embeddings.append(embedding)
        for name, head in classifier.heads.items():
            answers[name].append(head(F.relu(embedding)).argmax(dim=1))
    return torch.cat(embeddings).numpy(), {name: torch.cat(parts).numpy() for name, parts in answers.items()}
