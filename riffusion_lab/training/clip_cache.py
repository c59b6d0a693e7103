"""Clips made from files: an entry in the cache for each source file, and an index of all clips.

An entry is named by the source file's name, size and time of change. It consists of its pictures, their thumbnails,
and facts, which are written last: an entry with facts is whole. So making a data set can be interrupted at any point.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..files import LOCK, locked_folder, write_whole
from ..values import check_number, warn
from .caption_files import Caption, count_sources
from .vocabulary import CLIP_SECONDS

SIZE = 512  # rows and columns of a picture
INDEX = "clips.json"
SETTINGS = "settings.json"
ENTRIES = "entries"
OURS = {LOCK, ENTRIES}  # what a cache holds before its settings are written
THUMBNAIL = 32  # rows and columns
# Correlation of thumbnails above which clips are near-duplicates. Measured on 160 clips of the composer: different
# clips have at most 0.66; the same one as MP3 has at least 0.95, and shifted by 25 ms at least 0.92 in 19 of 20 cases.
MAX_SIMILARITY = 0.9
BLOCK = 256  # thumbnails compared at once
HELD_OUT = 0.08  # of the files, as of the composer's clips
TIME_TOLERANCE_S = 1e-3
TRAIN = "train"
TEST = "test"
Results = Generator[tuple["Source", str | None], None, None]


class UnreadableFile(Exception):
    """A source file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Source:
    """A file that clips are made from."""

    name: str  # path relative to the folder, with "/"
    path: str
    size: int  # bytes
    modified_ns: int

    @classmethod
    def of(cls, path: Path, folder: Path) -> Source:
        """Look at a file inside a folder."""
        status = path.stat()
        return cls(path.relative_to(folder).as_posix(), str(path), status.st_size, status.st_mtime_ns)

    @property
    def name_key(self) -> str:
        """Hash of the name, which begins the names of its entries."""
        return _hash(self.name)[:16]

    @property
    def key(self) -> str:
        """Name of its entry: another one when the file changes."""
        return f"{self.name_key}-{_hash(f'{self.size} {self.modified_ns}')[:8]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()


@dataclass
class Entry:
    """What was made from a source file, without the pictures."""

    name: str
    key: str
    facts: list[dict[str, Any]] = field(default_factory=list)  # of each clip
    dropped: dict[str, int] = field(default_factory=dict)  # reason → number of clips
    notes: list[str] = field(default_factory=list)  # what is odd about the file
    tags: dict[str, str] = field(default_factory=dict)


