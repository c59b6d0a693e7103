"""Files appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under another name first, so that no half-written one is ever seen under its own.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to; a file that was there is left as it was.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be saved: the folder {path.parent} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be saved: it is a folder; give a file's name")
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def existing_file(path: str | os.PathLike[str], kind: str) -> Path:
    """Return the path of a file that can be read and is not empty.

    Raises
    ------
    OSError
        If there is no such file, if it is a folder, or if it is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of {kind} file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the name of {kind} file")
    if path.stat().st_size == 0:
        raise OSError(f"{path} is empty (0 bytes): give {kind} file with something in it")
    return path
