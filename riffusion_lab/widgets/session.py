"""Music without an end: an engine that stays some clips ahead of whoever listens. It knows no widget and no browser."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import numpy as np
import soundfile
import torch

from ..checks import Settings, Source, check_settings, remarks
from ..clip import Clip
from ..edit import for_model
from ..generate import make_clips
from ..hashing import weights_hash
from ..interpolation import check_point, step_task
from ..join import CROSSFADE_S, crossfade
from ..lora import lora_facts
from ..models import Pipeline, model_name
from ..params import PARAMS
from ..prompts import Prompt
from ..recipes import prompt_from_recipe, warn_of_other_weights
from ..soundfiles import FORMATS, WRITE_BLOCK
from ..values import N_SEEDS, check_number, check_whole, warn

LONGEST_QUEUE = 8  # prompts that wait
RECENT = 8  # clips kept for whoever hears them late
NO_WORDS = "(no words)"  # the label of an empty prompt
JOIN_S = 5  # a step of denoising takes less, as a rule


class _NotWanted(Exception):
    """The clip in the making is not wanted any more."""


@dataclass(frozen=True)
class Point:
    """A place between two prompts: at `alpha` 0 lies the first, at 1 the second."""

    start: Prompt
    end: Prompt
    alpha: float

    @property
    def nearest(self) -> Prompt:
        """The prompt that is heard most."""
        return self.end if self.alpha >= 0.5 else self.start

    @property
    def wanders(self) -> bool:
        """Whether only the seed changes here."""
        return replace(self.start, seed=0) == replace(self.end, seed=0)

    @property
    def label(self) -> str:
        """What is heard here, in words."""
        if self.start.text == self.end.text or self.alpha in (0, 1):
            return self.nearest.text.strip() or NO_WORDS
        start = self.start.text.strip() or NO_WORDS
        end = self.end.text.strip() or NO_WORDS
        return f"{start} → {end} ({self.alpha:.0%})"


@dataclass(frozen=True)
class LiveClip:
    """A clip of a session, its number, and where it lies: as asked for, and with all settings filled in."""

    number: int
    clip: Clip
    asked: Point
    point: Point


class Session:
    """Goes from prompt to prompt, clip by clip, for as long as somebody listens.

    One thread makes the clips, at most `ahead` more than have begun to sound. Every clip is a loop that begins on its
    beat. A prompt that is added is reached in `clips_per_prompt` clips; when none waits, the last one goes on with
    other seeds, `clips_per_seed` clips from each to the next. A prompt that comes while nothing waits takes the place
    of what was made ahead, so it is heard next. (A browser that has that already may play it once, if it must.)

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str or Prompt
        To begin with.
    seed_clip : Clip, optional
        Begin every clip from this one instead of pure noise, by the prompts' `strength` (default: 0.75). A whole number
        of the model's clips long.
    clips_per_prompt, clips_per_seed : int
        At least 1.
    ahead : int
        At least 1.
    num_inference_steps : int, optional
        Default: the model's own.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Notes
    -----
    Taught in: 08
    """

    def __init__(
        self,
        pipe: Pipeline,
        prompt: str | Prompt,
        *,
        seed_clip: Clip | None = None,
        clips_per_prompt: int = 2,
        clips_per_seed: int = 4,
        ahead: int = 2,
        num_inference_steps: int | None = None,
    ) -> None:
        first = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        checked = check_point(pipe, first)
        self.pipe, self.seed_clip = pipe, None if seed_clip is None else for_model(seed_clip)
        source = None if self.seed_clip is None else Source(self.seed_clip)
        self.settings = check_settings(pipe, num_inference_steps, None, True, 1, source, self._on_step_end)
        self.clips_per_prompt = check_whole("clips_per_prompt", clips_per_prompt, 1, 1_000)
        self.clips_per_seed = check_whole("clips_per_seed", clips_per_seed, 1, 1_000)
        self.ahead = check_whole("ahead", ahead, 1, 100)
        self.guidance_scale, self.strength = checked.guidance_scale, checked.strength
        self.remarks = remarks(pipe, [checked])
        self.queue: deque[Prompt] = deque()
        self.path: deque[Point] = deque([Point(first, first, 0.0)])  # laid out, not made yet
        self.last = self.path[0]  # the last point that was laid out
        self.ready: list[LiveClip] = []  # made, not begun yet
        self.recent: deque[LiveClip] = deque(maxlen=self.ahead + RECENT)
        self.heard: list[tuple[Point, int]] = []  # and how many times in a row
        self.n_made, self.progress, self.seconds_per_clip = 0, 0.0, 0.0
        self.error: Exception | None = None
        self.changed, self._stopped = Condition(), False
        self._thread = Thread(target=self._work, name="riffusion_lab session", daemon=True)
        self._making: Point | None = None
        self._begun: LiveClip | None = None
        self._take: Take | None = None
        self.recording_error = ""  # why the last recording ended before it was stopped

    def add(self, prompt: str | Prompt) -> None:
        """Go to another prompt: next, or after those that wait already.

        Parameters
        ----------
        prompt : str or Prompt
            Words alone take the seed that is heard.

        Raises
        ------
        TypeError, ValueError
            If it is no prompt, or too many wait already; the session goes on as before.
        """
        with self.changed:
            goal = prompt if isinstance(prompt, Prompt) else Prompt(prompt, self._here().seed)
            checked = check_point(self.pipe, goal)
            if len(self.queue) >= LONGEST_QUEUE:
                raise ValueError(f"{LONGEST_QUEUE} prompts wait already: add {goal.text[:40]!r} when one was heard")
            self.remarks, self.error = remarks(self.pipe, [checked]), None
            if not self.queue and self.last.wanders:
                self._forget_wandering()
            self.queue.append(goal)
            self.changed.notify_all()

    def change(self, *, guidance_scale: float | None = None, strength: float | None = None) -> None:
        """Set guidance scale (0 or more) or strength (0…1; heard where there is a seed clip) from the next clip on.

        What was made ahead is made again. Prompts that bring values of their own keep them.
        """
        with self.changed:
            given = self.guidance_scale if guidance_scale is None else check_number("guidance_scale", guidance_scale, 0)
            self.strength = self.strength if strength is None else check_number("strength", strength, 0, 1)
            self.guidance_scale = given
            making = [self._making] if self._making else []
            self.path.extendleft(reversed([made.asked for made in self.ready] + making))
            self.ready, self._making = [], None
            self.changed.notify_all()

    def take(self, have: int = 0) -> list[LiveClip]:
        """Give the clips that are ready and whose numbers are above `have`. Returns at once; the first call starts."""
        with self.changed:
            self._start()
            return [made for made in self.ready if made.number > have]

    def begin(self, number: int) -> LiveClip:
        """Say that a clip begins to sound, for the first time or again: room for the next one.

        A recording that cannot go on, on a full disk for example, is closed: `recording_error` says why. The music goes
        on.

        Raises
        ------
        ValueError
            If there is no such clip, or it is too long ago.
        """
        with self.changed:
            made = next((made for made in self.recent if made.number == number), None)
            if made is None:
                raise ValueError(f"clip {number!r} is not at hand: of {self.n_made} the last {len(self.recent)} are")
            times = self.heard.pop()[1] if self._begun is made else 0
            self.heard.append((made.point, times + 1))
            self.ready, self._begun = [other for other in self.ready if other.number > number], made
            if self._take:
                self._add_to_recording(made.clip)
            self.changed.notify_all()
            return made

    def next(self, timeout_s: float | None = None) -> Clip:
        """Wait for the next clip, and let it begin. A recording that cannot go on is closed with a warning.

        Raises
        ------
        TimeoutError
            If it is not there after `timeout_s` seconds.
        RuntimeError
            If making it failed, for the reason that is its cause; the next call tries again. Or after `stop`.
        """
        with self.changed:
            self._start()
            if not self.changed.wait_for(lambda: self.ready or self.error or self._stopped, timeout_s):
                raise TimeoutError(f"no clip after {timeout_s:g} s")
            if self._stopped:
                raise RuntimeError("the session was stopped: begin a new one")
            if not self.ready:
                error = self.error
                self.retry()
                raise RuntimeError(f"the next clip could not be made: {error}") from error
            was_recording = self._take is not None
            clip = self.begin(self.ready[0].number).clip
            if was_recording and self._take is None:
                warn(self.recording_error)
            return clip

    def retry(self) -> None:
        """Go on after an error."""
        with self.changed:
            self.error = None
            self.changed.notify_all()

    def stop(self) -> None:
        """End the session and its recording; the clip in the making is given up.

        Raises
        ------
        OSError
            If the end of the recording cannot be written; the session has ended all the same.
        """
        with self.changed:
            self._stopped, self._making = True, None
            self.changed.notify_all()
        if self._thread.ident:
            self._thread.join(JOIN_S)  # a program that ends while a thread calculates is aborted
        self.stop_recording()

    def record(self, path: str | os.PathLike[str]) -> None:
        """Write what is heard from the next clip on to a file, as it is heard, until `stop_recording`.

        Raises
        ------
        ValueError, OSError
            If the name ends in none of `audio.FORMATS`, or the file cannot be written.
        """
        with self.changed:
            take = Take(path)
            before = self._take
            self._take = take
            self.recording_error = ""
            if before:
                before.close()

    def stop_recording(self) -> Path | None:
        """Close the file of `record`; gives its path, or None where nothing is being recorded.

        Raises
        ------
        OSError
            If the end of the file cannot be written; nothing is being recorded any more.
        """
        with self.changed:
            take, self._take = self._take, None
            return take.close() if take else None

    @property
    def status(self) -> dict[str, Any]:
        """What goes on, for those who show it; fits into JSON."""
        with self.changed:
            return {
                "ready": [made.number for made in self.ready],
                "progress": self.progress,
                "queue": [prompt.text for prompt in self.queue],
                "error": f"{type(self.error).__name__}: {self.error}" if self.error else "",
                "remarks": list(self.remarks),
                "recording": str(self._take.path) if self._take else "",
                "recording_error": self.recording_error,
                "stopped": self._stopped,
            }

    @property
    def recipe(self) -> dict[str, Any]:
        """All that is needed to make what was heard again (`replay_session`); fits into JSON."""
        with self.changed:
            heard = [asdict(point) | {"times": times} for point, times in self.heard]
        source = self.settings.source.given() if self.settings.source else {}
        weights = {"model": model_name(self.pipe), "weights_sha256": weights_hash(self.pipe)}
        weights |= lora_facts(self.pipe)
        steps = self.settings.num_inference_steps
        return {"kind": "live", "heard": heard, "num_inference_steps": steps, **weights, **source}

    def __repr__(self) -> str:
        return f"Session({self._here().text!r})"

    def _add_to_recording(self, clip: Clip) -> None:
        """Write a clip to the recording. If that fails the recording ends, and nothing else does."""
        try:
            self._take.add(clip)
        except OSError as error:
            self._take = None
            self.recording_error = str(error)

    def _start(self) -> None:
        if self._thread.ident is None and not self._stopped:
            self._thread.start()

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # of this thread
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._stopped or not self.error and len(self.ready) < self.ahead)
                if self._stopped:
                    return
                self._making = asked = self._next_point()
                point = replace(asked, start=self._filled(asked.start), end=self._filled(asked.end))
            started, clip, error = time.perf_counter(), None, None
            try:
                clip = make_point(self.pipe, point, self.settings)
                _ = clip.waveform  # made here, where nobody waits for it
            except _NotWanted:
                continue
            except Exception as problem:  # the thread outlives it, listeners are told, and `next` raises it
                error = problem
            with self.changed:
                self.seconds_per_clip, self.progress = time.perf_counter() - started, 0.0
                is_wanted, self._making = self._making is asked, None
                if is_wanted and error:
                    self.error = error
                    self.path.appendleft(asked)
                elif is_wanted:
                    self.n_made += 1
                    self.ready.append(LiveClip(self.n_made, clip, asked, point))
                    self.recent.append(self.ready[-1])
                self.changed.notify_all()

    def _next_point(self) -> Point:
        """Take the next point; where the path ends, lay out the way to the next prompt or to the next seed."""
        if not self.path:
            start = self.last.end
            goal, n_clips = replace(start, seed=(start.seed + 1) % N_SEEDS), self.clips_per_seed
            if self.queue:
                goal, n_clips = self.queue.popleft(), self.clips_per_prompt
            self.path.extend(Point(start, goal, (i + 1) / n_clips) for i in range(n_clips))
            self.last = self.path[-1]
        return self.path.popleft()

    def _forget_wandering(self) -> None:
        """Drop what was made ahead for want of a prompt; the next way begins where the music is."""
        self.ready = [made for made in self.ready if not made.asked.wanders or made.asked.alpha == 0]
        if self._making and self._making.alpha:
            self._making = None
        self.path = deque(point for point in self.path if point.alpha == 0)  # the very first clip
        here = self.ready[-1].asked.nearest if self.ready else self._here()
        self.last = Point(here, here, 1.0)

    def _here(self) -> Prompt:
        return self._begun.asked.nearest if self._begun else self.last.start

    def _filled(self, prompt: Prompt) -> Prompt:
        """A prompt with the session's guidance scale and strength where it has none of its own."""
        given = {"guidance_scale": self.guidance_scale, "strength": self.strength}
        return replace(prompt, **{name: value for name, value in given.items() if getattr(prompt, name) is None})

    def _on_step_end(self, _pipe: Pipeline, step: int, _timestep: object, _tensors: dict[str, Any]) -> None:
        with self.changed:
            self.progress = (step + 1) / self.settings.num_inference_steps
            if self._making is None:
                raise _NotWanted


