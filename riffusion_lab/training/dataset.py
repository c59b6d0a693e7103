"""Data sets to train on: pictures in memory-mapped files, with facts, captions and a split.

They are made from the package's own composer, from a folder of sounds, or from a folder of pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..files import locked_folder, write_whole
from ..image import pixels_from_mel
from ..params import PARAMS, SpectrogramParams
from ..spectrogram import mel_from_waveform
from ..values import check_whole
from . import captions, clip_cache, image_folder, sound_folder
from .composer import Composer, Piece
from .effects import EFFECTS
from .render import Renderer
from .vocabulary import CLIP_SECONDS, DRUMS, FUSION, INSTRUMENTS, STYLE_NAMES

# The pictures hold nothing above 10 kHz: at 24 kHz they are the same, for half the work.
RENDER_PARAMS = SpectrogramParams(sample_rate=24_000)
CLIPS_PER_CLASS = {"solo": 280, "style": 340, DRUMS: 500, "effect": 120, FUSION: 1200}
HELD_OUT = 0.08
PLAN = "plan.json"  # how many of the composer's clips there will be
SHARD = 64  # clips made by one task
MEASURE_SHARE = 0.5  # of the captions of a folder's clips that name a measured tempo, and key
MOST_LISTED = 10  # files named in a summary
KEY_PATTERN = re.compile(r"\b[A-Ga-g](?:#|b|♯|♭|[ -](?:sharp|flat))?[ -](?:major|minor)\b")
N_LATENT_COLUMNS = 64  # of a clip


def plan(seed: int = 0) -> list[tuple[str, str]]:
    """(kind, label) of every clip, in random order."""
    jobs = [("solo", name) for name in INSTRUMENTS for _ in range(CLIPS_PER_CLASS["solo"])]
    jobs += [("style", name) for name in STYLE_NAMES for _ in range(CLIPS_PER_CLASS["style"])]
    jobs += [(name, name) for name in (DRUMS, FUSION) for _ in range(CLIPS_PER_CLASS[name])]
    jobs += [("effect", name) for name in EFFECTS for _ in range(CLIPS_PER_CLASS["effect"])]
    return [jobs[i] for i in np.random.default_rng(seed).permutation(len(jobs))]


_renderer: Renderer | None = None  # one for each process: loading the soundfont takes a second


def make_sound(kind: str, label: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Compose and render one clip: (mono waveform at 24 kHz, facts)."""
    global _renderer
    rng = np.random.default_rng([seed, 1])
    if kind == "effect":
        return EFFECTS[label](rng, RENDER_PARAMS.sample_rate).astype(np.float32), {"kind": kind, "label": label}
    piece = _compose(kind, label, rng)
    _renderer = _renderer or Renderer(RENDER_PARAMS.sample_rate)
    return _renderer.render(piece), piece.facts


def _compose(kind: str, label: str, rng: np.random.Generator) -> Piece:
    composer = Composer(rng)
    alone = {"solo": composer.solo, "style": composer.in_style}
    return alone[kind](label) if kind in alone else {DRUMS: composer.drum_beat, FUSION: composer.fusion}[kind]()


def composed_captions(n: int, seed: int = 0) -> list[str]:
    """Captions of `n` pieces that are composed for this, but not rendered."""
    jobs = plan(seed)
    rng = np.random.default_rng([seed, 2])
    texts = []
    for i in range(n):
        kind, label = jobs[i % len(jobs)]
        is_effect = kind == "effect"
        facts = {"kind": kind, "label": label} if is_effect else _compose(kind, label, rng).facts
        texts.append(captions.caption(facts, rng))
    return texts


def make_shard(jobs: list[tuple[str, str]], first_seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
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


def _compose_clips(folder: Path, executor: Executor, seed: int) -> None:
    """Make the composer's whole data set; see `Dataset.from_composer`."""
    if (folder / clip_cache.SETTINGS).exists():
        raise ValueError(f"{str(folder)!r} holds a data set made from files: use another folder for the composer's")
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder, clip_cache.in_use(folder)):
        _compose_missing(folder, executor, seed)


