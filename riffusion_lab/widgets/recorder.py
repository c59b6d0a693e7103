"""A button that records the microphone of the computer that the browser runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..clip import Clip

LONGEST_S = 60.0


class Recorder(anywidget.AnyWidget):
    """Record from the microphone into a clip.

    Shown in a notebook, it is a button: press it, allow the browser to listen, press it again. The sound
    goes to the kernel as plain samples, so that no codec is needed, and nowhere else.

    Attributes
    ----------
    clip : Clip or None
        The last recording. ``recorder.observe(function, "clip")`` calls a function with each new one.

    Taught in: 01
    """

    _esm = Path(__file__).parent / "static" / "recorder.js"
    longest_s = traitlets.Float(LONGEST_S, help="when recording stops by itself").tag(sync=True)
    clip = traitlets.Instance(Clip, allow_none=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_msg(self._receive)

    def _receive(self, _: Recorder, content: dict[str, Any], buffers: list[memoryview]) -> None:
        """Take a recording: {"kind": "recorded", "sample_rate": Hz} and one buffer of mono float32 samples."""
        if content.get("kind") != "recorded":
            return
        try:
            samples = np.frombuffer(b"".join(bytes(buffer) for buffer in buffers), "<f4")
            self.clip = Clip.from_audio(samples, content.get("sample_rate"))
        except (TypeError, ValueError) as error:  # shown where the button is: a callback has no cell
            self.send({"kind": "refused", "reason": str(error)})
        else:
            self.send({"kind": "taken", "duration_s": self.clip.duration_s})

    def __repr__(self) -> str:
        return f"Recorder(clip={self.clip!r})"