class Take:
    """A file that grows by clips, each joined to the one before as it is heard.

    What the disk refuses is an OSError that names the file; the file then holds what was written before, and is closed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.before = Path(path), None
        self.n_written = 0  # samples
        if self.path.suffix.lower() not in FORMATS:
            raise ValueError(f"{self.path.name} ends in no known format: give one of {', '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be recorded: the folder {self.path.parent} does not exist")
        kind = FORMATS[self.path.suffix.lower()]
        try:
            self.file = soundfile.SoundFile(self.path, "w", PARAMS.sample_rate, PARAMS.n_channels, format=kind)
        except soundfile.SoundFileError as error:
            advice = "give a file in a folder that can be written to, on a disk with room"
            raise OSError(f"{path} cannot be recorded ({error}): {advice}") from error

    def add(self, clip: Clip) -> None:
        """Write a clip; where another one sounded before, that one fades out under it."""
        sound = clip.waveform
        if self.before not in (None, clip):
            sound = crossfade(self.before.waveform, sound, round(CROSSFADE_S * clip.sample_rate))
        self.before = clip
        for start in range(0, sound.shape[1], WRITE_BLOCK):
            self._write(sound[:, start : start + WRITE_BLOCK])

    def _write(self, sound: np.ndarray) -> None:
        """Write samples of shape (channels, samples)."""
        try:
            self.file.write(sound.T)
        except (soundfile.SoundFileError, OSError, AssertionError) as error:  # it asserts that all samples were written
            self._rescue()
            heard = f"about the first {self.n_written / PARAMS.sample_rate:.1f} s"
            reason = f"no more could be written ({error}); is the disk full?"
            raise OSError(f"The recording {self.path} ends here and holds {heard}: {reason}") from error
        self.n_written += sound.shape[1]

    def _rescue(self) -> None:
        """Close a file that cannot grow any more, so that what it holds can be read."""
        with suppress(soundfile.SoundFileError, OSError):  # the error that led here is told
            self.file.close()
        if FORMATS[self.path.suffix.lower()] == "FLAC":
            with suppress(OSError):
                _write_flac_length(self.path, self.n_written)

    def close(self) -> Path:
        """Finish the file."""
        try:
            self.file.close()
        except soundfile.SoundFileError as error:
            raise OSError(f"the end of {self.path} could not be written ({error}): is the disk full?") from error
        return self.path


def _write_flac_length(path: Path, n_written: int) -> None:
    """Write into a FLAC file how many samples it has, which libFLAC leaves out after an error.

    The file begins with the block STREAMINFO (https://www.rfc-editor.org/rfc/rfc9639#section-8.2): bytes 8 and 9 are
    the number of samples in a frame, the last 36 bits of bytes 18 to 25 the number of samples in the file. An encoder
    keeps what fills no frame, and one sample more, for later; so that is not in the file.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(26))
        frame = int.from_bytes(header[8:10], "big")
        numbers = int.from_bytes(header[18:26], "big")
        if numbers % 2**36:  # the encoder has written it
            return
        n_samples = max(0, n_written - 1) // frame * frame
        header[18:26] = (numbers + n_samples).to_bytes(8, "big")
        file.seek(0)
        file.write(header)


