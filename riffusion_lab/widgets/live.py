"""The endless player: hear and steer a session in a notebook cell."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..beats import heard_beats
from ..clip import Clip
from ..files import write_whole
from ..hints import named_tempi, vocabulary_hints
from ..join import CROSSFADE_S
from ..live import LiveClip, Session
from ..models import Pipeline, model_settings
from ..params import PARAMS
from ..prompts import Prompt, check_prompt
from ..seed_clips import BEAT_S, SEED_CLIPS, seed_clip
from .base import STATIC, WithFigure, scale_facts, style
from .figures import strip_html
from .pictures import picture_png

LONGEST_NAME = 60  # characters of a prompt that an answer quotes
LARGEST_RECIPE = 2_000_000  # characters
PART_BYTES = 1 << 20  # of a file that the browser downloads, in one message
FIGURE_CAPTION = (
    "Live: music without an end. It plays where a kernel runs: run this cell. Here is the loop it begins with."
)
N_IDEAS = 40  # random prompts that are sent to the browser
PARTS = ("picture.js", "live_timeline.js", "live_engine.js", "live_words.js", "live_chips.js", "live.js")
# For random prompts: each is used if the model knows all of its words
SOUNDS = (
    "piano", "electric piano", "church organ", "harpsichord", "acoustic guitar", "distorted guitar", "double bass",
    "strings", "violin", "cello", "flute", "clarinet", "saxophone", "trumpet", "choir", "church bells", "music box",
    "vibraphone", "marimba", "steel drums", "sitar", "banjo", "synth lead", "synth pad", "chiptune", "harp",
    "accordion", "drums",
)  # fmt: skip
STYLES = (
    "jazz", "rock", "techno", "deep house", "tropical", "ambient", "funk", "hip hop", "lo-fi hip hop", "classical",
    "folk", "bossa nova", "orchestral", "reggae beach", "samba",
)  # fmt: skip
MOODS = ("happy", "bright", "sad", "dark", "calm", "energetic", "")


def _script() -> str:
    """JavaScript of the player: one text, because a widget's script cannot import."""
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in PARTS)


