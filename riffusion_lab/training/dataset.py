"""The training set: pieces composed, rendered and drawn; pictures in one array, facts in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..image import pixels_from_mel
from ..params import SpectrogramParams
from ..spectrogram import mel_from_waveform
from .captions import caption
from .composer import Composer
from .effects import EFFECTS
from .render import Renderer
from .vocabulary import CLIP_SECONDS, DRUMS, FUSION, INSTRUMENTS, STYLE_NAMES

# The pictures hold nothing above 10 kHz: at 24 kHz they are the same, for half the work.
RENDER_PARAMS = SpectrogramParams(sample_rate=24_000)
CLIPS_PER_CLASS = {"solo": 280, "style": 340, DRUMS: 500, "effect": 120, FUSION: 1200}
HELD_OUT = 0.08
SHARD = 64  # clips made by one task


def plan(seed: int = 0) -> list[tuple[str, str]]:
    """(kind, label) of every clip, in random order."""
    jobs = [("solo", name) for name in INSTRUMENTS for _ in range(CLIPS_PER_CLASS["solo"])]
    jobs += [("style", name) for name in STYLE_NAMES for _ in range(CLIPS_PER_CLASS["style"])]
    jobs += [(name, name) for name in (DRUMS, FUSION) for _ in range(CLIPS_PER_CLASS[name])]
    jobs += [("effect", name) for name in EFFECTS for _ in range(CLIPS_PER_CLASS["effect"])]
    return [jobs[i] for i in np.random.default_rng(seed).permutation(len(jobs))]


_renderer: Renderer | None = None  # one for each process: loading the soundfont takes a second


def make_sound(kind: str, label: str, seed: int) -> tuple[np.ndarray, dict]:
    """Compose and render one clip: (mono waveform at 24 kHz, facts)."""
    global _renderer
    rng = np.random.default_rng([seed, 1])
    if kind == "effect":
        return EFFECTS[label](rng, RENDER_PARAMS.sample_rate).astype(np.float32), {"kind": kind, "label": label}
    composer = Composer(rng)
    alone = {"solo": composer.solo, "style": composer.in_style}
    piece = alone[kind](label) if kind in alone else {DRUMS: composer.drum_beat, FUSION: composer.fusion}[kind]()
    _renderer = _renderer or Renderer(RENDER_PARAMS.sample_rate)
    return _renderer.render(piece), piece.facts


def make_shard(jobs: list[tuple[str, str]], first_seed: int) -> tuple[np.ndarray, list[dict]]:
    """Pictures [shape=(n, 512, 512), uint8] and facts of some clips."""
    torch.set_num_threads(1)
    pixels, facts = [], []
    for i, (kind, label) in enumerate(jobs):
        sound, fact = make_sound(kind, label, first_seed + i)
        picture, _ = pixels_from_mel(
            mel_from_waveform(torch.from_numpy(sound)[None], RENDER_PARAMS, loop=True), RENDER_PARAMS
        )
        pixels.append(picture)
        facts.append(fact | {"seed": first_seed + i})
    return np.stack(pixels), facts


def make_dataset(folder: str | Path, executor: Executor, *, seed: int = 0) -> None:
    """Make the whole training set; what is already there is kept, so that it can be broken off and taken up again.

    Parameters
    ----------
    folder : path
        Takes `pixels-*.npy` and `facts-*.json`.
    executor : concurrent.futures.Executor
        Where the work is done: `ProcessPoolExecutor()`, or dask's `client.get_executor()` on a cluster.
    seed : int
        Another one makes other clips, none of them twice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = plan(seed)
    shards = {i // SHARD: jobs[i : i + SHARD] for i in range(0, len(jobs), SHARD)}
    todo = {
        n: executor.submit(make_shard, shard, seed * len(jobs) + n * SHARD)
        for n, shard in shards.items()
        if not _facts_file(folder, n).exists()
    }
    for n, future in tqdm(todo.items(), desc="clips", unit_scale=SHARD):
        pixels, facts = future.result()
        np.save(folder / f"pixels-{n:04d}.npy", pixels)
        _facts_file(folder, n).write_text(json.dumps(facts))  # written last: says that the shard is whole


def _facts_file(folder: Path, n: int) -> Path:
    return folder / f"facts-{n:04d}.json"


@dataclass(frozen=True)
class Dataset:
    """Clips to train on or to judge by.

    pixels : list of np.ndarray [shape=(n, 512, 512), uint8], memory-mapped
    facts : list of dict, as many as there are pictures
    """

    pixels: list[np.ndarray]
    facts: list[dict]

    def __len__(self) -> int:
        return len(self.facts)

    def picture(self, i: int) -> np.ndarray:
        """Picture `i` [shape=(512, 512), uint8]."""
        return self.pixels[i // SHARD][i % SHARD]

    def pictures(self, indices: Iterable[int] | np.ndarray) -> torch.Tensor:
        """Pictures as networks take them [shape=(n, 1, 512, 512), float32 in -1…1]."""
        return torch.from_numpy(np.stack([self.picture(int(i)) for i in indices])).float()[:, None] / 127.5 - 1

    def caption(self, i: int, rng: np.random.Generator, *, full: bool = False) -> str:
        """One of the captions of clip `i`; with `full`, one that says all that is known."""
        return caption(self.facts[i], rng, full=full)

    def label(self, i: int) -> str | None:
        """Class of clip `i`, by which draws are balanced and models judged; None if it has none."""
        label: str | None = self.facts[i].get("label")
        return label

    def columns_per_bar(self, i: int) -> int | None:
        """Latent columns by which clip `i` may be rolled in time; None if it is no loop."""
        facts = self.facts[i]
        if "bpm" not in facts:
            return 1  # rain has no bars
        n_bars = round(facts["bpm"] * CLIP_SECONDS / 60) / facts["metre"]
        return round(64 / n_bars) if n_bars in (1, 2, 4) else 64

    def fingerprint(self) -> str:
        """Hash of which clips these are, in their order."""
        return hashlib.sha256(json.dumps(self.facts).encode()).hexdigest()[:16]

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices to train on, and indices held out. A clip belongs to one of them for ever."""
        held_out = np.random.default_rng(1).random(len(self)) < HELD_OUT
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_dataset(folder: str | Path) -> Dataset:
    """Read what `make_dataset` has written.

    Raises
    ------
    FileNotFoundError
        If there is nothing in the folder.
    """
    files = sorted(Path(folder).glob("facts-*.json"))
    if not files:
        raise FileNotFoundError(
            f"no training clips in {str(folder)!r}: make them with `python -m riffusion_lab.training data`"
        )
    pixels = [np.load(f.with_name(f.name.replace("facts", "pixels")).with_suffix(".npy"), mmap_mode="r") for f in files]
    return Dataset(pixels, [fact for f in files for fact in json.loads(f.read_text())])
