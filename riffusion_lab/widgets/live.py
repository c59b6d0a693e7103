"""The endless player: a session, heard and steered in a notebook's cell."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..checks import check_prompt
from ..files import write_whole
from ..join import CROSSFADE_S
from ..models import Pipeline
from ..params import PARAMS
from ..prompts import Prompt
from .base import STATIC, script
from .pictures import picture_png
from .session import LiveClip, Session


class Live(anywidget.AnyWidget):
    """Play music without an end, prompt after prompt, while its spectrogram scrolls by.

    The browser asks for clips twice a second and joins them on its own sample clock; the kernel never pushes, so this
    works too where only answers arrive. While the kernel is busy, or slower than the music, the last clip goes round.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str or Prompt
        To begin with.
    folder : path
        Where recordings and recipes are kept; made when there is something to keep.
    **options
        As in `Session`: `seed_clip`, `clips_per_prompt`, `clips_per_seed`, `ahead`, `num_inference_steps`.

    Attributes
    ----------
    session : Session
        What makes the clips: `live.session.add("techno")` does what the button *Add* does.
    volume : float
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    Taught in: 08
    """

    _esm = script("live.js")
    _css = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in ("picture.css", "live.css"))
    volume = traitlets.Float(0.8, min=0, max=1).tag(sync=True)

    def __init__(self, pipe: Pipeline, prompt: str | Prompt, *, folder: str | Path = "clips", **options: Any) -> None:
        self.session, self.folder = Session(pipe, prompt, **options), Path(folder)
        super().__init__()
        self.on_msg(self._receive)

    def _receive(self, _: Live, content: dict[str, Any], _buffers: list[memoryview]) -> None:
        """Answer the browser; nothing here takes long, for it may be asked while a cell waits."""
        answers = {
            "ready": self._greet,
            "poll": self._poll,
            "prompt": self._add,
            "change": lambda content: self.session.change(**{k: v for k, v in content.items() if k != "kind"}),
            "retry": lambda _: self.session.retry(),
            "record": self._record,
            "keep": self._keep,
        }
        try:
            answers.get(content.get("kind"), lambda _: None)(content)
        except (TypeError, ValueError, OSError) as error:  # shown where the buttons are: a callback has no cell
            self.send({"kind": "refused", "text": str(error)})

    def _greet(self, _: dict[str, Any]) -> None:
        sound = {"sample_rate": PARAMS.sample_rate, "fade": round(CROSSFADE_S * PARAMS.sample_rate)}
        strength = None if self.session.seed_clip is None else self.session.strength
        self.send({"kind": "facts", "guidance_scale": self.session.guidance_scale, "strength": strength, **sound})

    def _poll(self, content: dict[str, Any]) -> None:
        for number in content["begun"]:
            self.session.begin(number)
        self.send({"kind": "status", **self.session.status})
        for made in self.session.take(content["have"]):
            self.send({"kind": "clip", "number": made.number, "label": made.point.label}, buffers=_packed(made))

    def _add(self, content: dict[str, Any]) -> None:
        text = check_prompt(content.get("text"), may_be_empty=False)  # an empty text box is likely an oversight
        self.session.add(text)

    def _record(self, content: dict[str, Any]) -> None:
        if content.get("on"):
            self.session.record(self._file(".wav"))
            self.send({"kind": "said", "text": "Recording begins with the next clip."})
        elif path := self.session.stop_recording():
            self.send({"kind": "said", "text": f"Recorded: {path}"})

    def _keep(self, _: dict[str, Any]) -> None:
        path = self._file(".json")
        write_whole(path, json.dumps(self.session.recipe, indent=1).encode())
        self.send({"kind": "said", "text": f"Kept: {path}; replay_session plays it again"})

    def _file(self, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"live-{datetime.now():%Y%m%d-%H%M%S-%f}{suffix}"

    def close(self) -> None:
        """End the session and take the widget away."""
        if "session" in vars(self):  # not where the arguments were wrong
            self.session.stop()
        super().close()

    def __repr__(self) -> str:
        return f"Live({self.session!r})"


def _packed(made: LiveClip) -> list[bytes]:
    """Samples as 16-bit integers, and the picture as PNG."""
    return [np.rint(made.clip.waveform[0] * 32_767).astype("<i2").tobytes(), picture_png(made.clip)]
