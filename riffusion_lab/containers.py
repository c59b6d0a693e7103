"""The length that the header of a sound file declares: libsndfile reads a truncated file as if it were complete."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

# Placeholders for "size not known when the header was written" (to a pipe, or by a recorder that was stopped): 0, and
# sizes just below 2 or 4 GiB, such as 0x7FFFF000 (SoX), 0x80000000 (arecord) and 0xFFFFFFFF (ffmpeg).
PLACEHOLDERS = (2**31, 2**32)
PLACEHOLDER_MARGIN = 65_536  # bytes
LARGEST = 2**62  # bytes; 64-bit headers write -1 or a number like this one as placeholder

ByteOrder = Literal["little", "big"]


def missing_part(file: BinaryIO) -> str | None:
    """Describe what a sound file lacks compared to its header; None if nothing is missing, or this is not known.

    Supports WAV (RIFF, RIFX, RF64, W64), AVI, AIFF, AU, CAF and Ogg. Leaves the file's position at its beginning.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    missing: str | None = None
    if head[:4] == b"OggS":
        missing = ogg_streams(file).missing
    else:
        end = _declared_end(file, head, size)
        if end is not None and size < end:
            missing = f"{size:,} of {end:,} bytes"
    file.seek(0)
    return missing


def _declared_end(file: BinaryIO, head: bytes, size: int) -> int | None:
    """Position after the last byte of sound according to the header; None if it is not known."""
    magic = head[:4]
    form = head[8:12]
    if magic == b"RIFF" and form == b"AVI ":
        return _avi_end(head)
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
        return _au_end(head)
    return None


def _avi_end(head: bytes) -> int | None:
    riff_size = int.from_bytes(head[4:8], "little")
    if _is_placeholder(riff_size):
        return None
    return riff_size + 8


def _au_end(head: bytes) -> int | None:
    header_size = int.from_bytes(head[4:8], "big")
    data_size = int.from_bytes(head[8:12], "big")
    if _is_placeholder(data_size):
        return None
    return header_size + data_size


@dataclass(frozen=True)
class _Chunk:
    start: int  # position of its header of eight bytes
    size: int  # of the data after the header; from the chunk ds64 in an RF64 file


def _data_end(file: BinaryIO, size: int, chunk_id: bytes, order: ByteOrder) -> int | None:
    chunk = _find_chunk(file, size, chunk_id, order)
    if chunk is None or _is_placeholder(chunk.size):
        return None
    return chunk.start + 8 + chunk.size


def _find_chunk(file: BinaryIO, size: int, chunk_id: bytes, order: ByteOrder) -> _Chunk | None:
    """Walk the chunks of a RIFF or IFF file to the one with the sound."""
    size_64: int | None = None  # of RF64, whose 32-bit size is a placeholder
    position = 12
    while position + 8 <= size:
        file.seek(position)
        header = file.read(24)
        chunk_size = int.from_bytes(header[4:8], order)
        if header[:4] == b"ds64":
            size_64 = int.from_bytes(header[16:24], "little")
        if header[:4] == chunk_id:
            if size_64 is not None and chunk_size == 0xFFFFFFFF:
                return _Chunk(position, size_64)
            return _Chunk(position, chunk_size)
        position += 8 + chunk_size + chunk_size % 2
    return None


def with_length(file: BinaryIO) -> BinaryIO:
    """Fill in the length of a WAV file (RIFF, RF64) whose header has a placeholder; return other files unchanged.

    libsndfile would guess from the samples that follow whether a data chunk of 0 bytes is really empty.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE" or size > PLACEHOLDERS[1]:
        return file
    chunk = _find_chunk(file, size, b"data", "little")
    file.seek(0)
    if chunk is None or not _is_placeholder(chunk.size):
        return file
    data = bytearray(file.read())
    if chunk.size == 0 and _are_chunks(file, chunk.start + 8, size):
        return io.BytesIO(data[: chunk.start + 8])  # it is really empty
    data[:8] = b"RIFF" + (size - 8).to_bytes(4, "little")
    data[chunk.start + 4 : chunk.start + 8] = (size - chunk.start - 8).to_bytes(4, "little")
    return io.BytesIO(data)


def _are_chunks(file: BinaryIO, position: int, size: int) -> bool:
    """Whether the rest of the file from this position on consists of chunks."""
    while position + 8 <= size:
        file.seek(position)
        header = file.read(8)
        if not header[:4].isascii():
            return False
        chunk_size = int.from_bytes(header[4:8], "little")
        position += 8 + chunk_size + chunk_size % 2
    return size <= position <= size + 1


def _w64_end(file: BinaryIO, size: int) -> int | None:
    """Walk the chunks of a Sony Wave64 file: 16 bytes of identifier, then 8 of size, which includes these 24."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        chunk = file.read(24)
        chunk_size = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] == b"data":
            if _is_placeholder(chunk_size) or chunk_size == 24:
                return None
            return position + chunk_size
        position += max(24, (chunk_size + 7) // 8 * 8)
    return None


def _caf_end(file: BinaryIO, size: int) -> int | None:
    position = 8
    while position + 12 <= size:
        file.seek(position)
        chunk = file.read(12)
        chunk_size = int.from_bytes(chunk[4:12], "big", signed=True)
        if chunk[:4] == b"data":
            if chunk_size <= 0:
                return None
            return position + 12 + chunk_size
        position += 12 + max(0, chunk_size)
    return None


def _is_placeholder(size: int) -> bool:
    if size == 0 or size >= LARGEST:
        return True
    return any(limit - PLACEHOLDER_MARGIN <= size <= limit for limit in PLACEHOLDERS)


@dataclass(frozen=True)
class OggStreams:
    """The logical streams of an Ogg file."""

    missing: str | None  # what the file lacks, or None
    starts: list[int]  # positions at which a stream begins; libsndfile reads only the first stream


def ogg_streams(file: BinaryIO) -> OggStreams:
    """Walk the pages of an Ogg file to see whether the last one is there, and where chained streams begin."""
    size = file.seek(0, 2)
    starts = [0]
    has_ended = False  # whether the last page read ends a stream
    has_sound = False  # whether it follows the pages that begin a stream
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(27 + 255)
        if header[:4] != b"OggS":
            break  # something else follows the sound
        n_segments = header[26] if len(header) > 26 else 255
        if len(header) < 27 + n_segments:
            return OggStreams("its last page is cut off", starts)
        begins = bool(header[5] & 2)
        ends = bool(header[5] & 4)
        if begins and has_sound:
            starts.append(position)
        has_sound = not begins
        has_ended = ends or (has_ended and not begins)
        position += 27 + n_segments + sum(header[27 : 27 + n_segments])
    if position > size:
        return OggStreams("its last page is cut off", starts)
    if not has_ended:
        return OggStreams("its last page is missing", starts)
    return OggStreams(None, starts)