class Live(WithFigure, anywidget.AnyWidget):
    """Play endless music, prompt after prompt, while its spectrogram scrolls by.

    *Play* starts at once: a seed clip, labelled as such, repeats until the first clip is ready and joins it on the
    beat. The seed clip is not part of the session, nor of any recording or recipe.

    The browser asks for clips twice a second (ten times while it awaits one), but not again before the kernel has
    answered. It joins the clips on its own sample clock. The kernel sends clips only in reply, so this also works in
    front ends that deliver nothing but replies. A new prompt begins at the next beat once its first clip is ready.
    While the kernel is busy, or slower than the music, the last clip repeats. At most one `Live` of a kernel plays, in
    one window: starting one pauses the other.

    Type a prompt and press Enter. Waiting prompts are shown as chips: Alt and the arrow keys, or dragging, move a chip,
    and Delete removes it. Tab moves from control to control.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str or Prompt
        The first prompt.
    folder : path
        Where recordings and recipes are saved; created when there is something to save.
    intro : str, Clip or None
        What plays until the first clip is ready: the name of a seed clip, a loop, or None for nothing. Default:
        "groove". If the session's `seed_clip` is a loop, it plays instead of a named one.
    **options
        As in `Session`: `seed_clip`, `clips_per_prompt`, `clips_per_seed`, `ahead`, `num_inference_steps`.

    Attributes
    ----------
    session : Session
        Generates the clips: `live.session.add("techno")` does what the button *Add* does.
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

    _esm = _script()
    _css = style("live.css")
    volume = traitlets.Float(0.8, min=0, max=1).tag(sync=True)

    _playing: weakref.ref[Live] | None = None  # the one of this kernel that plays, or was the last to do so

    def __init__(
        self,
        pipe: Pipeline,
        prompt: str | Prompt,
        *,
        folder: str | Path = "clips",
        intro: str | Clip | None = "groove",
        **options: Any,
    ) -> None:
        self.session, self.folder = Session(pipe, prompt, **options), Path(folder)
        self.intro = _check_intro(intro, self.session)  # a name, a clip or None
        self._asker: object = None  # the window that is answered
        self._listener: object = None  # the window that plays
        self._kept: dict[str, Path] = {}  # files that may be downloaded, by their names
        super().__init__()
        self.on_msg(self._receive)

    def _receive(self, _: Live, content: dict[str, Any], _buffers: list[memoryview]) -> None:
        """Answer the browser; nothing here may take long, because a message may come while a cell waits."""
        kind = content.get("kind")
        self._asker = content.get("listener")
        if kind == "ready":
            self._greet()
        elif kind == "poll":
            self._answer_poll(content)
        elif kind == "download":
            self._send_part(content)
        else:
            self._answer_action(kind, content)

    def _reply(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        """Answer the window that asked: all windows of a kernel get the answer, and the others ignore it."""
        asker = {} if self._asker is None else {"listener": self._asker}
        self.send(content | asker, buffers=buffers)

    def _answer_action(self, kind: object, content: dict[str, Any]) -> None:
        """Do what the user wants; say what was done, or why not. Also send the status: nobody polls in a pause."""
        actions: dict[object, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "prompt": self._add,
            "remove": self._remove,
            "move": self._move,
            "seed": self._set_seed,
            "change": self._change,
            "retry": self._retry,
            "record": self._record,
            "keep": self._keep,
            "load": self._load,
            "code": self._code,
        }
        if kind not in actions:
            return
        action = {"action": content["action"]} if "action" in content else {}
        try:
            answer = actions[kind](content)
        except KeyError as error:
            self._refuse(ValueError(f"the message {kind!r} lacks {error}"), action)
        except (TypeError, ValueError, OSError) as error:  # shown beside the buttons: a callback has no cell
            self._refuse(error, action)
        else:
            self._reply({"kind": "said", **answer, **action})
        self._send_status()

    def _refuse(self, error: Exception, action: dict[str, Any] | None = None) -> None:
        self._reply({"kind": "refused", "text": str(error), **(action or {})})

    def _send_status(self) -> None:
        self.send({"kind": "status", **self.session.status})

    def _greet(self) -> None:
        """Send what does not change, and the clip that plays until the first one is ready."""
        sound = {"sample_rate": PARAMS.sample_rate, "fade": round(CROSSFADE_S * PARAMS.sample_rate)}
        pipe = self.session.pipe
        facts: dict[str, Any] = {
            "guidance_scale": self.session.guidance_scale,
            "strength": None if self.session.seed_clip is None else self.session.strength,
            "prompt": self.session.plan.first.text,
            "tempi_bpm": list(model_settings(pipe).tempi_bpm),
            "ideas": _ideas(pipe),
            "intro": None,
        }
        buffers: list[bytes] = []
        if self.intro is not None:
            facts["intro"], buffers = _intro_message(self.intro)
        self._reply({"kind": "facts", **sound, **scale_facts(PARAMS), **facts}, buffers)

    def _answer_poll(self, content: dict[str, Any]) -> None:
        """Note which clips have begun to play; send the status, the clips, and a message that this was all."""
        self._note_begun(content)
        if not self._is_heard_by(content):
            self._reply({"kind": "halted", "text": "another Live of this kernel began to play, or this one elsewhere"})
        else:
            ready = self.session.take(content["have"])
            self._send_status()
            for made in ready:
                self._reply(_described(made), buffers=_packed(made))
        self._reply({"kind": "answered", "poll": content.get("poll")})

    def _is_heard_by(self, content: dict[str, Any]) -> bool:
        """Whether the window that asks is the one that plays: the last one where *Play* was pressed."""
        listener = content.get("listener")
        if listener is None:
            return True
        other = Live._playing() if Live._playing else None
        if content.get("starts"):
            if other is not None and other is not self:
                other._listener = None
                other.session.pause()
            self._listener = listener
            Live._playing = weakref.ref(self)
        return listener == self._listener

    def _note_begun(self, content: dict[str, Any]) -> None:
        """Tell the session which clips have begun to play, and how much was heard of those that were cut."""
        for begun in content["begun"]:
            try:
                self.session.begin(begun["number"], cut_s=begun["cut_s"])
            except ValueError as error:  # such as a clip from long ago: later ones still count
                self._refuse(error)

    def _add(self, content: dict[str, Any]) -> dict[str, Any]:
        n_waiting = len(self.session.plan.queue)
        text = check_prompt(content.get("text"), may_be_empty=False)  # an empty text box is likely an oversight
        tempo_bpm = content.get("tempo_bpm")
        if tempo_bpm is not None and not named_tempi(self.session.pipe, text):
            text = f"{text}, {tempo_bpm:g} bpm"
        number = self.session.add(text)
        place = f" ({n_waiting} before it)" if n_waiting else ""
        return {"text": " ".join([f"Added: {_quoted(text)}{place}.", *self.session.hints]), "number": number}

    def _remove(self, content: dict[str, Any]) -> dict[str, Any]:
        self.session.remove(content["number"])
        return {"text": "Taken out."}

    def _move(self, content: dict[str, Any]) -> dict[str, Any]:
        self.session.move(content["number"], content["place"])
        return {"text": "Moved."}

    def _set_seed(self, content: dict[str, Any]) -> dict[str, Any]:
        if content["seed"] == "next":
            return {"text": "Going to the next seed.", "number": self.session.next_seed()}
        self.session.hold(content["seed"] == "hold")
        held = "The seed is held: the clip goes round until you add a prompt."
        return {"text": held if self.session.plan.is_held else "Seeds wander: every few clips to another one."}

    def _change(self, content: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in content.items() if name not in ("kind", "action", "listener")}
        self.session.change(**values)
        settings = " and ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())
        return {"text": f"From the next clip on: {settings}."}

    def _retry(self, _: dict[str, Any]) -> dict[str, Any]:
        self.session.retry()
        return {"text": "Trying again."}

    def _record(self, content: dict[str, Any]) -> dict[str, Any]:
        if content.get("on"):
            self.session.record(self._file(".wav"))
            return {"text": "Recording begins with the next clip."}
        self._note_begun(content)
        path = self.session.stop_recording(heard_s=content["heard_s"])
        if path is None:
            return {"text": "Nothing is being recorded."}
        return {"text": f"Recorded: {path}", "file": self._offer(path)}

    def _keep(self, _: dict[str, Any]) -> dict[str, Any]:
        path = self._file(".json")
        write_whole(path, json.dumps(self.session.recipe, indent=1).encode())
        return {"text": f"Kept: {path}; replay_session plays it again", "file": self._offer(path)}

    def _load(self, content: dict[str, Any]) -> dict[str, Any]:
        text = content["recipe"]
        if not isinstance(text, str) or len(text) > LARGEST_RECIPE:
            raise ValueError(f"a recipe is a text of at most {LARGEST_RECIPE:,} characters: choose one that was kept")
        try:
            recipe = json.loads(text)
        except ValueError as error:
            raise ValueError(f"this file is no recipe ({error}): choose one that “Keep recipe” has made") from error
        self.session.replay(recipe)
        n_clips = len(recipe["heard"])
        return {"text": f"Playing the recipe again: {n_clips} clip{'s' * (n_clips > 1)}, then it goes on from there."}

    def _code(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"text": "The code is below; paste it into a cell.", "code": self.session.code}

    def _offer(self, path: Path) -> dict[str, Any]:
        """Return what the browser needs to request a file."""
        self._kept[path.name] = path
        return {"name": path.name, "bytes": path.stat().st_size}

    def _send_part(self, content: dict[str, Any]) -> None:
        """Send a part of an offered file, from a position in it."""
        name, start = content.get("name"), content.get("start", 0)
        try:
            with self._kept[str(name)].open("rb") as file:
                file.seek(start)
                part = file.read(PART_BYTES)
        except (KeyError, OSError, TypeError, ValueError) as error:
            self._refuse(OSError(f"{name} cannot be read any more ({error}): see the folder {self.folder}"))
            return
        self._reply({"kind": "part", "name": name, "start": start}, buffers=[part])

    def _file(self, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"live-{datetime.now():%Y%m%d-%H%M%S-%f}{suffix}"

    def _figure_html(self) -> str:
        """Show the loop that *Play* begins with; what the model will generate is not known yet."""
        source = self.session.seed_clip if self.intro is None else self.intro
        label, clip = _named_intro("groove" if source is None else source)
        return strip_html([(label, clip)], FIGURE_CAPTION)

    def close(self) -> None:
        """End the session and remove the widget."""
        try:
            if "session" in vars(self):  # missing if the arguments were wrong
                self.session.stop()
        finally:
            super().close()

    def __repr__(self) -> str:
        return f"Live({self.session!r})"


def _quoted(text: str) -> str:
    return f"“{text if len(text) <= LONGEST_NAME else f'{text[:LONGEST_NAME]}…'}”"


def _check_intro(intro: object, session: Session) -> str | Clip | None:
    """Return what plays until the first clip is ready; a session's seed clip that loops replaces a named one."""
    if isinstance(intro, str) and intro not in SEED_CLIPS:
        raise ValueError(f"there is no seed clip {intro!r} for intro: take one of {', '.join(SEED_CLIPS)}")
    if isinstance(intro, Clip) and not (intro.loop and intro.params == PARAMS):
        raise ValueError("intro must be a loop with the models' params: see Clip.from_audio(..., loop=True)")
    if intro is not None and not isinstance(intro, str | Clip):
        raise TypeError(f"intro must be the name of a seed clip, a Clip or None, not {intro!r}")
    source = session.seed_clip
    return source if isinstance(intro, str) and source is not None and source.loop else intro


