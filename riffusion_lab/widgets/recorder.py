"""A button that records from the microphone of the computer on which the browser runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from ..clip import Clip
from ..display import clip_html
from .base import FIGURE_BYTES, AnsweringWidget, WithFigure, script, style


class Recorder(WithFigure, AnsweringWidget):
    """Record from the microphone into a clip.

    In a notebook it is a button: press it, allow the browser to use the microphone, and press it again to stop. The
    sound is sent to the kernel and nowhere else, as plain samples, so that no codec is needed.

    Attributes
    ----------
    clip : Clip or None
        The last recording. ``recorder.observe(function, "clip")`` calls a function with each new one.

    Taught in: 01
    """

    _esm = script("recorder.js")
    _css = style()
    button_name = "Record"
    longest_s = traitlets.Float(60.0, help="when recording stops by itself").tag(sync=True)
    clip = traitlets.Instance(Clip, allow_none=True)

    def _answer_ready(self, *_: Any) -> None:
        """Say that the kernel is there."""
        self.send({"kind": "ready"})

    def _answer_recorded(self, content: dict[str, Any], data: bytes) -> None:
        """Receive a recording: {"kind": "recorded", "sample_rate": Hz} and mono float32 samples."""
        self.clip = Clip.from_audio(np.frombuffer(data, "<f4"), content.get("sample_rate"))
        self.send({"kind": "taken", "duration_s": self.clip.duration_s})

    def _figure_html(self) -> str:
        """The last recording, or what the button is for."""
        if self.clip:
            return clip_html(self.clip, max_bytes=FIGURE_BYTES)
        words = "● Record: a button that records the microphone. It answers where a kernel runs: run this cell."
        return f'<figure style="margin:0"><figcaption>{words}</figcaption></figure>'

    def __repr__(self) -> str:
        return f"Recorder(clip={self.clip!r})"
