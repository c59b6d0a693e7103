"""The endless player: a session, heard and steered in a notebook's cell."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..files import write_whole
from ..join import CROSSFADE_S
from ..live import LiveClip, Session
from ..models import Pipeline
from ..params import PARAMS
from ..prompts import Prompt, check_prompt
from .base import STATIC, script
from .pictures import picture_png

LONGEST_NAME = 60  # characters of a prompt that an answer quotes


class Live(anywidget.AnyWidget):
    """Play music without an end, prompt after prompt, while its spectrogram scrolls by.

    The browser asks for clips twice a second (ten times while one is awaited), never again before the kernel has
    answered, and joins them on its own sample clock; the kernel never pushes, so this works too where only answers
    arrive. A new prompt begins at the next beat once its first clip is made. While the kernel is busy, or slower than
    the music, the last clip goes round. At most one `Live` of a page plays: one that begins pauses the
    other. Type a prompt and press Enter; Tab leads from control to control.

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
        kind = content.get("kind")
        if kind == "ready":
            self._greet()
        elif kind == "poll":
            self._answer_poll(content)
        else:
            self._answer_action(kind, content)

    def _answer_action(self, kind: object, content: dict[str, Any]) -> None:
        """Do what the user wants; say what was done, or why not. Send the status too: nobody polls in a pause."""
        actions = {
            "prompt": self._add,
            "change": self._change,
            "retry": self._retry,
            "record": self._record,
            "keep": self._keep,
        }
        if kind not in actions:
            return
        try:
            text = actions[kind](content)
        except (TypeError, ValueError, OSError) as error:  # shown where the buttons are: a callback has no cell
            self._refuse(error)
        else:
            self.send({"kind": "said", "text": text})
        self._send_status()

    def _refuse(self, error: Exception) -> None:
        self.send({"kind": "refused", "text": str(error)})

    def _send_status(self) -> None:
        self.send({"kind": "status", **self.session.status})

    def _greet(self) -> None:
        sound = {"sample_rate": PARAMS.sample_rate, "fade": round(CROSSFADE_S * PARAMS.sample_rate)}
        strength = None if self.session.seed_clip is None else self.session.strength
        self.send({"kind": "facts", "guidance_scale": self.session.guidance_scale, "strength": strength, **sound})

    def _answer_poll(self, content: dict[str, Any]) -> None:
        """Take note of what has begun to sound; send the status and the clips, and last that this was all."""
        self._note_begun(content)
        self._send_status()
        for made in self.session.take(content["have"]):
            self.send(_described(made), buffers=_packed(made))
        self.send({"kind": "answered", "poll": content.get("poll")})

    def _note_begun(self, content: dict[str, Any]) -> None:
        """Tell the session which clips have begun to sound, and how much was heard of those that were cut."""
        for begun in content["begun"]:
            try:
                self.session.begin(begun["number"], cut_s=begun["cut_s"])
            except ValueError as error:  # such as a clip of long ago: what comes after it counts all the same
                self._refuse(error)

    def _add(self, content: dict[str, Any]) -> str:
        n_waiting = len(self.session.queue)
        text = check_prompt(content.get("text"), may_be_empty=False)  # an empty text box is likely an oversight
        self.session.add(text)
        name = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
        place = f" ({n_waiting} before it)" if n_waiting else ""
        return " ".join([f"Added: “{name}”{place}.", *self.session.hints])

    def _change(self, content: dict[str, Any]) -> str:
        values = {name: value for name, value in content.items() if name != "kind"}
        self.session.change(**values)
        settings = " and ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())
        return f"From the next clip on: {settings}."

    def _retry(self, _: dict[str, Any]) -> str:
        self.session.retry()
        return "Trying again."

    def _record(self, content: dict[str, Any]) -> str:
        if content.get("on"):
            self.session.record(self._file(".wav"))
            return "Recording begins with the next clip."
        self._note_begun(content)
        path = self.session.stop_recording(heard_s=content["heard_s"])
        return f"Recorded: {path}" if path else "Nothing is being recorded."

    def _keep(self, _: dict[str, Any]) -> str:
        path = self._file(".json")
        write_whole(path, json.dumps(self.session.recipe, indent=1).encode())
        return f"Kept: {path}; replay_session plays it again"

    def _file(self, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"live-{datetime.now():%Y%m%d-%H%M%S-%f}{suffix}"

    def close(self) -> None:
        """End the session and take the widget away."""
        try:
            if "session" in vars(self):  # not where the arguments were wrong
                self.session.stop()
        finally:
            super().close()

    def __repr__(self) -> str:
        return f"Live({self.session!r})"


def _described(made: LiveClip) -> dict[str, Any]:
    """What the browser is told of a clip, beside its samples and its picture."""
    joins = {"at_beat": made.at_beat, "beats": list(made.beats)}
    return {"kind": "clip", "number": made.number, "label": made.point.label, **joins}


def _packed(made: LiveClip) -> list[bytes]:
    """Samples as 16-bit integers, and the picture as PNG."""
    return [np.rint(made.clip.waveform[0] * 32_767).astype("<i2").tobytes(), picture_png(made.clip)]