class EntryWriter:
    """Writes an entry picture by picture; use it in a ``with`` block, which completes or discards the entry.

    Parameters
    ----------
    folder : Path
        Of the entries.
    source : Source
    """

    def __init__(self, folder: Path, source: Source) -> None:
        self.entry = Entry(source.name, source.key)
        self._folder = folder
        self._part = folder / f".{uuid.uuid4().hex}.part"
        self._thumbnails: list[np.ndarray] = []

    def __enter__(self) -> EntryWriter:
        self._file = self._part.open("wb")
        self._write_header()
        return self

    def add(self, picture: np.ndarray, facts: dict[str, Any]) -> None:
        """Append a picture [shape=(512, 512), uint8] and its facts."""
        self._file.write(np.ascontiguousarray(picture).tobytes())
        self._thumbnails.append(thumbnail(picture))
        self.entry.facts.append(facts)

    def drop(self, reason: str) -> None:
        """Count a clip that is left out."""
        self.entry.dropped[reason] = self.entry.dropped.get(reason, 0) + 1

    def __exit__(self, error: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        try:
            if error is None:
                self._complete()
        finally:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _complete(self) -> None:
        self._file.seek(0)
        self._write_header()  # of the same length: NumPy leaves room for the number of pictures
        self._file.close()
        os.replace(self._part, self._folder / f"{self.entry.key}.npy")
        thumbnails = np.array(self._thumbnails, np.float16).reshape(-1, THUMBNAIL**2)
        save_array(self._folder / f"{self.entry.key}.thumbnails.npy", thumbnails)
        facts = json.dumps(vars(self.entry), ensure_ascii=False)
        write_whole(self._folder / f"{self.entry.key}.json", facts.encode("utf-8", errors="surrogateescape"))

    def _write_header(self) -> None:
        shape = (len(self._thumbnails), SIZE, SIZE)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an `.npy` file that appears whole or not at all."""
    file = io.BytesIO()
    np.save(file, array)
    write_whole(path, file.getvalue())


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Small copy of a picture, to compare it with others.

    Parameters
    ----------
    picture : np.ndarray [shape=(512, 512), uint8]

    Returns
    -------
    np.ndarray [shape=(1024,), float32]
        Means over 16 × 16 pixels, less the mean of each row, of length 1, so that the dot product of two thumbnails is
        their correlation. Zero if nothing changes along time.
    """
    side = SIZE // THUMBNAIL
    small = picture.reshape(THUMBNAIL, side, THUMBNAIL, side).mean(axis=(1, 3), dtype=np.float32)
    small -= small.mean(axis=1, keepdims=True)
    length = float(np.linalg.norm(small))
    return small.reshape(-1) / max(length, 1.0)


def near_duplicates(thumbnails: Iterable[np.ndarray], max_similarity: float) -> np.ndarray:
    """Which clips are nearly the same as an earlier one that is kept.

    Each is compared with all kept before it, in blocks: the time grows with the square of their number (7,000 clips,
    ten hours, take seconds), the memory only with the number itself (4 KB a clip).

    Parameters
    ----------
    thumbnails : iterable of np.ndarray [shape=(n, 1024)]
        For each file those of its clips; see `thumbnail`.
    max_similarity : float
        The largest correlation of clips that are both kept.

    Returns
    -------
    np.ndarray [shape=(number of clips,), bool]
    """
    kept: list[np.ndarray] = []
    found: list[np.ndarray] = []
    for group in thumbnails:
        for start in range(0, len(group), BLOCK):
            block = group[start : start + BLOCK].astype(np.float32)
            is_double = np.zeros(len(block), bool)
            for earlier in kept:
                is_double |= (earlier @ block.T).max(axis=0) > max_similarity
            similar = block @ block.T > max_similarity
            for i in range(1, len(block)):
                is_double[i] |= bool((similar[i, :i] & ~is_double[:i]).any())
            found.append(is_double)
            _append(kept, block[~is_double])
    return np.concatenate(found) if found else np.zeros(0, bool)


def _append(blocks: list[np.ndarray], rows: np.ndarray) -> None:
    """Append rows to the last block while that is small: few large products are faster than many small ones."""
    if blocks and len(blocks[-1]) < 8 * BLOCK:
        blocks[-1] = np.concatenate([blocks[-1], rows])
    elif len(rows):
        blocks.append(rows)


def in_use(folder: Path) -> str:
    """The message of an error."""
    return f"another process is making the data set in {str(folder)!r}: wait for it, or use another folder"


@contextmanager
def open_cache(cache: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make a cache folder, or check that it belongs to the same data set, made with the same settings.

    No other process may use it meanwhile: each deletes what the other is writing.

    Raises
    ------
    OSError
        If another process uses it.
    ValueError
        If it holds something else.
    """
    if cache.exists() and not cache.is_dir():
        raise NotADirectoryError(f"cache {str(cache)!r} is a file: pass a folder for the data set")
    if cache.is_dir() and not (cache / SETTINGS).exists() and {file.name for file in cache.iterdir()} - OURS:
        raise ValueError(f"cache {str(cache)!r} holds other files: pass a new or an empty folder")
    cache.mkdir(parents=True, exist_ok=True)
    with locked_folder(cache, in_use(cache)):
        _check_cache(cache, settings)
        yield


def _check_cache(cache: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new cache, or compare with them; see `open_cache`."""
    file = cache / SETTINGS
    (cache / ENTRIES).mkdir(exist_ok=True)
    if not file.exists():
        write_whole(file, json.dumps(settings, indent=1).encode())
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        old = ", ".join(f"{name}={before.get(name)!r}" for name in changed)
        new = ", ".join(f"{name}={settings[name]!r}" for name in changed)
        raise ValueError(
            f"cache {str(cache)!r} holds a data set made with {old}, not {new}: use another cache folder, or these "
            "settings (if the files have moved, change their folder in settings.json)"
        )
    for part in (cache / ENTRIES).glob("*.part"):
        part.unlink(missing_ok=True)  # what a process was writing when it was killed


def make_entries(
    job: Callable[[Source], str | None],
    sources: list[Source],
    cache: Path,
    *,
    executor: Executor | None,
    strict: bool,
) -> dict[str, str]:
    """Make the entries that are not there yet.

    Parameters
    ----------
    job : callable
        Makes one entry; returns why the file cannot be used, or None. Must be picklable for processes.
    sources : list of Source
    cache : Path
    executor : concurrent.futures.Executor or None
        None: one file after another in this process.
    strict : bool
        Raise an error at the first file that cannot be used.

    Returns
    -------
    dict
        Names of the files that cannot be used, and why.

    Raises
    ------
    concurrent.futures.BrokenExecutor
        If a worker process was killed. It is a RuntimeError.
    """
    missing = [source for source in sources if not (cache / ENTRIES / f"{source.key}.json").exists()]
    skipped: dict[str, str] = {}
    results = _one_by_one(job, missing) if executor is None else _submitted(job, missing, executor)
    bar = tqdm(total=len(sources), initial=len(sources) - len(missing), desc="files", unit="file")
    with bar, closing(results):
        try:
            for source, reason in results:
                if reason and strict:
                    raise OSError(f"{reason}; strict=False would skip this file")
                if reason:
                    skipped[source.name] = reason
                bar.update()
        except BaseException as error:
            error.add_note(f"The files done so far are kept in {str(cache)!r}: call again with the same settings.")
            raise
    return dict(sorted(skipped.items()))


def _one_by_one(job: Callable[[Source], str | None], sources: list[Source]) -> Results:
    for source in sources:
        yield source, job(source)


def _submitted(job: Callable[[Source], str | None], sources: list[Source], executor: Executor) -> Results:
    futures = {}
    try:
        for source in sources:
            futures[executor.submit(_in_worker, job, source)] = source
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenExecutor as error:
        raise BrokenExecutor(
            "a worker process was killed, perhaps because memory ran out: call again with a new executor to go on "
            "with the files that are missing, with fewer workers if it happens again"
        ) from error
    finally:
        for future in futures:
            future.cancel()


def _in_worker(job: Callable[[Source], str | None], source: Source) -> str | None:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there are other workers
    return job(source)


def read_entries(sources: Iterable[Source], cache: Path) -> list[Entry]:
    """Entries of these files; files that could not be used have none."""
    entries = []
    for source in sources:
        file = cache / ENTRIES / f"{source.key}.json"
        if file.exists():
            entries.append(Entry(**json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))))
    return entries


