"""Held-out clips that a model is compared with: their captions and facts, and what a classifier says of the real sound.

To render the composer's clips takes hours. What an evaluation needs of them is small, and ships with the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .classifier import Classifier, classify
from .dataset import Dataset
from .metrics import column_steps, estimate_tempo

N_CLIPS = 512  # of an evaluation, unless asked otherwise
TEXTS = ("prompts", "facts", "choices", "classifier_sha256")  # kept as JSON
DTYPES = {"halves": np.int8, "ranks": np.int16, "indices": np.int32, "embeddings": np.float16,
          "tempi_bpm": np.float32, "seam_steps": np.float32, "mean_steps": np.float32}  # fmt: skip
ANSWERS = "answers."  # before the names of their arrays


@dataclass(frozen=True)
class Reference:
    """Held-out clips in two halves, each with every label in like parts; n clips together.

    prompts : list of str
        A caption of each clip: what the model is asked for.
    facts : list of dict
        What is true of each clip; "class" is its label, None where it has none.
    choices : mapping of str to sequence of str
        For each kind of name, such as "class", the names that the classifier chooses from.
    answers : mapping of str to np.ndarray [shape=(n,), int64]
        For each kind of name, the number of the one that the classifier chose for the real clip.
    halves : np.ndarray [shape=(n,)]
        0 or 1.
    ranks : np.ndarray [shape=(n,)]
        Place of a clip in a random order of its half: an evaluation of few clips takes the first ones.
    indices : np.ndarray [shape=(n,)]
        Of the clips in their data set.
    embeddings : np.ndarray [shape=(n, 64), float32]
        Of the real clips, by the classifier.
    tempi_bpm, seam_steps, mean_steps : np.ndarray [shape=(n,)]
        Of the real pictures: estimated tempo, difference between last and first column, mean difference of neighbouring
        columns.
    classifier_sha256 : str
        Hash of the classifier: others embed pictures elsewhere.
    """

    prompts: list[str]
    facts: list[dict[str, Any]]
    choices: Mapping[str, Sequence[str]]
    answers: Mapping[str, np.ndarray]
    halves: np.ndarray
    ranks: np.ndarray
    indices: np.ndarray
    embeddings: np.ndarray
    tempi_bpm: np.ndarray
    seam_steps: np.ndarray
    mean_steps: np.ndarray
    classifier_sha256: str

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, half: int, n_clips: int) -> np.ndarray:
        """Rows of up to `n_clips` clips of one half, rising [shape=(n,)]."""
        return np.flatnonzero((self.halves == half) & (self.ranks < n_clips))

    def save(self, file: str | Path) -> None:
        """Write a safetensors file, with the embeddings in half precision."""
        arrays = {name: getattr(self, name).astype(dtype) for name, dtype in DTYPES.items()}
        arrays |= {ANSWERS + name: numbers.astype(np.int16) for name, numbers in self.answers.items()}
        save_file(arrays, file, metadata={name: json.dumps(getattr(self, name), ensure_ascii=False) for name in TEXTS})

    @classmethod
    def load(cls, file: str | Path) -> Reference:
        """Read what `save` has written.

        Raises
        ------
        OSError
            If there is no such file.
        ValueError
            If it holds something else.
        """
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        if missing := [name for name in TEXTS if name not in metadata]:
            raise ValueError(f"{file} holds no reference clips: {', '.join(missing)} missing")
        arrays = load_file(file)
        answers = {name.removeprefix(ANSWERS): arrays.pop(name) for name in list(arrays) if name.startswith(ANSWERS)}
        arrays["embeddings"] = arrays["embeddings"].astype(np.float32)
        texts = {name: json.loads(metadata[name]) for name in TEXTS}
        texts["choices"] = {name: tuple(values) for name, values in texts["choices"].items()}
        return cls(answers=answers, **texts, **arrays)


@lru_cache(maxsize=1)
def shipped_reference() -> Reference:
    """The held-out clips of the composer's data set (seed 0), judged by the classifier that ships."""
    return Reference.load(str(resources.files("riffusion_lab") / "weights" / "held_out.safetensors"))


def make_reference(dataset: Dataset, classifier: Classifier) -> Reference:
    """The held-out clips of a data set. Clips of a label that the classifier does not know are left out.

    Raises
    ------
    ValueError
        If it knows none of the labels, or fewer than four clips are left.
    """
    halves = _halves(dataset, classifier.choices["class"])
    chosen = [row for half in (0, 1) for row in _rank_and_caption(dataset, halves, half)]
    ranks, indices, prompts = (list(column) for column in zip(*chosen, strict=True))
    pictures = [dataset.pictures(np.array([i])) for i in indices]
    embeddings, answers = classify(classifier, pictures)
    steps = [column_steps(picture) for picture in pictures]
    return Reference(
        prompts=prompts,
        facts=[{**dataset.facts[i], "class": dataset.label(i)} for i in indices],
        choices=classifier.choices,
        answers=answers,
        halves=np.repeat([0, 1], [len(half) for half in halves]),
        ranks=np.array(ranks),
        indices=np.array(indices),
        embeddings=embeddings,
        tempi_bpm=np.array([estimate_tempo(picture) for picture in pictures]),
        seam_steps=np.array([step[0] for step in steps]),
        mean_steps=np.array([step.mean() for step in steps]),
        classifier_sha256=classifier.sha256(),
    )


def _halves(dataset: Dataset, classes: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of the held-out clips of these classes, or of all where none has a label, in two halves."""
    held_out = [int(i) for i in dataset.split()[1]]
    labels = {i: label for i in held_out if (label := dataset.label(i)) is not None}
    if labels:
        held_out = [i for i in held_out if labels.get(i) in classes]
        held_out.sort(key=lambda i: classes.index(labels[i]))
    if labels and not held_out:
        names = ", ".join(sorted(set(labels.values()))[:5])
        raise ValueError(
            f"the classifier knows none of the labels of this data set ({names}): train one with the stage `classifier`"
        )
    if len(held_out) < 4:
        raise ValueError(f"an evaluation needs at least four held-out clips, this data set has {len(held_out)}")
    return held_out[::2], held_out[1::2]


def _rank_and_caption(dataset: Dataset, halves: tuple[list[int], list[int]], half: int) -> list[tuple[int, int, str]]:
    """(rank, index, caption) of each clip of a half, by index."""
    rng = np.random.default_rng(0)
    order = rng.permutation(halves[half]).tolist()
    rng.permutation(halves[1 - half])  # captions are drawn after both: those of earlier evaluations stay the same
    captions = {i: dataset.caption(i, rng) for i in sorted(order[:N_CLIPS])}
    captions |= {i: dataset.caption(i, rng) for i in sorted(order[N_CLIPS:])}
    ranks = {i: rank for rank, i in enumerate(order)}
    return [(ranks[i], i, captions[i]) for i in sorted(order)]
