"""Captions of files: from a list, a text file beside the file, its tags, or its name."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import soundfile

from ..values import warn

LIST = "captions.jsonl"
GENERIC = {"audio", "clip", "clips", "file", "loop", "music", "new", "other", "recording", "sample", "sound", "sounds"}
GENERIC |= {"nr", "number", "part", "song", "songs", "take", "track", "train", "test", "unknown", "untitled", "various"}
MOST_NAMED = 5  # files named in a warning


@dataclass(frozen=True)
class Caption:
    """What a clip sounds like, in words."""

    text: str
    source: str  # where it was found: LIST, ".txt", "tags", "name"; "nowhere" if it is empty
    label: str | None = None
    names_folder: bool = False  # whether the name of the file's folder was added to the text


def normalized(name: str) -> str:
    """A file's name with accents composed: macOS stores them decomposed."""
    return unicodedata.normalize("NFC", name)


def read_list(file: Path, *, name_key: str = "file", caption_key: str = "caption") -> dict[str, Caption]:
    """Read a list of captions: one JSON object a line, with a file's path relative to the list, and its caption.

    Parameters
    ----------
    file : Path
    name_key, caption_key : str
        Keys of the two. A key "label" is optional.

    Returns
    -------
    dict
        Name → caption; names as they are in the list, with accents composed.

    Raises
    ------
    ValueError
        If a line is not such an object, or two lines give a file different captions.
    """
    captions: dict[str, Caption] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        name, caption = _parse_line(line, where, name_key, caption_key)
        if name in captions and captions[name] != caption:
            raise ValueError(f"{where}: a second caption for {name!r}, which line {line_of[name]} has: keep one")
        captions[name] = caption
        line_of[name] = number
    return captions


def _parse_line(line: str, where: str, name_key: str, caption_key: str) -> tuple[str, Caption]:
    expected = json.dumps({name_key: "a/file", caption_key: "slow piano"})
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}): expected a line such as {expected}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {line[:80]} is not a JSON object: expected a line such as {expected}")
    name, text, label = entry.get(name_key), entry.get(caption_key), entry.get("label")
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{where}: {line[:80]}: expected a line such as {expected}")
    if label is not None and not isinstance(label, str):
        raise ValueError(f"{where}: the label is {label!r}: use text")
    name = PurePosixPath(normalized(name).replace("\\", "/")).as_posix()  # without "./"
    return name, Caption(" ".join(text.split()), Path(where.rsplit(", ", 1)[0]).name, label)


def read_lists(folder: Path, lists: Iterable[Path], names: Iterable[str], *, strict: bool) -> dict[str, Caption]:
    """Read the caption lists of a folder and its sub-folders; warn of files in them that do not exist.

    Parameters
    ----------
    folder : Path
    lists : iterable of Path
    names : iterable of str
        Files found in the folder, relative to it.
    strict : bool
        Raise an error instead of the warning.

    Returns
    -------
    dict
        Name relative to `folder` → caption.
    """
    captions = join_lists(folder, {file: read_list(file) for file in sorted(lists)})
    report_missing(captions.keys() - {normalized(name) for name in names}, LIST, strict=strict)
    return captions


def join_lists(folder: Path, lists: Mapping[Path, Mapping[str, Caption]]) -> dict[str, Caption]:
    """Join the captions of several lists: name relative to `folder` → caption.

    Raises
    ------
    ValueError
        If two lists give a file different captions.
    """
    captions: dict[str, Caption] = {}
    list_of: dict[str, Path] = {}
    for file, listed in lists.items():
        for name, caption in listed.items():
            full_name = normalized((file.parent.relative_to(folder) / name).as_posix())
            if captions.get(full_name, caption) != caption:
                raise ValueError(f"{file}: a second caption for {name!r}, which {list_of[full_name]} has: keep one")
            captions[full_name] = caption
            list_of[full_name] = file
    return captions


def report_missing(names: Iterable[str], list_name: str, *, strict: bool) -> None:
    """Warn of files in a list that are not in the folder, or raise an error if `strict`."""
    missing = sorted(names)
    if not missing:
        return
    message = f"{list_name} names {len(missing)} file(s) that are not there: {some_of(missing)}"
    if strict:
        raise FileNotFoundError(f"{message}; correct the list")
    warn(message)


