"""Endless music: a session generates clips ahead of playback. It needs no widget and no browser."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import torch

from .beats import find_beats
from .clip import Clip
from .generate import generate_clips
from .hashing import weights_hash
from .join import CROSSFADE_S, loop_from
from .lora import lora_facts
from .models import Pipeline, model_name
from .prompts import Prompt
from .recipes import prompt_from_recipe, warn_of_other_weights
from .recording import Recording
from .requests import (
    Options,
    Point,
    as_model_clip,
    check_options,
    check_point,
    check_walk_prompt,
    find_hints,
    source_facts,
)
from .values import N_SEEDS, check_number, check_whole, warn

LONGEST_QUEUE = 8  # prompts
RECENT = 8  # clips kept for listeners that are late
JOIN_S = 5  # a step of denoising takes less, as a rule


class _NotWanted(Exception):
    """The clip that is being generated is not wanted any more."""


@dataclass(frozen=True)
class LiveClip:
    """A clip of a session, and how it joins the others.

    number : int
        From 1.
    clip : Clip
    asked, point : Point
        Where it lies among the prompts: as asked for, and with all settings filled in.
    at_beat : bool
        Whether it is to begin at the next beat of the clip that sounds, which then ends there. Otherwise it begins at
        that clip's end.
    beats : tuple of int
        Where this clip may end early, in samples from its beginning; see `find_beats`.
    """

    number: int
    clip: Clip
    asked: Point
    point: Point
    at_beat: bool = False
    beats: tuple[int, ...] = ()


class Session:
    """Generate clip after clip, from prompt to prompt, for as long as somebody listens.

    One thread generates the clips, at most `ahead` more than have begun to sound. Every clip is a loop that begins on
    the beat. A new prompt is reached in `clips_per_prompt` clips; while the queue is empty, the last prompt goes on
    with other seeds, `clips_per_seed` clips from each to the next.

    A prompt that is added while no other waits is heard next: it replaces what was generated ahead. Its first clip is
    marked `at_beat`, as is the first one after `change`: a browser begins such a clip at the next beat of the clip that
    sounds. A prompt waits from `add` until the music is at least halfway to it; those added meanwhile are heard after
    it.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str or Prompt
        The first one.
    seed_clip : Clip, optional
        Start every clip from this one instead of pure noise, by the prompts' `strength` (default: 0.75). Its length
        must be a multiple of the model's own.
    clips_per_prompt, clips_per_seed : int
        Clips from one prompt, or seed, to the next; at least 1.
    ahead : int
        How many clips to generate ahead; at least 1.
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
        checked = check_walk_prompt(pipe, first)
        self.pipe = pipe
        self.seed_clip = None if seed_clip is None else as_model_clip(seed_clip)
        self.options = check_options(
            pipe,
            num_inference_steps=num_inference_steps,
            loop=True,
            source=self.seed_clip,
            callback=self._on_step_end,
        )
        self.clips_per_prompt = check_whole("clips_per_prompt", clips_per_prompt, 1, 1_000)
        self.clips_per_seed = check_whole("clips_per_seed", clips_per_seed, 1, 1_000)
        self.ahead = check_whole("ahead", ahead, 1, 100)
        self.guidance_scale = checked.guidance_scale
        self.strength = checked.strength
        self.hints = find_hints(pipe, [Point((checked,))])
        self.queue: deque[Prompt] = deque()
        self.path: deque[Point] = deque([Point.between(first, first, 0.0)])  # planned, not generated yet
        self.last = self.path[0]  # the last point that was planned
        self.ready: list[LiveClip] = []  # generated, not begun yet
        self.recent: deque[LiveClip] = deque(maxlen=self.ahead + RECENT)
        # And how many times in a row it was heard: 1.5 if it was cut in the middle of the second time
        self.heard: list[tuple[Point, float]] = []
        self.n_made = 0
        self.progress = 0.0  # of the clip that is being generated, in [0, 1]
        self.seconds_per_clip = 0.0
        self.error: Exception | None = None
        self.recording_error = ""  # why the last recording ended before it was stopped
        self.changed = Condition()
        self._stopped = False
        self._thread = Thread(target=self._work, name="riffusion_lab session", daemon=True)
        self._making: Point | None = None
        self._is_awaited = False  # whether the next clip is to begin at a beat
        self._begun: LiveClip | None = None
        self._recording: Recording | None = None

    def add(self, prompt: str | Prompt) -> None:
        """Go to another prompt: next, or after those that wait.

        Parameters
        ----------
        prompt : str or Prompt
            A str takes the seed that is heard now.

        Raises
        ------
        TypeError, ValueError
            If it is no prompt, or the queue is full; the session goes on as before.
        """
        with self.changed:
            goal = prompt if isinstance(prompt, Prompt) else Prompt(prompt, self._here().seed)
            checked = check_walk_prompt(self.pipe, goal)
            if len(self.queue) >= LONGEST_QUEUE:
                raise ValueError(
                    f"{LONGEST_QUEUE} prompts are already waiting: add {goal.text[:40]!r} once one has been played"
                )
            self.hints = find_hints(self.pipe, [Point((checked,))])
            self.error = None
            if not self.queue:
                self._drop_dispensable()
            self.queue.append(goal)
            self.changed.notify_all()

    def change(self, *, guidance_scale: float | None = None, strength: float | None = None) -> None:
        """Set guidance scale (0 or more) or strength (in [0, 1]; it needs a seed clip) from the next clip on.

        What was generated ahead is generated again, and begins at a beat. Prompts with values of their own keep them.

        Raises
        ------
        TypeError, ValueError
            If a value is wrong; nothing is changed.
        """
        with self.changed:
            if guidance_scale is not None:
                guidance_scale = check_number("guidance_scale", guidance_scale, 0)
            if strength is not None:
                self.strength = check_number("strength", strength, 0, 1)
            if guidance_scale is not None:
                self.guidance_scale = guidance_scale
            unheard = [made.asked for made in self.ready]
            if self._making:
                unheard.append(self._making)
            self.path.extendleft(reversed(unheard))
            self.ready = []
            self._making = None
            self._is_awaited = self._begun is not None
            self.changed.notify_all()

    def take(self, have: int = 0) -> list[LiveClip]:
        """Return the clips that are ready and have numbers above `have`, at once. The first call starts the session.

        With `begin`, this is all that a player needs. A clip that is marked `at_beat` and is the first of those that
        are ready may begin at the next of the `beats` of the clip that sounds.
        """
        with self.changed:
            self._start()
            return [made for made in self.ready if made.number > have]

    def begin(self, number: int, *, cut_s: float | None = None) -> LiveClip:
        """Record that a clip has started to play, for the first time or again, which makes room for the next one.

        A recording that cannot go on, for example because the disk is full, is closed, and `recording_error` says why.
        The music goes on.

        Parameters
        ----------
        number : int
        cut_s : float, optional
            How much was heard of the clip before, when it last came round; rounded to a column of its picture (10 ms).
            Default: all.

        Raises
        ------
        TypeError, ValueError
            If there is no such clip, or it was too long ago; or if no clip has played yet that could have been cut, or
            it is shorter. Nothing is changed.
        """
        with self.changed:
            made = next((made for made in self.recent if made.number == number), None)
            if made is None:
                raise ValueError(
                    f"clip {number!r} is not available: of {self.n_made} the last {len(self.recent)} are kept"
                )
            n_heard = None if cut_s is None else self._check_cut(cut_s)
            self._note_heard(made, n_heard)
            self.ready = [other for other in self.ready if other.number > number]
            self._begun = made
            self._record_clip(made.clip, n_heard)
            self.changed.notify_all()
            return made

    def next(self, timeout_s: float | None = None) -> Clip:
        """Wait for the next clip, and let it begin at the end of the one before: whole clips, also after `add`.

        A recording that cannot go on is closed with a warning. Use `take` and `begin` to join clips at their beats, as
        a browser does.

        Raises
        ------
        TimeoutError
            If it is not ready after `timeout_s` seconds.
        RuntimeError
            If it could not be generated, with the reason as its cause; the next call tries again. Or after `stop`.
        """
        with self.changed:
            self._start()
            if not self.changed.wait_for(lambda: self.ready or self.error or self._stopped, timeout_s):
                raise TimeoutError(f"no clip after {timeout_s:g} s")
            if self._stopped:
                raise RuntimeError("the session was stopped: start a new one")
            if not self.ready:
                error = self.error
                self.retry()
                raise RuntimeError(f"the next clip could not be generated: {error}") from error
            was_recording = self._recording is not None
            clip = self.begin(self.ready[0].number).clip
            if was_recording and self._recording is None:
                warn(self.recording_error)
            return clip

    def retry(self) -> None:
        """Go on after an error."""
        with self.changed:
            self.error = None
            self.changed.notify_all()

    def stop(self) -> None:
        """End the session and its recording; the clip that is being generated is given up.

        Raises
        ------
        OSError
            If the end of the recording cannot be written; the session has ended all the same.
        """
        with self.changed:
            self._stopped = True
            self._making = None
            self.changed.notify_all()
        if self._thread.ident:
            self._thread.join(JOIN_S)  # Python aborts if it exits while a thread is computing
        self.stop_recording()

    def record(self, path: str | os.PathLike[str]) -> None:
        """Write what is heard from the next clip on to a file, as it is heard, until `stop_recording`.

        Each clip is written when the next one begins.

        Raises
        ------
        ValueError, OSError
            If the name ends in none of `soundfiles.FORMATS`, or the file cannot be written.
        """
        with self.changed:
            recording = Recording(path)
            previous = self._recording
            self._recording = recording
            self.recording_error = ""
            if previous:
                previous.close()

    def stop_recording(self, *, heard_s: float | None = None) -> Path | None:
        """Close the file of `record`, and return its path; None if nothing is being recorded.

        Parameters
        ----------
        heard_s : float, optional
            How much was heard so far of the clip that sounds. Default: all of it is written.

        Raises
        ------
        TypeError, ValueError
            If the clip is shorter than `heard_s`; the recording goes on.
        OSError
            If the end of the file cannot be written; nothing is being recorded any more.
        """
        with self.changed:
            recording = self._recording
            n_heard = None
            if heard_s is not None and self._begun is not None:
                n_heard = _n_samples("heard_s", heard_s, self._begun.clip)
            self._recording = None
            return recording.close(n_heard) if recording else None

    @property
    def status(self) -> dict[str, Any]:
        """State of the session, for a display; fits into JSON."""
        with self.changed:
            return {
                "ready": [made.number for made in self.ready],
                "awaited": self._is_awaited and self.error is None and not self._stopped,
                "progress": self.progress,
                "queue": [prompt.text for prompt in self.queue],
                "error": f"{type(self.error).__name__}: {self.error}" if self.error else "",
                "hints": list(self.hints),
                "recording": str(self._recording.path) if self._recording else "",
                "recording_error": self.recording_error,
                "stopped": self._stopped,
            }

    @property
    def recipe(self) -> dict[str, Any]:
        """All that is needed to generate what was heard again (`replay_session`); fits into JSON."""
        with self.changed:
            heard = [point.to_recipe() | {"times": times} for point, times in self.heard]
        return {
            "kind": "live",
            "heard": heard,
            "num_inference_steps": self.options.num_inference_steps,
            "model": model_name(self.pipe),
            "weights_sha256": weights_hash(self.pipe),
            **lora_facts(self.pipe),
            **source_facts(self.seed_clip),
        }

    def __repr__(self) -> str:
        return f"Session({self._here().text!r})"

    def _check_cut(self, cut_s: float) -> int:
        """Samples of the clip that sounded which were heard when it last came round: a whole number of columns."""
        if self._begun is None:
            raise ValueError(f"no clip has begun yet that could have been cut after {cut_s!r} s: leave out cut_s")
        clip = self._begun.clip
        hop = clip.params.hop_length
        return round(_n_samples("cut_s", cut_s, clip) / hop) * hop

    def _note_heard(self, made: LiveClip, n_heard: int | None) -> None:
        """Note that a clip begins; of the one that sounded, `n_heard` samples were heard when it last came round."""
        if n_heard is not None and self._begun is not None:
            point, times = self.heard.pop()
            n_samples = self._begun.clip.waveform.shape[1]
            self.heard.append((point, times - 1 + n_heard / n_samples))
        if self._begun is made and n_heard is None:
            point, times = self.heard.pop()
            self.heard.append((point, times + 1))
        else:
            self.heard.append((made.point, 1))

    def _record_clip(self, clip: Clip, n_heard: int | None) -> None:
        """Tell the recording, if there is one, that a clip begins, and how many samples of the one before were heard.

        If it cannot be written, the recording ends, and nothing else does.
        """
        if self._recording is None:
            return
        try:
            self._recording.begin(clip, n_heard)
        except OSError as error:
            self._recording = None
            self.recording_error = str(error)

    def _start(self) -> None:
        if self._thread.ident is None and not self._stopped:
            self._thread.start()

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # of this thread
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._stopped or self._may_generate())
                if self._stopped:
                    return
                asked = self._next_point()
                point = replace(asked, prompts=tuple(self._filled(prompt) for prompt in asked.prompts))
                self._making = asked
            clip = None
            beats: tuple[int, ...] = ()
            error = None
            started = time.perf_counter()
            try:
                clip = generate_point(self.pipe, point, self.options)
                _ = clip.waveform  # computed here, where nobody waits for it
                beats = find_beats(self.pipe, point, clip)
            except _NotWanted:
                continue
            except Exception as problem:  # the thread survives it, listeners are told, and `next` raises it
                error = problem
            with self.changed:
                self.seconds_per_clip = time.perf_counter() - started
                self.progress = 0.0
                is_wanted = self._making is asked
                self._making = None
                if is_wanted and error is None and clip is not None:
                    self._add_ready(clip, asked, point, beats)
                elif is_wanted:
                    self.error = error
                    self.path.appendleft(asked)
                self.changed.notify_all()

    def _may_generate(self) -> bool:
        return self.error is None and len(self.ready) < self.ahead

    def _add_ready(self, clip: Clip, asked: Point, point: Point, beats: tuple[int, ...]) -> None:
        self.n_made += 1
        made = LiveClip(number=self.n_made, clip=clip, asked=asked, point=point, at_beat=self._is_awaited, beats=beats)
        self._is_awaited = False
        self.ready.append(made)
        self.recent.append(made)

    def _next_point(self) -> Point:
        """Take the next point; at the end of the path, plan the way to the next prompt or to the next seed."""
        if not self.path:
            start = self.last.end
            if self.queue:
                goal = self.queue.popleft()
                n_clips = self.clips_per_prompt
            else:
                goal = replace(start, seed=(start.seed + 1) % N_SEEDS)
                n_clips = self.clips_per_seed
            self.path.extend(Point.between(start, goal, (i + 1) / n_clips) for i in range(n_clips))
            self.last = self.path[-1]
        return self.path.popleft()

    def _drop_dispensable(self) -> None:
        """Drop what is not needed once another prompt is added; the way to that begins where the rest ends.

        If nothing is left, the next clip is awaited: it begins at a beat of the one that sounds.
        """
        planned = [made.asked for made in self.ready]
        if self._making:
            planned.append(self._making)
        planned.extend(self.path)
        while planned and self._is_dispensable(planned[-1]):
            planned.pop()
        here = self._here()
        self.last = planned[-1] if planned else Point.between(here, here, 1.0)
        self.ready = self.ready[: len(planned)]
        waiting = deque(planned[len(self.ready) :])
        if self._making and waiting:
            waiting.popleft()  # it is being made already
        else:
            self._making = None
        self.path = waiting
        if not planned:
            self._is_awaited = self._begun is not None

    def _is_dispensable(self, point: Point) -> bool:
        """Whether a point that is planned only leads to another seed, or on to a prompt that is heard already."""
        if point.alpha == 0:  # the very first clip
            return False
        is_heard = self._begun is not None and replace(point.end, seed=0) == replace(self._here(), seed=0)
        return is_heard or point.changes_only_seed

    def _here(self) -> Prompt:
        """The prompt that is heard now."""
        return self._begun.asked.nearest if self._begun else self.last.start

    def _filled(self, prompt: Prompt) -> Prompt:
        """A prompt with the session's guidance scale and strength if it has none of its own."""
        return replace(
            prompt,
            guidance_scale=self.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
            strength=self.strength if prompt.strength is None else prompt.strength,
        )

    def _on_step_end(self, _pipe: Pipeline, step: int, _timestep: object, _tensors: dict[str, Any]) -> None:
        with self.changed:
            self.progress = (step + 1) / self.options.num_inference_steps
            if self._making is None:
                raise _NotWanted