def make_point(pipe: Pipeline, point: Point, settings: Settings) -> Clip:
    """Make the clip that lies at a point."""
    ends = (check_point(pipe, prompt) for prompt in (point.start, point.end))
    return next(make_clips(pipe, "interpolate", [step_task(pipe, *ends, point.alpha, settings.n_columns)], settings))


def replay_session(recipe: Mapping[str, Any], pipe: Pipeline, *, seed_clip: Clip | None = None) -> Iterator[Clip]:
    """Make what was heard in a session again, clip by clip; `stitch` joins the clips.

    Parameters
    ----------
    recipe : mapping
        As `Session.recipe` gives it.
    pipe : StableDiffusionPipeline
        Of the same weights; of others it is said that they are.
    seed_clip : Clip, optional
        The session's, if it had one.

    Returns
    -------
    iterator of Clip

    Raises
    ------
    TypeError, ValueError
        If it is no recipe of a session, or the seed clip is missing or another; at once.

    Notes
    -----
    Taught in: 08
    """
    if not isinstance(recipe, Mapping) or recipe.get("kind") != "live":
        raise ValueError(f"this is no recipe of a session: {recipe!r:.60}; give Session.recipe")
    source = None if seed_clip is None else Source(for_model(seed_clip))
    if (source.given() if source else {}).get("source_sha256") != recipe.get("source_sha256"):
        raise ValueError("the session's seed clip and seed_clip are not the same: give the one that the session had")
    warn_of_other_weights(recipe, pipe, "the session was played")
    settings = check_settings(pipe, recipe["num_inference_steps"], None, True, 1, source)
    points = [(_point_from_recipe(heard), heard["times"]) for heard in recipe["heard"]]
    return (clip for point, times in points for clip in [make_point(pipe, point, settings)] * times)


def _point_from_recipe(heard: Mapping[str, Any]) -> Point:
    return Point(prompt_from_recipe(heard["start"]), prompt_from_recipe(heard["end"]), heard["alpha"])
