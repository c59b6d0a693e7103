"""What the header of a sound file says of its length: libsndfile reads a file that is torn off as if it were whole."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

# Sizes that stand for "not known when the header was written" (to a pipe, or by a recorder that was stopped): 0, and
# what lies just below 2 or 4 GiB, such as 0x7FFFF000 (SoX), 0x80000000 (arecord) and 0xFFFFFFFF (ffmpeg).
STAND_INS = (2**31, 2**32)
STAND_IN_MARGIN = 65_536  # bytes
LARGEST = 2**62  # bytes; 64-bit headers write -1 or a number like this one


def missing_part(file: BinaryIO) -> str | None:
    """Say what a sound file lacks by its own header; None where nothing is missing, or it cannot be told.

    Knows WAV (RIFF, RIFX, RF64, W64), AVI, AIFF, AU, CAF and Ogg. The file's position is left at its beginning.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        missing = ogg_streams(file).missing
    else:
        end = _declared_end(file, head, size)
        missing = f"{size:,} of {end:,} bytes" if end is not None and size < end else None
    file.seek(0)
    return missing


def _declared_end(file: BinaryIO, head: bytes, size: int) -> int | None:
    """Position behind the last byte of sound by the header; None where it is not known."""
    magic, form = head[:4], head[8:12]
    if magic == b"RIFF" and form == b"AVI ":
        riff_size = int.from_bytes(head[4:8], "little")
        return None if _is_stand_in(riff_size) else riff_size + 8
    if magic in (b"RIFF", b"RF64", b"BW64"):
        return _data_end(file, size, b"data", "little")
    if magic == b"RIFX":
        return _data_end(file, size, b"data", "big")
    if magic == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _data_end(file, size, b"SSND", "big")
    if magic == b"riff":
        return _w64_end(file, size)
    if magic == b"caff":
        return _caf_end(file, size)
    if magic == b".snd":
        data_size = int.from_bytes(head[8:12], "big")
        return None if _is_stand_in(data_size) else int.from_bytes(head[4:8], "big") + data_size
    return None


@dataclass(frozen=True)
class _Chunk:
    start: int  # of its eight bytes of header
    size: int  # as the header says, or the chunk ds64 of RF64


def _data_end(file: BinaryIO, size: int, wanted: bytes, order: str) -> int | None:
    chunk = _find_chunk(file, size, wanted, order)
    return None if chunk is None or _is_stand_in(chunk.size) else chunk.start + 8 + chunk.size


def _find_chunk(file: BinaryIO, size: int, wanted: bytes, order: str) -> _Chunk | None:
    """Walk the chunks of a RIFF or IFF file to the one that holds the sound."""
    size_64 = None  # of RF64, whose 32-bit size says nothing
    position = 12
    while position + 8 <= size:
        file.seek(position)
        header = file.read(24)
        chunk_size = int.from_bytes(header[4:8], order)
        if header[:4] == b"ds64":
            size_64 = int.from_bytes(header[16:24], "little")
        if header[:4] == wanted:
            is_64 = size_64 is not None and chunk_size == 0xFFFFFFFF
            return _Chunk(position, size_64 if is_64 else chunk_size)
        position += 8 + chunk_size + chunk_size % 2
    return None


def with_length(file: BinaryIO) -> BinaryIO:
    """Give a WAV file (RIFF, RF64) that does not know its length a header that says it; any other file as it is.

    libsndfile takes a data chunk of no bytes for what it says, or not, by the samples that follow.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE" or size > STAND_INS[1]:
        return file
    chunk = _find_chunk(file, size, b"data", "little")
    file.seek(0)
    if chunk is None or not _is_stand_in(chunk.size):
        return file
    data = bytearray(file.read())
    if chunk.size == 0 and _are_chunks(file, chunk.start + 8, size):
        return io.BytesIO(data[: chunk.start + 8])  # it is empty
    data[:8] = b"RIFF" + (size - 8).to_bytes(4, "little")
    data[chunk.start + 4 : chunk.start + 8] = (size - chunk.start - 8).to_bytes(4, "little")
    return io.BytesIO(data)


def _are_chunks(file: BinaryIO, position: int, size: int) -> bool:
    """Whether one chunk follows the other from here to the very end of the file."""
    while position + 8 <= size:
        file.seek(position)
        header = file.read(8)
        if not header[:4].isascii():
            return False
        chunk_size = int.from_bytes(header[4:8], "little")
        position += 8 + chunk_size + chunk_size % 2
    return size <= position <= size + 1


def _w64_end(file: BinaryIO, size: int) -> int | None:
    """Walk the chunks of a Sony Wave64 file: 16 bytes of identifier, then 8 of size, both of them counted in it."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        chunk = file.read(24)
        chunk_size = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] == b"data":
            return None if _is_stand_in(chunk_size) or chunk_size == 24 else position + chunk_size
        position += max(24, (chunk_size + 7) // 8 * 8)
    return None


def _caf_end(file: BinaryIO, size: int) -> int | None:
    position = 8
    while position + 12 <= size:
        file.seek(position)
        chunk = file.read(12)
        chunk_size = int.from_bytes(chunk[4:12], "big", signed=True)
        if chunk[:4] == b"data":
            return None if chunk_size <= 0 else position + 12 + chunk_size
        position += 12 + max(0, chunk_size)
    return None


def _is_stand_in(size: int) -> bool:
    if size == 0 or size >= LARGEST:
        return True
    return any(limit - STAND_IN_MARGIN <= size <= limit for limit in STAND_INS)


@dataclass(frozen=True)
class OggStreams:
    """What the pages of an Ogg file say."""

    missing: str | None  # what the file lacks
    starts: list[int]  # bytes at which a sound begins; libsndfile reads the first of several


def ogg_streams(file: BinaryIO) -> OggStreams:
    """Walk the pages of an Ogg file: whether its last one is there, and whether it is several files in one."""
    size = file.seek(0, 2)
    position, has_ended, has_sound, starts = 0, False, False, [0]
    while position < size:
        file.seek(position)
        header = file.read(27 + 255)
        if header[:4] != b"OggS":
            break  # something else behind the sound
        n_segments = header[26] if len(header) > 26 else 255
        if len(header) < 27 + n_segments:
            return OggStreams("its last page is cut off", starts)
        begins, ends = bool(header[5] & 2), bool(header[5] & 4)
        if begins and has_sound:
            starts.append(position)
        has_sound = not begins
        has_ended = ends or (has_ended and not begins)
        position += 27 + n_segments + sum(header[27 : 27 + n_segments])
    if position > size:
        return OggStreams("its last page is cut off", starts)
    return OggStreams(None if has_ended else "its last page is missing", starts)
