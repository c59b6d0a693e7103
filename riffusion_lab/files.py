"""Reading and writing files: paths, bytes and open files; a written file or folder appears whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

LOCK = ".lock"


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: under a temporary name first, then renamed.

    Raises
    ------
    OSError
        If the folder is missing or not writable; an existing file then stays unchanged.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be saved: the folder {path.parent} does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be saved: it is a folder; use the path of a file")
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder atomically: fill the temporary folder beside it that this gives; it is renamed at the end.

    A folder that was there before is replaced, also its sub-folders. Files directly in it that the new one lacks, such
    as a README.md, are kept. If writing fails, it stays as it was.

    Parameters
    ----------
    path : path
        Of the folder. Folders that it lies in are made. Where it is a link, what it links to is replaced.

    Raises
    ------
    OSError
        If it is a file, or cannot be written.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: pass the path of a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir()
        yield part
        _replace_folder(target, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_folder(target: Path, part: Path) -> None:
    """Put a finished folder in the place of another one, if there is one. Both lie in the same folder."""
    if not target.exists():
        part.rename(target)
        return
    for file in target.iterdir():
        if file.is_file() and not (part / file.name).exists():
            shutil.copy2(file, part / file.name)
    old = target.with_name(f"{part.name}.old")
    target.rename(old)  # a folder that is not empty cannot be replaced in one step
    try:
        part.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path, message: str) -> Iterator[None]:
    """Keep other processes from working in a folder. The lock is released even if this one is killed.

    Parameters
    ----------
    folder : Path
        Gets a hidden file ``.lock``.
    message : str
        Of the error.

    Raises
    ------
    OSError
        If another process, or another thread of this one, holds the lock.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined] # missing in its __all__

    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(folder / LOCK, timeout=0.1))
        except TimeoutError as error:
            raise OSError(message) from error
        yield


def existing_file(path: str | os.PathLike[str], kind: str) -> Path:
    """Return the path of a file that exists and is not empty; `kind` is what an error asks for, such as "a sound".

    Raises
    ------
    OSError
        If there is no such file, or it is a folder, a web address, or empty.
    """
    if str(path).startswith(("http://", "https://", "ftp://")):
        raise FileNotFoundError(f"{path} is a web address: download the file first, and pass its path")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: pass the path of {kind} file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass the path of {kind} file")
    if path.stat().st_size == 0:
        raise OSError(f"{path} is empty (0 bytes): use {kind} file with something in it")
    return path


def is_file_like(source: object) -> bool:
    """Whether this is the content of a file (bytes) or an open file."""
    if isinstance(source, memoryview):
        return source.itemsize == 1
    return isinstance(source, (bytes, bytearray)) or callable(getattr(source, "read", None))


def name_of(source: object, otherwise: str) -> str:
    """Name of a file for error messages, or `otherwise` if it has none."""
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    if isinstance(name, (str, os.PathLike)):
        return os.fsdecode(name)
    return otherwise


def as_binary_file(source: bytes | bytearray | memoryview | BinaryIO, kind: str) -> io.BytesIO:
    """Return the content of a file, or the rest of an open file, as a file in memory.

    An open file at its end, such as an `io.BytesIO` that was just written to, is read from its beginning.

    Raises
    ------
    TypeError
        If the file was opened as text.
    OSError
        If it is empty.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        data = _read_rest(source)
    if not data:
        raise OSError(f"{name_of(source, 'the file')} is empty (0 bytes): use {kind} file with something in it")
    return io.BytesIO(data)


def _read_rest(file: IO[Any]) -> bytes:
    """Read an open file from its position, or from its beginning if it is at its end."""
    data = file.read()
    if len(data) == 0 and hasattr(file, "seek"):
        file.seek(0)
        data = file.read()
    if isinstance(data, str):
        raise TypeError(f"{name_of(file, 'the file')} is open as text: open it in binary mode, open(name, 'rb')")
    return bytes(data)


def write_to(target: str | os.PathLike[str] | IO[Any] | io.TextIOBase, data: bytes) -> None:
    """Write to a path, see `write_whole`, or to an open file at its current position.

    Raises
    ------
    TypeError
        If the file was opened as text.
    OSError
        If it cannot be written.
    """
    if isinstance(target, (str, os.PathLike)):
        write_whole(target, data)
    elif isinstance(target, io.TextIOBase):
        raise TypeError(f"{name_of(target, 'the file')} is open as text: open it in binary mode, open(name, 'wb')")
    else:
        target.write(data)