def _compose_missing(folder: Path, executor: Executor, seed: int) -> None:
    """Make those of the composer's clips that are not there yet, shard by shard."""
    jobs = plan(seed)
    _check_seed(folder, seed * len(jobs))
    write_whole(folder / PLAN, json.dumps({"seed": seed, "n_clips": len(jobs)}).encode())
    shards = {i // SHARD: jobs[i : i + SHARD] for i in range(0, len(jobs), SHARD)}
    todo = {
        n: executor.submit(make_shard, shard, seed * len(jobs) + n * SHARD)
        for n, shard in shards.items()
        if not _facts_file(folder, n).exists()
    }
    try:
        for n in tqdm(list(todo), desc="clips", unit_scale=SHARD):
            pixels, facts = todo.pop(n).result()  # a future keeps its result, 16 MB, as long as it is kept
            clip_cache.save_array(folder / f"pixels-{n:04d}.npy", pixels)
            # Written last: says that the shard is whole
            write_whole(_facts_file(folder, n), json.dumps(facts).encode())
    finally:
        for future in todo.values():
            future.cancel()


def _check_seed(folder: Path, first_seed: int) -> None:
    """Raise a ValueError if the first clip in a folder was not composed with this seed."""
    file = next(folder.glob("facts-*.json"), None)
    if file is None:
        return
    n = int(file.stem.removeprefix("facts-"))
    if json.loads(file.read_text())[0].get("seed") not in (None, first_seed + n * SHARD):
        raise ValueError(f"{str(folder)!r} holds clips that were composed with another seed: use another folder")


def _facts_file(folder: Path, n: int) -> Path:
    return folder / f"facts-{n:04d}.json"


def _check_complete(folder: Path, facts: list[dict[str, Any]]) -> None:
    """Raise a FileNotFoundError if the composer's data set in a folder is not finished.

    Earlier versions wrote no plan: if their clips are the first ones of today's, they are taken to be a part of it.
    """
    file = folder / PLAN
    if file.exists():
        planned = json.loads(file.read_text())
        seed, n_clips = planned["seed"], planned["n_clips"]
    else:
        seed = facts[0].get("seed", 0) // len(plan())
        jobs = plan(seed)
        made = [(fact.get("kind"), fact.get("label")) for fact in facts]
        n_clips = len(jobs) if made == jobs[: len(made)] else len(made)
    if len(facts) < n_clips:
        raise FileNotFoundError(
            f"the data set in {str(folder)!r} is not complete: {len(facts)} of {n_clips} clips are composed. To go on, "
            f"run `python -m riffusion_lab.training data --set seed={seed}` with the --folder that it is in, or call "
            f"Dataset.from_composer({str(folder)!r}, executor, seed={seed})"
        )


@dataclass(frozen=True)
class Dataset:
    """Clips of 5.12 s to train on or to judge by: pictures, facts, captions, and a split.

    Make one with `from_folder`, `from_images` or `from_composer`; read it again with `load`. The pictures stay on disk.
    """

    files: list[Path]  # `.npy` files with pictures [shape=(n, 512, 512), uint8]
    places: np.ndarray  # [shape=(n_clips, 2), int64]: for each clip the number of its file, and its row there
    facts: list[dict[str, Any]]  # of each clip
    report: dict[str, Any] = field(default_factory=dict)  # how it was made: see `summary`

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        cache: str | os.PathLike[str],
        *,
        hop_s: float = CLIP_SECONDS,
        on_beat: bool = False,
        silence_db: float = -60.0,
        max_similarity: float | None = clip_cache.MAX_SIMILARITY,
        label_from_folder: bool = False,
        executor: Executor | None = None,
        strict: bool = False,
    ) -> Dataset:
        """Make a data set from a folder of sound files of any format, length and sample rate, and its sub-folders.

        The sounds are mixed to mono and cut into clips of 5.12 s, which are drawn as Riffusion draws them. Each picture
        is scaled to its own maximum, so the level of a sound makes no difference; the maximum is kept in the facts.

        A caption is taken from the first of these that has one: ``captions.jsonl`` (in the folder or a sub-folder, one
        line ``{"file": "song.mp3", "caption": "slow piano"}`` for each file, with a path relative to the list, and if
        you like a "label"); a file ``song.txt`` beside ``song.mp3``; the file's tags (genre, title, comment); its name,
        or that of its sub-folder. Facts say which. Captions are read anew at every call, pictures only where missing.

        Tempo and key are measured in every minute of a sound; where they are clear, they are facts, and words that
        `caption` adds at times.

        Files, not clips, are split into training and held out: by a hash of the name, 8 % of them and at least one are
        held out. Files added later move no other. A single file is split by time: its last 8 % are held out, and
        stay so when other files come.

        Interrupted, it keeps the files that are done; call it again to go on. Files that have changed (by size and
        time) are made again, and files that are gone leave the data set. Other settings need another cache.

        Parameters
        ----------
        folder : path
            With sound files: WAV, FLAC, Ogg, MP3, AIFF, and with ffmpeg installed others. Hidden files are left out.
        cache : path
            A new folder for the data set, or the one that was begun: 0.26 MB a clip, 0.18 GB an hour.
        hop_s : float
            Seconds from one cut to the next. Less than 5.12 gives clips that overlap: shifting a sound in time is an
            augmentation that keeps its caption true. (A gain would change nothing, and no sound is reversed in time.)
        on_beat : bool
            Begin every clip on a beat, at least `hop_s` after the one before; at equal steps where no beat is steady.
        silence_db : float
            A clip with a silence of more than half its length is dropped: frames of 0.1 s with an RMS level below this
            (dBFS).
        max_similarity : float or None
            Drop near-duplicates: clips whose pictures, made small, correlate by more than this with those of another
            clip, as they are (not shifted in time). None keeps them.
        label_from_folder : bool
            Use the name of a file's sub-folder as its label, where ``captions.jsonl`` has none. A caption that is only
            the file's name gets the label as its first words, unless it has them.
        executor : concurrent.futures.Executor, optional
            Does the work in parallel: ``ProcessPoolExecutor(mp_context=get_context("spawn"))`` on one machine, or
            ``client.get_executor()`` of dask on a cluster whose machines share the folders. Default: this process.
        strict : bool
            Raise an error at the first file that cannot be read completely, instead of skipping it (or keeping what is
            left of a truncated one), and if ``captions.jsonl`` names a file that is missing.

        Returns
        -------
        Dataset
            Its summary is also printed.

        Raises
        ------
        OSError
            If the folder is missing or a file, or another process is making a data set in the cache; with `strict`, if
            a file cannot be read.
        ValueError
            If there are no sound files or too few clips, if a list of captions is wrong, or if the cache holds
            something else.
        RuntimeError
            If a worker process was killed.
        """
        sound_folder.make_from_sounds(
            Path(folder),
            Path(cache),
            hop_s=hop_s,
            on_beat=on_beat,
            silence_db=silence_db,
            max_similarity=max_similarity,
            label_from_folder=label_from_folder,
            executor=executor,
            strict=strict,
        )
        return cls._load_and_report(cache)

    @classmethod
    def from_images(
        cls,
        folder: str | os.PathLike[str],
        cache: str | os.PathLike[str],
        *,
        max_similarity: float | None = clip_cache.MAX_SIMILARITY,
        executor: Executor | None = None,
        strict: bool = False,
    ) -> Dataset:
        """Make a data set from a folder of spectrogram pictures in the image-folder layout of 🤗 datasets.

        Pictures are 512 pixels high; wider ones than 512 are cut into clips, without the rest. They must be drawn with
        Riffusion's params, which their EXIF tags say (pictures without tags are taken to be). Captions come from a
        ``metadata.jsonl`` beside the pictures, with lines ``{"file_name": "0001.png", "text": "slow piano"}``; else
        from a .txt file or the name, as in `from_folder`. Sub-folders ``train`` and ``test`` are the split if there are
        both.

        Parameters
        ----------
        folder : path
        cache : path
            A new folder for the data set, or the one that was begun.
        max_similarity, executor
            See `from_folder`.
        strict : bool
            Raise an error at the first picture that cannot be used, instead of skipping it, and if ``metadata.jsonl``
            names a file that is missing.

        Returns
        -------
        Dataset
            Its summary is also printed.

        Raises
        ------
        OSError, ValueError, RuntimeError
            See `from_folder`.
        """
        image_folder.make_from_images(
            Path(folder), Path(cache), max_similarity=max_similarity, executor=executor, strict=strict
        )
        return cls._load_and_report(cache)

    @classmethod
    def from_composer(cls, folder: str | os.PathLike[str], executor: Executor, *, seed: int = 0) -> Dataset:
        """Make the data set of the model that ships: pieces composed, rendered and drawn as loops.

        What is already there is kept, so that making it can be interrupted and taken up again.

        Parameters
        ----------
        folder : path
            Takes `pixels-*.npy` and `facts-*.json`.
        executor : concurrent.futures.Executor
            Where the work is done: `ProcessPoolExecutor()`, or dask's `client.get_executor()` on a cluster.
        seed : int
            Another one makes other clips, none of them twice.

        Returns
        -------
        Dataset

        Raises
        ------
        OSError
            If another process is making a data set in the folder.
        ValueError
            If the folder holds something else, or clips of another seed.
        """
        _compose_clips(Path(folder), executor, check_whole("seed", seed, 0, np.inf))
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Dataset:
        """Read a data set: the folder of `from_composer`, or the cache of `from_folder` or `from_images`.

        Raises
        ------
        FileNotFoundError
            If there is none in the folder, or it is not complete.
        """
        folder = Path(folder)
        if (folder / clip_cache.SETTINGS).exists():
            return cls._load_cache(folder)
        facts_files = sorted(folder.glob("facts-*.json"))
        if not facts_files:
            raise FileNotFoundError(
                f"no training clips in {str(folder)!r}: make them with `python -m riffusion_lab.training data`, or a "
                "data set of your own with Dataset.from_folder"
            )
        facts: list[dict[str, Any]] = []
        places: list[tuple[int, int]] = []
        for number, file in enumerate(facts_files):
            in_file = json.loads(file.read_text())
            facts += in_file
            places += [(number, row) for row in range(len(in_file))]
        _check_complete(folder, facts)
        pixel_files = [file.with_name(file.name.replace("facts", "pixels")).with_suffix(".npy") for file in facts_files]
        return cls(pixel_files, np.array(places).reshape(-1, 2), facts)

    @classmethod
    def _load_cache(cls, folder: Path) -> Dataset:
        index = clip_cache.read_index(folder)
        if not index:
            raise FileNotFoundError(
                f"the data set in {str(folder)!r} is not complete: call Dataset.from_folder or from_images again with "
                "the same settings to go on"
            )
        facts = index.pop("facts")
        files = [folder / name for name in index.pop("files")]
        places = np.array([(fact.pop("file"), fact.pop("row")) for fact in facts])
        return cls(files, places.reshape(-1, 2), facts, index)

    @classmethod
    def _load_and_report(cls, cache: str | os.PathLike[str]) -> Dataset:
        dataset = cls.load(cache)
        print(dataset.summary())
        return dataset

    def __len__(self) -> int:
        return len(self.facts)

    def picture(self, i: int) -> np.ndarray:
        """Picture `i` [shape=(512, 512), uint8], memory-mapped. Opening the file each time takes 0.1 ms."""
        number, row = self.places[i]
        pictures: np.ndarray = np.load(self.files[number], mmap_mode="r")
        return pictures[row]

    def pictures(self, indices: Iterable[int] | np.ndarray) -> torch.Tensor:
        """Pictures as networks take them [shape=(n, 1, 512, 512), float32, range [-1, 1]]."""
        pixels = np.stack([self.picture(int(i)) for i in indices])
        return torch.from_numpy(pixels).float()[:, None] / 127.5 - 1

    def caption(self, i: int, rng: np.random.Generator, *, full: bool = False) -> str:
        """Caption of clip `i`.

        Parameters
        ----------
        i : int
        rng : np.random.Generator
        full : bool
            Say all that is known. Otherwise the composer's clips get one of many captions, and a folder's clips their
            tempo and key at times, where they were measured and the caption does not name them itself.

        Returns
        -------
        str
            Empty if nothing is known.
        """
        facts = self.facts[i]
        if "caption" not in facts:
            composed: str = captions.caption(facts, rng, full=full)
            return composed
        parts = [facts["caption"]]
        for measure in _measured_words(facts):
            if full or rng.random() < MEASURE_SHARE:
                parts.append(measure)
        return ", ".join(part for part in parts if part)

    def label(self, i: int) -> str | None:
        """Class of clip `i`, by which draws are balanced and models judged; None if it has none."""
        label: str | None = self.facts[i].get("label")
        return label

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices to train on, and indices held out. A clip belongs to one of them for ever.

        Clips that overlap held-out ones of the same file are in neither.
        """
        if self.facts and "split" in self.facts[0]:
            parts = np.array([str(facts["split"]) for facts in self.facts])
            return np.flatnonzero(parts == clip_cache.TRAIN), np.flatnonzero(parts == clip_cache.TEST)
        held_out = np.random.default_rng(1).random(len(self)) < HELD_OUT
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def columns_per_bar(self, i: int) -> int | None:
        """Latent columns by which clip `i` may be rolled in time, any number of times, and its caption stay true.

        Returns
        -------
        int or None
            Those of a bar, of the whole clip (64) if a bar is no whole number of columns, or 1 for a loop without
            bars. None if the clip is no loop.
        """
        facts = self.facts[i]
        if "caption" in facts:
            return N_LATENT_COLUMNS if facts.get("loop") else None
        if "bpm" not in facts:
            return 1  # rain has no bars
        n_bars = round(facts["bpm"] * CLIP_SECONDS / 60) / facts["metre"]
        return round(N_LATENT_COLUMNS / n_bars) if n_bars in (1, 2, 4) else N_LATENT_COLUMNS

    def fingerprint(self) -> str:
        """Hash of which clips these are, in their order: what is computed from them, such as latents, depends on it."""
        order = [file.name for file in self.files], self.places.tolist()
        return hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16]

    def summary(self) -> str:
        """What the data set consists of, and what was left out, in some lines."""
        training, held_out = self.split()
        minutes = len(self) * CLIP_SECONDS / 60
        first = (
            f"{len(self)} clips of 5.12 s ({minutes:.1f} min): {len(training)} to train on, {len(held_out)} held out"
        )
        return "\n".join([first, *_report_lines(self)]) if self.report else first

    def save_images(self, folder: str | os.PathLike[str]) -> None:
        """Write all clips in the image-folder layout of 🤗 datasets, for other trainers.

        Sub-folders ``train`` and ``test`` get PNG files, with the EXIF tags that this package and Riffusion need to
        play them, and a ``metadata.jsonl`` with their full captions. Clips that are in neither part are left out.

        Parameters
        ----------
        folder : path
            A new or an empty folder.

        Raises
        ------
        ValueError
            If it holds something.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{str(folder)!r} is not an empty folder: pass a new one")
        rng = np.random.default_rng(0)
        for part, indices in zip((clip_cache.TRAIN, clip_cache.TEST), self.split(), strict=True):
            (folder / part).mkdir(parents=True)
            rows = []
            for i in tqdm(indices, desc=part):
                name = f"{i:06d}.png"
                self._save_image(int(i), folder / part, name)
                rows.append({"file_name": name, "text": self.caption(int(i), rng, full=True)})
            image_folder.write_metadata(folder / part, rows)

    def _save_image(self, i: int, folder: Path, name: str) -> None:
        maximum = self.facts[i].get("maximum")
        is_loop = self.columns_per_bar(i) is not None
        image_folder.save_clip(folder, name, self.picture(i), params=PARAMS, maximum=maximum, loop=is_loop)


