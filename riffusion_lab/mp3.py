"""Counting the frames of an MP3 file: its index (a Xing header) may be missing, or cover only the first part."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

# ISO 11172-3 and 13818-3: kbit/s by (whether MPEG 1, layer) for the bitrate indices 1 to 14 of a frame's header
BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}  # MPEG 2.5, 2 and 1
MP3_RATES = tuple(sorted(rate for rates in RATES.values() for rate in rates))  # Hz
XING_MARKS = (b"Xing", b"Info")
ID3V1_SIZE = 128  # bytes, at the end of a file
VBRI_POSITION = 36  # in its frame, in every version
INDEX_BITRATE = 5  # bitrate index of the frame that holds our index: 64 kbit/s (40 in MPEG 2) give enough room


@dataclass(frozen=True)
class Frame:
    """The header of a frame."""

    kind: tuple[int, int, int, bool]  # version, layer, sample rate in Hz, is mono: the same in all frames of a sound
    size: int  # bytes, including the header
    n_samples: int

    @property
    def is_layer_3(self) -> bool:
        """Whether it is an MP3 in the strict sense, which may have an index."""
        return self.kind[1] == 3

    @cached_property
    def index_position(self) -> int:
        """Position of an index in a frame of layer III: after the header and the side information."""
        version, _, _, is_mono = self.kind
        if version == 3:
            side_information = 17 if is_mono else 32
        else:
            side_information = 9 if is_mono else 17
        return 4 + side_information


@dataclass
class Part:
    """Consecutive frames of the same kind."""

    first: Frame
    n_frames: int = 0
    spans: list[list[int]] = field(default_factory=list)  # [start, stop] in bytes of each run without a gap

    @property
    def n_samples(self) -> int:
        """Samples per channel."""
        return self.n_frames * self.first.n_samples

    def add(self, position: int, size: int) -> None:
        """Add a frame."""
        self.n_frames += 1
        if self.spans and self.spans[-1][1] == position:
            self.spans[-1][1] = position + size
        else:
            self.spans.append([position, position + size])


@dataclass(frozen=True)
class Frames:
    """The frames of an MP3 file."""

    parts: list[Part]  # more than one only if files of different kinds were concatenated
    n_declared: int | None  # number of frames according to the file's index or indices
    is_cut: bool  # whether the last frame is truncated

    @property
    def n_frames(self) -> int:
        """Number of frames with sound."""
        return sum(part.n_frames for part in self.parts)

    @property
    def missing(self) -> str | None:
        """What the file lacks compared to its index; None if nothing is missing, or this is not known."""
        if self.n_declared is not None and self.n_frames + 1 < self.n_declared:  # some encoders count the index itself
            return f"{self.n_frames:,} of {self.n_declared:,} frames"
        if self.is_cut:
            return "its last frame is cut off"
        return None


@lru_cache(maxsize=4_096)
def _frame(header: bytes) -> Frame | None:
    """Parse a frame header of four bytes; None if it is not one, or does not define the size of the frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version = header[1] >> 3 & 3
    layer = 4 - (header[1] >> 1 & 3)
    bitrate_index = header[2] >> 4
    rate_index = header[2] >> 2 & 3
    is_padded = header[2] >> 1 & 1
    is_mono = header[3] >> 6 == 3
    if version == 1 or layer == 4 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    is_mpeg_1 = version == 3
    rate = RATES[version][rate_index]
    bits_per_s = 1_000 * BITRATES[is_mpeg_1, layer][bitrate_index - 1]
    kind = (version, layer, rate, is_mono)
    if layer == 1:
        return Frame(kind, size=4 * (12 * bits_per_s // rate + is_padded), n_samples=384)
    n_samples = 576 if layer == 3 and not is_mpeg_1 else 1_152
    return Frame(kind, size=n_samples // 8 * bits_per_s // rate + is_padded, n_samples=n_samples)


def has_right_index(data: bytes) -> bool:
    """Whether the file begins with an index whose byte count is right: then it is complete, and a single sound."""
    start = _after_tag(data, 0)
    frame = _frame(data[start : start + 4])
    if frame is None or start + frame.size > len(data):
        return False
    xing = start + frame.index_position
    if not data.startswith(XING_MARKS, xing) or data[xing + 7] & 3 != 3:  # 3: has both counts, of frames and bytes
        return False
    n_bytes = int.from_bytes(data[xing + 12 : xing + 16], "big")
    end = len(data)
    if data.startswith(b"TAG", end - ID3V1_SIZE):
        end -= ID3V1_SIZE
    return start + n_bytes == end


def read_frames(data: bytes) -> Frames | None:
    """Walk the frames of an MP3 file, skipping tags and indices; None if it has none of known size."""
    parts: list[Part] = []
    n_declared = 0
    is_cut = False
    position = 0
    previous = None  # kind of the frame before
    while position < len(data) - 3:
        frame = _frame(data[position : position + 4])
        if frame is None or (frame.kind != previous and not _is_followed(data, position)):
            position = _next_frame(data, position)
            continue
        if position + frame.size > len(data):
            is_cut = True
            break
        previous = frame.kind
        n_indexed = _declared_frames(data, position, frame)
        if n_indexed is None:
            if not parts or parts[-1].first.kind != frame.kind:
                parts.append(Part(frame))
            parts[-1].add(position, frame.size)
        else:
            n_declared += n_indexed
        position += frame.size
    if not parts:
        return None
    return Frames(parts, n_declared or None, is_cut)


def with_index(data: bytes, part: Part) -> bytes:
    """Extract some frames of an MP3 file, with an index that counts them all, and without tags and other indices."""
    start = part.spans[0][0]
    header = bytearray(data[start : start + 4])
    header[1] |= 1  # without a checksum
    header[2] = INDEX_BITRATE << 4 | header[2] & 0x0C
    frame = _frame(bytes(header))
    assert frame is not None, "with another valid bitrate, the header stays valid"
    sound = b"".join(data[first:stop] for first, stop in part.spans)
    index = bytearray(frame.size)
    index[:4] = header
    counts = part.n_frames.to_bytes(4, "big") + (len(sound) + frame.size).to_bytes(4, "big")
    fields = b"Xing" + (3).to_bytes(4, "big") + counts  # 3: has both counts, of frames and bytes
    index[frame.index_position : frame.index_position + len(fields)] = fields
    return bytes(index) + sound


def _declared_frames(data: bytes, position: int, frame: Frame) -> int | None:
    """Number of frames according to an index, 0 if the index omits it; None if this frame is not an index."""
    xing = position + frame.index_position
    if data.startswith(XING_MARKS, xing):
        has_count = data[xing + 7] & 1
        if not has_count:
            return 0
        return int.from_bytes(data[xing + 8 : xing + 12], "big")
    vbri = position + VBRI_POSITION
    if data.startswith(b"VBRI", vbri):
        return int.from_bytes(data[vbri + 14 : vbri + 18], "big")
    return None


def _next_frame(data: bytes, position: int) -> int:
    """Position of the next frame that is followed by another one; the end of the data if there is none."""
    if data.startswith(b"ID3", position):
        return _after_tag(data, position)
    position = data.find(b"\xff", position + 1)
    while position >= 0 and not _is_followed(data, position):
        position = data.find(b"\xff", position + 1)
    return position if position >= 0 else len(data)


def _after_tag(data: bytes, position: int) -> int:
    """Position after an ID3v2 tag; the same position if there is none."""
    if not data.startswith(b"ID3", position):
        return position
    size = 0
    for byte in data[position + 6 : position + 10]:
        size = size << 7 | byte & 0x7F
    return position + 10 + size


def _is_followed(data: bytes, position: int) -> bool:
    """Whether a frame begins here that is followed by another of its kind, by a tag, or by the end of the file."""
    frame = _frame(data[position : position + 4])
    if frame is None:
        return False
    stop = position + frame.size
    if stop == len(data) or data[stop : stop + 3] in (b"TAG", b"ID3"):
        return True
    following = _frame(data[stop : stop + 4])
    return following is not None and following.kind == frame.kind