def read_index(cache: Path) -> dict[str, Any]:
    """The index of all clips; empty if there is none yet."""
    file = cache / INDEX
    if not file.exists():
        return {}
    index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
    return index


def write_index(cache: Path, index: dict[str, Any], sources: Iterable[Source]) -> None:
    """Write the index, then delete the entries of files that have changed since."""
    text = json.dumps(index, ensure_ascii=False)
    write_whole(cache / INDEX, text.encode("utf-8", errors="surrogateescape"))
    for source in sources:
        for file in (cache / ENTRIES).glob(f"{source.name_key}-*"):
            if not file.name.startswith(source.key):
                file.unlink(missing_ok=True)


def check_executor(executor: object) -> None:
    """Raise a TypeError for an executor that cannot be one, such as a number of workers."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must be a concurrent.futures.Executor or None, not {executor!r}")


def check_similarity(max_similarity: float | None) -> None:
    """Raise a TypeError or ValueError for a `max_similarity` that `near_duplicates` cannot take."""
    if max_similarity is not None:
        check_number("max_similarity", max_similarity, 0, 1)


def keep_different(entries: list[Entry], cache: Path, earlier: Iterable[str], max_similarity: float | None) -> None:
    """Drop near-duplicates from entries.

    Parameters
    ----------
    entries : list of Entry
        Each fact gets the row of its picture. Changed in place.
    cache : Path
    earlier : iterable of str
        Names of files that were in the data set before: their clips have precedence.
    max_similarity : float or None
        See `near_duplicates`; None keeps all.
    """
    for entry in entries:
        for row, facts in enumerate(entry.facts):
            facts["row"] = row
    if max_similarity is None:
        return
    before = set(earlier)
    ordered = sorted(entries, key=lambda entry: (entry.name not in before, entry.name))
    thumbnails = (np.load(cache / ENTRIES / f"{entry.key}.thumbnails.npy") for entry in ordered)
    is_double = near_duplicates(thumbnails, max_similarity)
    start = 0
    for entry in ordered:
        stop = start + len(entry.facts)
        entry.facts = [facts for facts, drop in zip(entry.facts, is_double[start:stop], strict=True) if not drop]
        if n_dropped := stop - start - len(entry.facts):
            entry.dropped["near-duplicates"] = n_dropped
        start = stop


def held_out_share(name: str) -> float:
    """A number from 0 to 1 by which a file is held out or not: it depends on the file's name alone."""
    return int(_hash(name)[16:32], 16) / 16**16


