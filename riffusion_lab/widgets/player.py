"""A player for clips: picture, playhead, loop without a gap, downloads."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from soundfile import SoundFileError

from ..clip import Clip
from .base import ClipWidget, script

FORMATS = {"wav": "audio/wav", "mp3": "audio/mpeg", "png": "image/png"}


class Player(ClipWidget):
    """Play a clip in the browser.

    Click into the picture, or drag, to play from there. Keys, while the widget has the focus: space plays and pauses,
    ← and → seek by 0.5 s, ↑ and ↓ change the volume, Home goes to the beginning, L switches the loop.

    Parameters
    ----------
    clip : Clip
        Mono or stereo, from a fraction of a second to some minutes.
    loop : bool, optional
        Default: whether the clip is a loop.
    volume : float [range [0, 1]]

    Attributes
    ----------
    clip : Clip
        Set another one to show and play that; what is playing then stops.
    loop, volume
        As above, kept in step with the buttons. A new clip sets `loop` to its own.

    Raises
    ------
    TypeError
        If `clip` is not a clip.

    Taught in: 00
    """

    _esm = script("player.js")
    loop = traitlets.Bool(False).tag(sync=True)
    volume = traitlets.Float(1.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, clip: Clip, *, loop: bool | None = None, volume: float = 1.0, **kwargs: Any) -> None:
        super().__init__(clip, volume=volume, **kwargs)
        if loop is not None:
            self.loop = loop

    @traitlets.observe("clip")
    def _take_loop(self, change: Any) -> None:
        self.loop = change["new"].loop

    def _more(self) -> tuple[dict[str, Any], list[bytes]]:
        """Add the sound: int16 samples, one channel after the other."""
        samples = np.rint(self.clip.waveform * 32_767).astype("<i2")
        return {"sample_rate": self.clip.sample_rate, "channels": len(samples)}, [samples.tobytes()]

    def _answer_save(self, content: dict[str, Any], _: bytes) -> None:
        """Send the file that {"kind": "save", "format": "wav"} asks for, as `Clip.save` writes it."""
        suffix = content.get("format")
        if suffix in FORMATS:
            name = f"{file_stem(self.clip)}.{suffix}"
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / name
                try:
                    self.clip.save(file)
                except SoundFileError as error:
                    raise OSError(f"{name} could not be made ({error}): is the kernel's disk full?") from error
                self.send({"kind": "file", "name": name, "type": FORMATS[suffix]}, buffers=[file.read_bytes()])


def file_stem(clip: Clip) -> str:
    """Name a file after the clip's title: letters, digits and hyphens, at most 60; "clip" without a title."""
    return re.sub(r"[\W_]+", "-", clip.title.lower())[:60].strip("-") or "clip"