def _measured_words(facts: dict[str, Any]) -> list[str]:
    """Tempo and key as words, where they are known and the caption does not name them itself."""
    words = []
    caption = facts["caption"]
    if facts.get("tempo_bpm") and "bpm" not in caption.lower():
        words.append(f"{facts['tempo_bpm']:.0f} bpm")
    if facts.get("key") and not KEY_PATTERN.search(caption):
        words.append(facts["key"])
    return words


def _report_lines(dataset: Dataset) -> list[str]:
    """The part of a summary that says how a folder was read."""
    report = dataset.report
    facts = dataset.facts
    lines = [f"From {len(dataset.files)} of {report['n_files']} files; captions: {report['captions']}."]
    if n_named := report.get("n_named_folders"):
        lines.append(f"The name of the sub-folder, which is the label, was added to the captions of {n_named} file(s).")
    lines += _time_split_lines(dataset)
    measured = _count(facts, lambda fact: fact["tempo_bpm"]), _count(facts, lambda fact: fact["key"])
    lines.append(f"Tempo measured in {measured[0]} clips, key in {measured[1]}.")
    if "is_on_beat" in facts[0]:
        n_on_beat = _count(facts, lambda fact: fact["is_on_beat"])
        lines.append(f"Cut on the beat: {n_on_beat} clips; the others at equal steps, for want of a steady beat.")
    if report["dropped"]:
        dropped = ", ".join(f"{n} {reason}" for reason, n in report["dropped"].items())
        lines.append(f"Left out: {dropped}.")
    if report["n_ignored"]:
        lines.append(f"{report['n_ignored']} other files were not read.")
    lines += _named("Skipped", list(report["skipped"].values()))
    lines += _named("Note", [note for notes in report["notes"].values() for note in notes])
    return lines


def _time_split_lines(dataset: Dataset) -> list[str]:
    """Which files are split by time, since each was once the only one."""
    if len(dataset.files) == 1:
        return ["There is a single file: its last clips are held out, and those that overlap them not used."]
    names = {fact["source"] for fact in dataset.facts} & dataset.report.get("held_out_from_s", {}).keys()
    return [
        f"{name} was once the only file: its last clips stay held out, those that overlap them are not used."
        for name in sorted(names)
    ]


def _count(facts: list[dict[str, Any]], is_counted: Callable[[dict[str, Any]], object]) -> int:
    return sum(bool(is_counted(fact)) for fact in facts)


def _named(word: str, messages: list[str]) -> list[str]:
    """A line for each of the first messages, and the number of the others."""
    lines = [f"{word}: {message}" for message in messages[:MOST_LISTED]]
    n_more = len(messages) - MOST_LISTED
    return [*lines, f"{word}: {n_more} more"] if n_more > 0 else lines