def split_files(names: list[str], before: dict[str, str], *, needs_test: bool = True) -> dict[str, str]:
    """Assign files to training or held-out.

    Parameters
    ----------
    names : list of str
        At least two.
    before : dict
        Name → "train" or "test": assignments made earlier, which are kept.
    needs_test : bool
        Whether at least one file must be held out.

    Returns
    -------
    dict
        Name → "train" or "test", at least one of each (see `needs_test`). New files are assigned by a hash of their
        name, so adding files never moves another.
    """
    split = {name: before.get(name) or (TEST if held_out_share(name) < HELD_OUT else TRAIN) for name in names}
    for wanted, other, choose in ((TEST, TRAIN, min), (TRAIN, TEST, max)):
        if wanted not in split.values() and (wanted == TRAIN or needs_test):
            movable = [name for name in names if name not in before] or names
            moved = choose(movable, key=held_out_share)
            split[moved] = wanted
            if moved in before:
                warn(f"{moved} was in the part {other!r} of the data set, and is now in {wanted!r}, which had no files")
    return split


def split_by_time(facts: list[dict[str, Any]], duration_s: float, held_out_from_s: float) -> list[str | None]:
    """Split the clips of a file: those from a time on are held out, and those that overlap them are not used.

    Parameters
    ----------
    facts : list of dict
        "start_s" is used.
    duration_s : float
        Of each clip.
    held_out_from_s : float
        Where the first clip that is held out begins.

    Returns
    -------
    list of {"train", "test", None}
    """

    def part(start_s: float) -> str | None:
        if start_s >= held_out_from_s - TIME_TOLERANCE_S:
            return TEST
        return TRAIN if start_s + duration_s <= held_out_from_s + TIME_TOLERANCE_S else None

    return [part(fact["start_s"]) for fact in facts]


def time_to_hold_out(facts: list[dict[str, Any]]) -> float:
    """Where in a single file the clips begin that are held out: the last 8 %, at least one.

    Parameters
    ----------
    facts : list of dict
        Of all clips, in order of time; at least one.

    Returns
    -------
    float
        In seconds.
    """
    n_held_out = max(1, round(HELD_OUT * len(facts)))
    start_s: float = facts[-n_held_out]["start_s"]
    return start_s


def make_index(
    entries: list[Entry],
    captions: dict[str, Caption],
    cache: Path,
    *,
    skipped: dict[str, str],
    max_similarity: float | None,
) -> dict[str, Any]:
    """Put the clips of all entries into one list: without near-duplicates, with captions, split.

    Parameters
    ----------
    entries : list of Entry
    captions : dict
        Name of the file → caption.
    cache : Path
    skipped : dict
        Name of the file → why it could not be read.
    max_similarity : float or None
        See `near_duplicates`.

    Returns
    -------
    dict
        What `Dataset.load` reads.

    Raises
    ------
    ValueError
        If there are too few clips.
    """
    before = read_split(cache)
    keep_different(entries, cache, before.parts, max_similarity)
    used = [entry for entry in entries if entry.facts]
    if not used:
        raise ValueError(_no_clips(entries, skipped))
    try:
        split, split_of_clips = split_entries(used, before)
    except ValueError as error:
        if not skipped:
            raise
        first = next(iter(skipped.values()))
        raise ValueError(f"{error}. {len(skipped)} other file(s) cannot be read, such as: {first}") from error
    facts: list[dict[str, Any]] = []
    files: list[str] = []
    for number, entry in enumerate(used):
        caption = captions[entry.name]
        words = {"caption": caption.text, "caption_source": caption.source, "label": caption.label}
        facts += [fact | words | {"file": number} for fact in entry.facts]
        files.append(f"{ENTRIES}/{entry.key}.npy")
    for fact, part in zip(facts, split_of_clips, strict=True):
        fact["split"] = part
    return {
        "files": files,
        "facts": facts,
        "split": split.parts,
        "held_out_from_s": split.held_out_from_s,
        "skipped": skipped,
        "notes": {entry.name: entry.notes for entry in entries if entry.notes},
        "dropped": count_dropped(entries),
        "n_files": len(entries) + len(skipped),
        "captions": count_sources(captions[entry.name] for entry in used),
        "n_named_folders": sum(captions[entry.name].names_folder for entry in used),
    }


