"""The image-folder layout of 🤗 datasets, as other trainers of Riffusion use it: PNG files and their texts.

A folder holds the sub-folders ``train`` and ``test``, each with pictures and a ``metadata.jsonl``, whose lines are
``{"file_name": "0001.png", "text": "slow piano"}``; see https://huggingface.co/docs/datasets/image_dataset.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..files import write_whole
from ..image import Picture, encode_image, mel_from_image, open_image, pixels_from_mel
from ..params import PARAMS, SpectrogramParams
from ..torch_defaults import torch_defaults
from ..values import check_bool
from . import clip_cache
from .caption_files import Caption, find_caption, join_lists, normalized, read_list, report_missing
from .clip_cache import ENTRIES, SIZE, TEST, TRAIN, EntryWriter, Source, check_similarity
from .sound_folder import PICTURE_SUFFIXES, SOUND_SUFFIXES, find_files

METADATA = "metadata.jsonl"
SILENCE = 255  # white
# Names of folders that 🤗 datasets takes for a part of the data set
PARTS = {"train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST, "eval": TEST, "evaluation": TEST}
PARTS |= {"validation": TEST, "valid": TEST, "val": TEST, "dev": TEST}
MUST_AGREE = (
    *("step_size_ms", "window_duration_ms", "padded_duration_ms", "num_frequencies"),
    *("min_frequency", "max_frequency", "power_for_image"),
)


def make_from_images(
    folder: Path,
    cache: Path,
    *,
    max_similarity: float | None,
    executor: Executor | None,
    strict: bool,
) -> None:
    """Make a data set in `cache`; see `Dataset.from_images`."""
    strict = check_bool("strict", strict)
    clip_cache.check_executor(executor)
    check_similarity(max_similarity)
    folder = folder.absolute()  # workers may run in another folder
    cache = cache.absolute()
    found = find_files(folder, cache, PICTURE_SUFFIXES)
    if not found.sources:
        raise ValueError(_no_pictures(folder, found.others))
    names = [source.name for source in found.sources]
    listed = read_metadata(folder, names, strict=strict)
    job = partial(make_entry, folder=cache / ENTRIES)
    path_of = {source.name: Path(source.path) for source in found.sources}
    with clip_cache.open_cache(cache, {"made_from": "images", "folder": str(folder.resolve())}):
        skipped = clip_cache.make_entries(job, found.sources, cache, executor=executor, strict=strict)
        entries = clip_cache.read_entries(found.sources, cache)
        captions = {entry.name: find_caption(entry.name, path_of[entry.name], listed, {}) for entry in entries}
        index = clip_cache.make_index(entries, captions, cache, skipped=skipped, max_similarity=max_similarity)
        index["n_ignored"] = sum(found.others.values())
        clip_cache.write_index(cache, index, found.sources)


def _no_pictures(folder: Path, others: dict[str, int]) -> str:
    message = f"no pictures in {str(folder)!r}"
    if SOUND_SUFFIXES & others.keys():
        return f"{message}, but sounds: use Dataset.from_folder"
    return f"{message}: pass a folder with PNG files, also in sub-folders"


def read_metadata(folder: Path, names: Iterable[str], *, strict: bool) -> dict[str, Caption]:
    """Captions from each `metadata.jsonl` in a folder and its sub-folders; see `caption_files.read_lists`."""
    lists = sorted(folder.rglob(METADATA))
    captions = join_lists(folder, {file: read_list(file, name_key="file_name", caption_key="text") for file in lists})
    report_missing(captions.keys() - {normalized(name) for name in names}, METADATA, strict=strict)
    return captions


@torch_defaults()
def make_entry(source: Source, *, folder: Path) -> str | None:
    """Copy a picture into an entry, one wider than a clip cut into clips; return why it cannot be used, or None."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = open_image(source.path)
        check_picture(picture, source.path)
    except (OSError, ValueError) as error:
        return str(error)
    with EntryWriter(folder, source) as writer:
        writer.entry.notes += dict.fromkeys(str(warning.message) for warning in caught)
        part = part_of(source.name)
        for start in range(0, picture.image.width - SIZE + 1, SIZE):
            pixels, maximum = cut_picture(picture, start)
            facts = {"source": source.name, "start_s": PARAMS.duration_s(start), "maximum": maximum}
            facts |= {"tempo_bpm": None, "key": None, "loop": picture.loop and picture.image.width == SIZE}
            if pixels.min() == SILENCE:
                writer.drop("silent")
            else:
                writer.add(pixels, facts | ({"split": part} if part else {}))
    return None


def part_of(name: str) -> str | None:
    """Part of the data set that a file belongs to by its folders, or None."""
    return next((PARTS[parent] for parent in PurePosixPath(name.lower()).parts[:-1] if parent in PARTS), None)


def check_picture(picture: Picture, name: str) -> None:
    """Refuse a picture that the others cannot be mixed with.

    Raises
    ------
    ValueError
        If it is narrower than a clip, or drawn with other params than Riffusion's.
    """
    if picture.image.width < SIZE:
        raise ValueError(
            f"{name} is {picture.image.width} × {picture.image.height} pixels: a clip is {SIZE} wide; use wider ones, "
            "which are cut into clips"
        )
    other = [
        f"{field} is {getattr(picture.params, field):g}, not {getattr(PARAMS, field):g}"
        for field in MUST_AGREE
        if getattr(picture.params, field) != getattr(PARAMS, field)
    ]
    if other:
        raise ValueError(f"{name} was drawn with other params than Riffusion's: {', '.join(other)}; draw it again")


def cut_picture(picture: Picture, start: int) -> tuple[np.ndarray, float | None]:
    """Cut a clip out of a picture.

    Parameters
    ----------
    picture : Picture
    start : int
        First column.

    Returns
    -------
    pixels : np.ndarray [shape=(512, 512), uint8]
        The picture itself if it is one clip in mono; a part of a wider one gets its own black, the channels of stereo
        are averaged.
    maximum : float or None
        The mel amplitude of black; None if the picture's level is not known.
    """
    image = picture.image.crop((start, 0, start + SIZE, SIZE))
    if picture.image.width == SIZE and not picture.params.stereo:
        grey = np.asarray(image, np.float32).mean(axis=-1)
        return np.rint(grey).astype(np.uint8), picture.maximum
    mel = mel_from_image(image, picture.params, picture.maximum).mean(dim=0, keepdim=True)
    pixels, maximum = pixels_from_mel(mel, picture.params)
    return pixels, None if picture.maximum is None else maximum


def save_clip(
    folder: Path, name: str, pixels: np.ndarray, *, params: SpectrogramParams, maximum: float | None, loop: bool
) -> None:
    """Write a picture [shape=(512, 512), uint8] as a PNG that this package and Riffusion can play."""
    picture = Picture(Image.fromarray(pixels).convert("RGB"), params, maximum, loop)
    write_whole(folder / name, encode_image(picture))


def write_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    """Write a `metadata.jsonl`."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "".join(f"{line}\n" for line in lines)
    write_whole(folder / METADATA, text.encode("utf-8", errors="replace"))
