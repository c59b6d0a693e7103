"""A button that records the microphone of the computer that the browser runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from ..clip import Clip
from .base import AnsweringWidget, script


class Recorder(AnsweringWidget):
    """Record from the microphone into a clip.

    Shown in a notebook, it is a button: press it, allow the browser to listen, press it again. The sound
    goes to the kernel as plain samples, so that no codec is needed, and nowhere else.

    Attributes
    ----------
    clip : Clip or None
        The last recording. ``recorder.observe(function, "clip")`` calls a function with each new one.

    Taught in: 01
    """

    _esm = script("recorder.js")
    longest_s = traitlets.Float(60.0, help="when recording stops by itself").tag(sync=True)
    clip = traitlets.Instance(Clip, allow_none=True)

    def _answer_recorded(self, content: dict[str, Any], data: bytes) -> None:
        """Take a recording: {"kind": "recorded", "sample_rate": Hz} and mono float32 samples."""
        self.clip = Clip.from_audio(np.frombuffer(data, "<f4"), content.get("sample_rate"))
        self.send({"kind": "taken", "duration_s": self.clip.duration_s})

    def __repr__(self) -> str:
        return f"Recorder(clip={self.clip!r})"