@dataclass(frozen=True)
class Split:
    """Which files, and which parts of files, are held out."""

    parts: dict[str, str] = field(default_factory=dict)  # name of the file → "train" or "test"
    # Name of the file → where its clips begin that are held out, in seconds: of files that were once the only one
    held_out_from_s: dict[str, float] = field(default_factory=dict)


def read_split(cache: Path) -> Split:
    """The split that the index in a cache has; empty if there is none yet."""
    index = read_index(cache)
    parts = index.get("split", {})
    if "held_out_from_s" in index:
        return Split(parts, index["held_out_from_s"])
    starts: dict[str, list[float]] = {}  # an earlier version left it to the clips to say which are held out
    for fact in index.get("facts", []):
        if fact["split"] == TEST and parts.get(fact["source"]) == TRAIN:
            starts.setdefault(fact["source"], []).append(fact["start_s"])
    return Split(parts, {name: min(start_s) for name, start_s in starts.items()})


def split_entries(entries: list[Entry], before: Split) -> tuple[Split, list[str | None]]:
    """Split files and their clips. A clip that was in a part before stays there.

    Parts that the folder itself names are kept if both are there. A single file is split by time, and stays so when
    others come.

    Parameters
    ----------
    entries : list of Entry
        Each with at least one clip.
    before : Split

    Returns
    -------
    split : Split
        Also of the files that were there before.
    parts : list of {"train", "test", None}
        Of each clip, in the order of entries and their facts.

    Raises
    ------
    ValueError
        If there are too few clips.
    """
    if len(entries) == 1:
        split = _split_single(entries[0], before)
    else:
        split = _split_several(entries, before)
    parts = [part for entry in entries for part in _parts_of_clips(entry, split)]
    return Split(before.parts | split.parts, before.held_out_from_s | split.held_out_from_s), parts


def _parts_of_clips(entry: Entry, split: Split) -> list[str | None]:
    if entry.name in split.held_out_from_s:
        return split_by_time(entry.facts, CLIP_SECONDS, split.held_out_from_s[entry.name])
    return [split.parts[entry.name]] * len(entry.facts)


def _split_single(entry: Entry, before: Split) -> Split:
    """The split of a data set of one file: where it was split before, unless one part would be empty now."""
    name = entry.name
    if name in before.held_out_from_s:
        split = Split({name: TRAIN}, {name: before.held_out_from_s[name]})
        if {TRAIN, TEST} <= set(_parts_of_clips(entry, split)):
            return split
    split = Split({name: TRAIN}, {name: time_to_hold_out(entry.facts)})
    if TRAIN not in _parts_of_clips(entry, split):
        raise ValueError(
            f"{len(entry.facts)} clip(s) of a single file: a data set needs at least two that do not overlap, one to "
            "train on and one held out; use more or longer files"
        )
    if name in before.parts:
        warn(
            f"{name} is the only file that is left of the data set, or has changed: its last clips are held out now, "
            "and the others trained on, whatever they were before"
        )
    return split


def _split_several(entries: list[Entry], before: Split) -> Split:
    names = [entry.name for entry in entries]
    by_time = {name: before.held_out_from_s[name] for name in names if name in before.held_out_from_s}
    named = {entry.name: entry.facts[0]["split"] for entry in entries if entry.facts[0].get("split")}
    assigned = before.parts
    if {TRAIN, TEST} <= set(named.values()):
        assigned = assigned | named
    has_held_out = any(TEST in _parts_of_clips(entry, Split({}, by_time)) for entry in entries if entry.name in by_time)
    return Split(split_files(names, assigned, needs_test=not has_held_out), by_time)


def count_dropped(entries: list[Entry]) -> dict[str, int]:
    """Numbers of clips that were left out, by reason."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.dropped)
    return dict(counts)


def _no_clips(entries: list[Entry], skipped: dict[str, str]) -> str:
    reasons = [f"{n} {reason}" for reason, n in count_dropped(entries).items()]
    if skipped:
        reasons.append(f"{len(skipped)} files cannot be read, such as: {next(iter(skipped.values()))}")
    return f"no clips of {len(entries) + len(skipped)} file(s): {'; '.join(reasons)}. Use more, longer or other files"