@lru_cache
def _intro_message(intro: str | Clip) -> tuple[dict[str, Any], list[bytes]]:
    """Message to the browser about the clip that plays first, which is not part of the session."""
    label, clip = _named_intro(intro)
    n_beats = round(clip.duration_s / BEAT_S) if isinstance(intro, str) else heard_beats(clip) or 2
    step = clip.waveform.shape[1] / n_beats
    return {"label": label, "beats": [round(step * beat) for beat in range(1, n_beats)]}, _packed_clip(clip)


def _named_intro(intro: str | Clip) -> tuple[str, Clip]:
    return (f"the seed clip “{intro}”", seed_clip(intro)) if isinstance(intro, str) else ("your seed clip", intro)


def _ideas(pipe: Pipeline) -> list[str]:
    """Random prompts of words that the model knows, each with a tempo at which the loop closes."""
    known = [text for text in (*SOUNDS, *STYLES) if not vocabulary_hints(pipe, text)] or list(
        model_settings(pipe).vocabulary
    )
    moods = [mood for mood in MOODS if not vocabulary_hints(pipe, mood)] or [""]
    tempi_bpm = model_settings(pipe).tempi_bpm or (94, 105, 117, 129)
    draw = random.Random()
    ideas: dict[str, None] = {}
    for _ in range(N_IDEAS):
        words = [draw.choice(moods), draw.choice(known), f"{draw.choice(tempi_bpm)} bpm"]
        ideas[", ".join(word for word in words if word)] = None
    return list(ideas)


def _described(made: LiveClip) -> dict[str, Any]:
    """Message to the browser about a clip, besides its samples and its picture."""
    joins = {"at_beat": made.at_beat, "beats": list(made.beats)}
    times = {} if made.times is None else {"times": made.times}
    return {"kind": "clip", "number": made.number, "label": made.point.label, **joins, **times}


def _packed(made: LiveClip) -> list[bytes]:
    return _packed_clip(made.clip)


def _packed_clip(clip: Clip) -> list[bytes]:
    """Samples as 16-bit integers, and the picture as PNG."""
    return [np.rint(clip.waveform[0] * 32_767).astype("<i2").tobytes(), picture_png(clip)]