def generate_point(pipe: Pipeline, point: Point, options: Options) -> Clip:
    """Generate the clip at a point between two prompts."""
    return next(generate_clips(pipe, "interpolate", [check_point(pipe, point)], options))


def replay_session(recipe: Mapping[str, Any], pipe: Pipeline, *, seed_clip: Clip | None = None) -> Iterator[Clip]:
    """Generate what was heard in a session again, clip by clip; `stitch` joins the clips.

    Parameters
    ----------
    recipe : mapping
        As `Session.recipe` returns it.
    pipe : StableDiffusionPipeline
        With the same weights; there is a warning if they differ.
    seed_clip : Clip, optional
        The seed clip of the session, if it had one.

    Returns
    -------
    iterator of Clip
        A clip that was cut is no loop, and goes on for 0.03 s: `stitch` fades it out under the next one.

    Raises
    ------
    TypeError, ValueError
        If it is no recipe of a session, or the seed clip is missing or another; at once.

    Notes
    -----
    Taught in: 08
    """
    if not isinstance(recipe, Mapping) or recipe.get("kind") != "live":
        raise ValueError(f"this is not a session's recipe: {recipe!r:.60}; use Session.recipe")
    source = None if seed_clip is None else as_model_clip(seed_clip)
    if source_facts(source).get("source_sha256") != recipe.get("source_sha256"):
        raise ValueError("the session's seed clip and seed_clip are not the same: give the one that the session had")
    warn_of_other_weights(recipe, pipe, "the session was played")
    options = check_options(pipe, num_inference_steps=recipe["num_inference_steps"], loop=True, source=source)
    heard = [(_point_from_recipe(facts), check_number("times", facts["times"], 0)) for facts in recipe["heard"]]
    return _repeated_clips(pipe, heard, options)


def _repeated_clips(pipe: Pipeline, heard: list[tuple[Point, float]], options: Options) -> Iterator[Clip]:
    for point, times in heard:
        clip = generate_point(pipe, point, options)
        for _ in range(int(times)):
            yield clip
        n_heard = round((times - int(times)) * clip.waveform.shape[1])
        if n_heard:
            n_fade = round(CROSSFADE_S * clip.sample_rate)
            yield clip.with_waveform(loop_from(clip, 0, n_heard + n_fade))


def _n_samples(name: str, seconds: float, clip: Clip) -> int:
    """Seconds of a clip in samples, checked: at most all of them."""
    n_all = clip.waveform.shape[1]
    n_samples = round(check_number(name, seconds, 0) * clip.sample_rate)
    if n_samples > n_all:
        raise ValueError(f"{name} must be at most the {n_all / clip.sample_rate:g} s of the clip, not {seconds!r}")
    return n_samples


def _point_from_recipe(facts: Mapping[str, Any]) -> Point:
    start = prompt_from_recipe(facts["start"])
    end = prompt_from_recipe(facts["end"])
    return Point.between(start, end, check_number("alpha", facts["alpha"], 0, 1))
