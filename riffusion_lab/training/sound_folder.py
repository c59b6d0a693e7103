"""Sound files of any kind → clips of 5.12 s with pictures, captions, tempo and key."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..image import pixels_from_mel
from ..params import PARAMS, SpectrogramParams
from ..resampling import resample
from ..soundfiles import FORMATS, Torn, read_parts
from ..spectrogram import mel_from_waveform
from ..torch_defaults import torch_defaults
from ..values import check_bool, check_number, warn
from . import clip_cache
from .caption_files import LIST, Caption, find_caption, label_by_folder, read_lists, read_tags
from .clip_cache import ENTRIES, Entry, EntryWriter, Source, UnreadableFile, check_similarity
from .sound_measures import find_beats, find_key, silent_share
from .vocabulary import CLIP_SECONDS

RATE = 24_000  # Hz: the pictures hold nothing above 10 kHz, so they are the same as at 44.1 kHz, for half the work
CUT_PARAMS = SpectrogramParams(sample_rate=RATE)
N_CLIP = 512 * CUT_PARAMS.hop_length  # samples
TOLERANCE_S = 0.0005
SECTION_S = 60  # tempo and key are measured in sections of a minute, for both may change
OVERLAP_S = 6  # of sections: a clip may begin in one and end in the next
LEVEL = PARAMS.win_length / CUT_PARAMS.win_length  # amplitudes grow with the samples in a window: 44.1 kHz to 24 kHz
MOST_SILENT = 0.5  # of a clip
TRUNCATED = " s are left"  # end of the warnings of `read_parts`
LEAST_MIXED = 0.5  # power of a mix, as a share of that of channels without correlation
SOUND_SUFFIXES = frozenset(FORMATS) | {
    *(".aac", ".ac3", ".aif", ".aifc", ".alac", ".amr", ".ape", ".au", ".dsf", ".m4a", ".m4b", ".mka", ".mp2", ".mp4"),
    *(".mpc", ".oga", ".opus", ".rf64", ".snd", ".spx", ".tta", ".w64", ".wave", ".webm", ".wma", ".wv"),
}
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
CAPTION_SUFFIXES = frozenset({".txt", ".jsonl"})


@dataclass(frozen=True)
class CutSettings:
    """How sounds are cut into clips: what the pictures in a cache depend on."""

    hop_s: float
    on_beat: bool
    silence_db: float


@dataclass(frozen=True)
class FoundFiles:
    """What a folder contains."""

    sources: list[Source]
    lists: list[Path]  # captions.jsonl
    others: dict[str, int]  # extension → number of files that are not read


def find_files(folder: Path, cache: Path, suffixes: Iterable[str]) -> FoundFiles:
    """Find files in a folder and its sub-folders, without hidden ones; links to folders are followed once.

    Parameters
    ----------
    folder, cache : Path
        The cache may lie inside the folder: it is left out.
    suffixes : iterable of str
        Extensions in lower case, with their dot.

    Raises
    ------
    OSError
        If there is no such folder.
    ValueError
        If it is the cache.
    """
    if not folder.exists():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist: pass the path of a folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file: pass the folder that it is in")
    if folder.resolve() == cache.resolve():
        raise ValueError(f"the cache {str(cache)!r} is the folder that is read: pass another folder for the data set")
    wanted = frozenset(suffixes)
    sources: list[Source] = []
    lists: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(folder, cache.resolve()):
        if path.name == LIST:
            lists.append(path)
        elif path.suffix.lower() in wanted:
            sources.append(Source.of(path, folder))
        elif path.suffix.lower() not in CAPTION_SUFFIXES:
            others[path.suffix.lower() or path.name] += 1
    sources.sort(key=lambda source: source.name)
    return FoundFiles(sources, lists, dict(others))


def _walk(folder: Path, cache: Path) -> Iterator[Path]:
    seen = {cache}
    for parent, folders, files in os.walk(folder, followlinks=True):
        resolved = Path(parent).resolve()
        if resolved in seen:
            folders.clear()
            continue
        seen.add(resolved)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (Path(parent) / name).is_file():
                yield Path(parent) / name


def make_from_sounds(
    folder: Path,
    cache: Path,
    *,
    hop_s: float,
    on_beat: bool,
    silence_db: float,
    max_similarity: float | None,
    label_from_folder: bool,
    executor: Executor | None,
    strict: bool,
) -> None:
    """Make a data set in `cache`; see `Dataset.from_folder`."""
    settings = CutSettings(
        hop_s=check_number("hop_s", hop_s, 0.05, 3_600),
        on_beat=check_bool("on_beat", on_beat),
        silence_db=check_number("silence_db", silence_db, -200, 0),
    )
    label_from_folder = check_bool("label_from_folder", label_from_folder)
    strict = check_bool("strict", strict)
    clip_cache.check_executor(executor)
    check_similarity(max_similarity)
    folder = folder.absolute()  # workers may run in another folder
    cache = cache.absolute()
    found = find_files(folder, cache, SOUND_SUFFIXES)
    if not found.sources:
        raise ValueError(_no_sounds(folder, found.others))
    names = [source.name for source in found.sources]
    listed = read_lists(folder, found.lists, names, strict=strict)
    job = partial(make_entry, folder=cache / ENTRIES, settings=settings, torn="error" if strict else "keep")
    with clip_cache.open_cache(cache, {"made_from": "sounds", "folder": str(folder.resolve()), **asdict(settings)}):
        skipped = clip_cache.make_entries(job, found.sources, cache, executor=executor, strict=strict)
        entries = clip_cache.read_entries(found.sources, cache)
        if strict:
            refuse_truncated(entries)
        captions = _captions(entries, found.sources, listed, label_from_folder=label_from_folder)
        index = clip_cache.make_index(entries, captions, cache, skipped=skipped, max_similarity=max_similarity)
        index["n_ignored"] = sum(found.others.values())
        clip_cache.write_index(cache, index, found.sources)


def _captions(
    entries: Iterable[Entry], sources: Iterable[Source], listed: dict[str, Caption], *, label_from_folder: bool
) -> dict[str, Caption]:
    """Name of the file → caption, for each entry; `listed` are those from lists."""
    path_of = {source.name: Path(source.path) for source in sources}
    captions = {entry.name: find_caption(entry.name, path_of[entry.name], listed, entry.tags) for entry in entries}
    if not label_from_folder:
        return captions
    return {name: label_by_folder(name, caption) for name, caption in captions.items()}


def refuse_truncated(entries: Iterable[Entry]) -> None:
    """Raise an error for the first file of which only a part was kept, in an earlier call that was not strict."""
    for entry in entries:
        for note in entry.notes:
            if note.endswith(TRUNCATED):
                raise OSError(f"{note}; strict=False would use what is left")


def _no_sounds(folder: Path, others: dict[str, int]) -> str:
    message = f"no sound files in {str(folder)!r}"
    if PICTURE_SUFFIXES & others.keys():
        return f"{message}, but pictures: for spectrograms use Dataset.from_images"
    if others:
        return f"{message}, only files with the extensions {', '.join(sorted(others))}: pass a folder of sound files"
    return f"{message}: pass a folder with WAV, FLAC, Ogg, MP3 or other sound files, also in sub-folders"


@torch_defaults()
def make_entry(source: Source, *, folder: Path, settings: CutSettings, torn: Torn) -> str | None:
    """Cut a sound file into clips and write their pictures.

    Parameters
    ----------
    source : Source
    folder : Path
        Of the entries.
    settings : CutSettings
    torn : {"error", "keep"}
        See `read_audio`.

    Returns
    -------
    str or None
        Why the file cannot be read; None if all is well.
    """
    try:
        with EntryWriter(folder, source) as writer, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cut_file(source, settings, writer, torn=torn)
            writer.entry.tags = read_tags(source.path)
            writer.entry.notes += dict.fromkeys(str(warning.message) for warning in caught)
    except UnreadableFile as error:
        return str(error)
    return None


def cut_file(source: Source, settings: CutSettings, writer: EntryWriter, *, torn: Torn) -> None:
    """Cut a sound file section by section."""
    next_start = 0.0  # s
    duration_s = 0.0
    for first_s, waveform, is_last in sections(read_mono(source.path, torn=torn)):
        duration_s = first_s + len(waveform) / RATE
        last_s = duration_s - CLIP_SECONDS if is_last else first_s + SECTION_S
        if next_start <= last_s + TOLERANCE_S:
            next_start = _cut_section(waveform, settings, writer, first_s=first_s, next_start=next_start, last_s=last_s)
    if duration_s < CLIP_SECONDS - TOLERANCE_S:
        writer.drop("shorter than a clip")


def read_mono(path: str, *, torn: Torn) -> Iterator[tuple[np.ndarray, int]]:
    """Read a sound file mixed to mono, part by part; see `read_parts`.

    Raises
    ------
    UnreadableFile
        If it is not a sound, or damaged.
    """
    try:
        for waveform, sample_rate in read_parts(path, SECTION_S, torn=torn):
            if not np.isfinite(waveform).all():
                raise UnreadableFile(f"{path} has samples that are NaN or infinite: repair it")
            if sample_rate < 2 * PARAMS.max_frequency:
                warn(
                    f"{path} has {sample_rate:,} samples a second: its pictures are empty above {sample_rate / 2:g} Hz"
                )
            yield mix_to_mono(waveform, path), sample_rate
    except (OSError, ValueError) as error:
        raise UnreadableFile(str(error)) from error


def mix_to_mono(waveform: np.ndarray, name: str) -> np.ndarray:
    """Mean of all channels; the first one, with a warning, if they cancel each other.

    Parameters
    ----------
    waveform : np.ndarray [shape=(channels, samples), float32]
    name : str
        What the warning calls the sound.

    Returns
    -------
    np.ndarray [shape=(samples,), float32]
    """
    mix: np.ndarray = waveform.mean(axis=0)
    power = sum(float(np.vdot(channel, channel)) for channel in waveform) / len(waveform)
    if float(np.vdot(mix, mix)) >= LEAST_MIXED * power / len(waveform):  # without correlation, 1 / channels is left
        return mix
    warn(f"{name}: its channels cancel each other, so only the first one is used")
    first: np.ndarray = np.ascontiguousarray(waveform[0])
    return first


def sections(parts: Iterable[tuple[np.ndarray, int]]) -> Iterator[tuple[float, np.ndarray, bool]]:
    """Join the parts of a sound, and divide it into sections of a minute, at 24 kHz.

    Yields
    ------
    first_s : float
        Where the section begins, in seconds.
    waveform : np.ndarray [shape=(n_samples,), float32]
        With the first six seconds of the next section.
    is_last : bool
    """
    joined = np.zeros(0, np.float32)
    sample_rate = RATE
    first_s = 0.0
    for part, sample_rate in parts:  # noqa: B007 - used after the loop
        joined = np.concatenate([joined, part])
        while len(joined) > (SECTION_S + OVERLAP_S) * sample_rate:
            yield first_s, _at_24_khz(joined[: (SECTION_S + OVERLAP_S) * sample_rate], sample_rate), False
            joined = joined[SECTION_S * sample_rate :]
            first_s += SECTION_S
    yield first_s, _at_24_khz(joined, sample_rate), True


def _at_24_khz(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    resampled: np.ndarray = resample(torch.from_numpy(waveform), sample_rate, RATE).numpy()
    return resampled


def _cut_section(
    waveform: np.ndarray,
    settings: CutSettings,
    writer: EntryWriter,
    *,
    first_s: float,
    next_start: float,
    last_s: float,
) -> float:
    """Write the clips that begin in a section from `next_start` to `last_s`; return where the next one may begin."""
    beats = find_beats(waveform, RATE)
    measures = {"tempo_bpm": round(beats.tempo_bpm, 1) if beats else None, "key": find_key(waveform, RATE)}
    beat_times = first_s + beats.times_s if beats and settings.on_beat else None
    if settings.on_beat:
        measures["is_on_beat"] = beat_times is not None
    # Where a section's beats end early, the next clip may have been due before this section began
    start_s = _next_cut(max(next_start, first_s), beat_times)
    while start_s <= last_s + TOLERANCE_S:
        sample = round((start_s - first_s) * RATE)
        cut = np.zeros(N_CLIP, np.float32)
        piece = waveform[sample : sample + N_CLIP]
        cut[: len(piece)] = piece  # the last one may lack half a millisecond
        if silent_share(cut, RATE, settings.silence_db) > MOST_SILENT:
            writer.drop("silent")
        else:
            writer.add(*_draw(cut, {"source": writer.entry.name, "start_s": round(start_s, 3), **measures}))
        next_start = start_s + settings.hop_s
        start_s = _next_cut(next_start, beat_times)
    return next_start


def _next_cut(earliest_s: float, beat_times: np.ndarray | None) -> float:
    """The first beat from a time on, in seconds; infinity after the last; the time itself if there are no beats."""
    if beat_times is None:
        return earliest_s
    later = beat_times[beat_times >= earliest_s]
    return float(later[0]) if len(later) else float("inf")


def _draw(cut: np.ndarray, facts: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Picture of a clip [shape=(n_samples,), float32], and its facts with the maximum."""
    mel = mel_from_waveform(torch.from_numpy(cut)[None], CUT_PARAMS, loop=False)
    picture, maximum = pixels_from_mel(mel, CUT_PARAMS)
    return picture, facts | {"maximum": maximum * LEVEL}
