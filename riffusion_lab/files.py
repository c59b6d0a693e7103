"""Files appear whole or not at all."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path
from typing import BinaryIO


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
    if str(path).startswith(("http://", "https://", "ftp://")):
        raise FileNotFoundError(f"{path} is an address: download the file first, and give its name")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of {kind} file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the name of {kind} file")
    if path.stat().st_size == 0:
        raise OSError(f"{path} is empty (0 bytes): give {kind} file with something in it")
    return path


def is_file_like(source: object) -> bool:
    """Whether this is what a file holds (bytes), or an open file."""
    if isinstance(source, memoryview):
        return source.itemsize == 1
    return isinstance(source, (bytes, bytearray)) or callable(getattr(source, "read", None))


def name_of(source: object, otherwise: str) -> str:
    """What an error calls a file: its name, where it has one."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    return os.fsdecode(name) if isinstance(name, (str, os.PathLike)) else otherwise


def as_binary_file(source: bytes | BinaryIO, kind: str) -> BinaryIO:
    """Return what a file holds, or what is left of an open file, as a file in memory.

    An open file at its end, such as an `io.BytesIO` that was just written to, is read from its beginning.

    Raises
    ------
    TypeError
        If the file was opened as text.
    OSError
        If there is nothing in it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        data = source.read()
        if len(data) == 0 and hasattr(source, "seek"):
            source.seek(0)
            data = source.read()
    if isinstance(data, str):
        raise TypeError(f"{name_of(source, 'the file')} is open as text: open it in binary mode, open(name, 'rb')")
    if not data:
        raise OSError(f"{name_of(source, 'the file')} is empty (0 bytes): give {kind} file with something in it")
    return io.BytesIO(data)


def write_to(target: str | os.PathLike[str] | BinaryIO, data: bytes) -> None:
    """Write to a path, see `write_whole`, or to an open file at its position.

    Raises
    ------
    TypeError
        If the file was opened as text.
    OSError
        If it cannot be written to.
    """
    if isinstance(target, (str, os.PathLike)):
        write_whole(target, data)
    elif isinstance(target, io.TextIOBase):
        raise TypeError(f"{name_of(target, 'the file')} is open as text: open it in binary mode, open(name, 'wb')")
    else:
        target.write(data)