def some_of(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    named = ", ".join(names[:MOST_NAMED])
    n_more = len(names) - MOST_NAMED
    return f"{named} and {n_more} more" if n_more > 0 else named


def find_caption(name: str, path: Path, listed: dict[str, Caption], tags: dict[str, str]) -> Caption:
    """Caption of a file, from the first place that has one.

    Parameters
    ----------
    name : str
        Path relative to the folder of the data set.
    path : Path
    listed : dict
        Captions from lists, by name.
    tags : dict
        Of the file: title, genre, comment.

    Returns
    -------
    Caption
        Empty, from "nowhere", if its name says nothing either. The label is the list's, also beside an empty caption.
    """
    caption = listed.get(normalized(name), Caption("", "nowhere"))
    if caption.text:
        return caption
    if text := caption_beside(path):
        return replace(caption, text=text, source=".txt")
    if text := caption_from_tags(tags):
        return replace(caption, text=text, source="tags")
    if text := caption_from_name(name):
        return replace(caption, text=text, source="name")
    return replace(caption, source="nowhere")


def caption_beside(path: Path) -> str:
    """Text of the file with the same name and the extension .txt, in one line; empty if there is none."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8, or remove it") from error


def read_tags(path: str) -> dict[str, str]:
    """Title, genre and comment of a sound file, as far as libsndfile reads them; empty for other formats."""
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
            metadata = sound.copy_metadata()
    except (soundfile.LibsndfileError, TypeError):  # TypeError: headerless formats by their extension
        return {}
    return {name: metadata[name] for name in ("genre", "title", "comment") if metadata.get(name)}


def caption_from_tags(tags: dict[str, str]) -> str:
    """Genre, title and comment of a file as a caption, without what says nothing about the sound.

    Left out are numbers ("Track 03"), placeholders ("Other"), web addresses, and JSON such as this package's recipes.
    """
    parts: list[str] = []
    for name in ("genre", "title", "comment"):
        text = " ".join(tags.get(name, "").split())
        is_address = "://" in text or "www." in text.lower()
        if is_address or text.startswith(("{", "[")) or not says_something(text):
            continue
        if text.lower() not in (part.lower() for part in parts):
            parts.append(text)
    return ", ".join(parts)


def says_something(text: str) -> bool:
    """Whether a text has a word other than numbers and placeholders such as "track"."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return any(word not in GENERIC for word in words)


def caption_from_name(name: str) -> str:
    """Words of a file's name: "loops/03_slow-piano_2.wav" → "slow piano"; of its folder if it has none."""
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parent.parts)):
        text = clean_name(part)
        if says_something(text):
            return text
    return ""


def clean_name(stem: str) -> str:
    """Name without underscores, and without numbers at its beginning and end."""
    text = normalized(stem)
    if " " not in text:
        text = text.replace("-", " ")
    text = re.sub(r"[_.]+", " ", text).strip()
    text = re.sub(r"^[\d\s()\[\]–-]+(?=\s)", "", text)  # a track number: "03 - "
    text = re.sub(r"[\s(\[]+\d+[)\]\s]*$", "", text)  # the number of a copy: " (2)"
    return " ".join(text.split())


def label_by_folder(name: str, caption: Caption) -> Caption:
    """The caption with the name of the file's folder as its label, unless it has one.

    A text that is only the file's name gets this label as its first words, unless it has them: "techno, kick 1".

    Parameters
    ----------
    name : str
        Path relative to the folder of the data set. Files directly in that have no label.
    caption : Caption
    """
    if caption.label or "/" not in name:
        return caption
    label = PurePosixPath(name).parts[-2]
    words = clean_name(label)
    if caption.source != "name" or not says_something(words) or _has_words(caption.text, words):
        return replace(caption, label=label)
    return replace(caption, label=label, text=f"{words}, {caption.text}", names_folder=True)


def _has_words(text: str, words: str) -> bool:
    """Whether a text has these words, one after the other, in upper or lower case, with hyphens or without."""
    ours, theirs = (re.findall(r"[^\W_]+", each.lower()) for each in (text, words))
    return any(ours[i : i + len(theirs)] == theirs for i in range(len(ours)))


def count_sources(captions: Iterable[Caption]) -> str:
    """Where captions came from: "12 from captions.jsonl, 3 from names"."""
    counts = Counter(caption.source for caption in captions)
    phrases = {".txt": "{} from .txt files", "tags": "{} from tags", "name": "{} from names", "nowhere": "{} without"}
    return ", ".join(phrases.get(source, "{} from " + source).format(n) for source, n in counts.most_common())
