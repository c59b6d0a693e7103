"""Endless music: a session generates clips ahead of playback. It needs no widget and no browser."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import torch

from .beats import find_beats
from .clip import Clip
from .hashing import weights_hash
from .live_plan import Goal, LiveClip, Plan
from .live_recipe import generate_point, points_heard, replay_session
from .lora import lora_facts
from .models import Pipeline, model_name
from .prompts import Prompt
from .recording import Recording
from .requests import Point, as_model_clip, check_options, check_walk_prompt, find_hints, source_facts
from .values import N_SEEDS, check_bool, check_number, check_whole, warn

__all__ = ["LiveClip", "Session", "WaitingPrompt", "replay_session"]

LONGEST_QUEUE = 8  # prompts
RECENT = 8  # clips kept for listeners that lag behind
JOIN_S = 5  # a denoising step usually takes less
UNHEARD_S = 30  # without a listener for this long, a session pauses


class _NotWanted(Exception):
    """The clip that is being generated is no longer wanted."""


@dataclass(frozen=True)
class WaitingPrompt:
    """A prompt that waits to be heard.

    number : int
        For `Session.remove` and `Session.move`.
    prompt : Prompt
    state : {"made", "making", "next", "later"}
        "made": its first clip is ready. "making": the session is generating the clips that lead to it. "next" and
        "later": the session has not started on it.
    clips_before : int
        How many clips are played between the current one and its first clip.
    make_s : float or None
        Seconds until its first clip is ready, if each takes as long as the last one did; None before any was generated.
    """

    number: int
    prompt: Prompt
    state: str
    clips_before: int
    make_s: float | None


class Session:
    """Generate clip after clip, from prompt to prompt, for as long as somebody listens.

    One thread generates the clips, at most `ahead` of them before they are played. Every clip is a loop that begins on
    the beat. The music reaches a new prompt in `clips_per_prompt` clips. While the queue is empty, it stays with the
    last prompt and moves from seed to seed, in `clips_per_seed` clips each.

    A prompt that is added while no other waits is heard next: it replaces the clips that were generated ahead. Its
    first clip is marked `at_beat`, as is the first one after `change`: a browser starts such a clip at the next beat of
    the clip that is playing. A prompt waits from `add` until the music is at least halfway to it; prompts added
    meanwhile are heard after it. `waiting` lists them, `remove` takes one out, and `move` changes their order.

    The session pauses when nobody has asked for a clip (`take`, `begin`, `next`) for 30 s. A clip in progress is then
    dropped and generated later. The next such call resumes the session.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt : str or Prompt
        The first one.
    seed_clip : Clip, optional
        Start every clip from this one instead of pure noise, with the prompts' `strength` (default: 0.75). Its length
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
        self.plan = Plan(first, self.clips_per_prompt, self.clips_per_seed)
        self.recent: deque[LiveClip] = deque(maxlen=self.ahead + RECENT)
        # Points heard, and how many times in a row: 1.5 if the clip was cut in the middle of the second time
        self.heard: list[tuple[Point, float]] = []
        self.n_made = 0
        self.progress = 0.0  # of the clip that is being generated, in [0, 1]
        self.seconds_per_clip = 0.0
        self.error: Exception | None = None
        self.recording_error = ""  # why the last recording ended before it was stopped
        self.changed = Condition()
        self._stopped = False
        self._thread = Thread(target=self._work, name="riffusion_lab session", daemon=True)
        self._recording: Recording | None = None
        self._is_paused = False
        self._n_blocked = 0  # threads that wait in `next`
        self._asked_at = time.monotonic()  # when somebody last asked for a clip

    def add(self, prompt: str | Prompt) -> int:
        """Add a prompt: it is heard next, or after those that already wait.

        Parameters
        ----------
        prompt : str or Prompt
            A str gets the seed that is heard now. If the music is already at this prompt and seed, the next seed is
            used.

        Returns
        -------
        int
            The prompt's number, for `remove` and `move`.

        Raises
        ------
        TypeError, ValueError
            If it is not a prompt, or the queue is full; the session continues as before.
        """
        with self.changed:
            goal = prompt if isinstance(prompt, Prompt) else Prompt(prompt, self.plan.here.seed)
            checked = check_walk_prompt(self.pipe, goal)
            if len(self.plan.queue) >= LONGEST_QUEUE:
                raise ValueError(
                    f"{LONGEST_QUEUE} prompts are already waiting: add {goal.text[:40]!r} once one has been played"
                )
            self.hints = find_hints(self.pipe, [Point((checked,))])
            self.error = None
            number = self.plan.add(goal)
            self.changed.notify_all()
            return number

    def remove(self, number: int) -> None:
        """Remove a waiting prompt; if its clips are already being generated, they are dropped.

        Parameters
        ----------
        number : int
            As `add` returned it.

        Raises
        ------
        ValueError
            If it is no longer waiting; nothing is changed.
        """
        with self.changed:
            goal = self.plan.find(number)
            self._rearrange([other for other in self.plan.waiting if other is not goal])

    def move(self, number: int, place: int) -> None:
        """Move a waiting prompt to another place in the order: 0 is heard next.

        Parameters
        ----------
        number : int
            As `add` returned it.
        place : int
            New index among all waiting prompts. A prompt whose clips were being generated, and which is no longer the
            first, returns to the queue.

        Raises
        ------
        TypeError, ValueError
            If it is no longer waiting, or there is no such place; nothing is changed.
        """
        with self.changed:
            goal = self.plan.find(number)
            order = self.plan.waiting
            place = check_whole("place", place, 0, len(order) - 1)
            order.remove(goal)
            order.insert(place, goal)
            self._rearrange(order)

    def hold(self, on: bool = True) -> None:
        """Keep the current seed: its clip repeats until a prompt is added. With False, the seed changes again.

        Raises
        ------
        TypeError
            If it is neither True nor False.
        """
        with self.changed:
            self.plan.hold(check_bool("on", on))
            self.changed.notify_all()

    def next_seed(self) -> int:
        """Add the next seed of the last waiting prompt, or of the current one; return its number, as `add` does."""
        with self.changed:
            waiting = self.plan.waiting
            prompt = waiting[-1].prompt if waiting else self.plan.here
            return self.add(replace(prompt, seed=(prompt.seed + 1) % N_SEEDS))

    def replay(self, recipe: Mapping[str, Any]) -> None:
        """Replay what was heard in another session; the music then continues from there.

        It begins at the next beat and replaces everything that waits; prompts added meanwhile are heard after it.
        `LiveClip.times` says how many times a browser plays each clip; `next` returns each one once.

        Parameters
        ----------
        recipe : mapping
            As `Session.recipe` returns it.

        Raises
        ------
        TypeError, ValueError
            If it is not a session's recipe, is empty, or has another seed clip or number of steps; nothing is changed.
        """
        heard = points_heard(recipe, self.pipe, self.seed_clip)
        n_steps = recipe["num_inference_steps"]
        if n_steps != self.options.num_inference_steps:
            raise ValueError(f"the recipe has {n_steps} steps: begin a session with num_inference_steps={n_steps}")
        if not heard:
            raise ValueError("nothing was heard in this recipe's session: there is nothing to play")
        with self.changed:
            self.plan.replay(heard)
            self.error = None
            self.changed.notify_all()

    def pause(self) -> None:
        """Stop generating until somebody asks for a clip; the clip in progress is dropped and generated then."""
        with self.changed:
            self._is_paused = True
            self.plan.put_back()
            self.changed.notify_all()

    def change(self, *, guidance_scale: float | None = None, strength: float | None = None) -> None:
        """Set guidance scale (0 or more) or strength (in [0, 1]; it needs a seed clip) from the next clip on.

        Clips that were generated ahead are regenerated, and the first of them begins at a beat. Prompts with values of
        their own keep them.

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
            self.plan.make_again()
            self.changed.notify_all()

    def take(self, have: int = 0) -> list[LiveClip]:
        """Return, without waiting, the ready clips with numbers above `have`. The first call starts the session.

        A player needs only this and `begin`. If the first ready clip is marked `at_beat`, it may begin at the next of
        the `beats` of the clip that is playing.
        """
        with self.changed:
            self._start()
            self._listen()
            return [made for made in self.ready if made.number > have]

    def begin(self, number: int, *, cut_s: float | None = None) -> LiveClip:
        """Record that a clip has started to play, for the first time or again, which makes room for the next one.

        If recording fails, for example because the disk is full, the file is closed, `recording_error` says why, and
        the music continues.

        Parameters
        ----------
        number : int
        cut_s : float, optional
            How many seconds were heard of the previous clip, when it was last repeated; rounded to a column of its
            picture (10 ms). Default: all.

        Raises
        ------
        TypeError, ValueError
            If there is no such clip, or it is no longer kept; if `cut_s` is passed but no clip has played yet, or that
            clip is shorter. Nothing is changed.
        """
        with self.changed:
            made = next((made for made in self.recent if made.number == number), None)
            if made is None:
                raise ValueError(
                    f"clip {number!r} is not available: of {self.n_made} the last {len(self.recent)} are kept"
                )
            n_heard = None if cut_s is None else self._check_cut(cut_s)
            self._note_heard(made, n_heard)
            self.plan.begin(made)
            self._listen()
            self._record_clip(made.clip, n_heard)
            self.changed.notify_all()
            return made

    def next(self, timeout_s: float | None = None) -> Clip:
        """Wait for the next clip, which begins at the end of the one before: clips are whole, even after `add`.

        If recording fails, the file is closed with a warning. Use `take` and `begin` to join clips at their beats, as a
        browser does.

        Raises
        ------
        TimeoutError
            If it is not ready after `timeout_s` seconds.
        RuntimeError
            If it could not be generated, with the reason as its cause; the next call tries again. Or after `stop`.
        """
        with self.changed:
            self._start()
            if not self._wait_for_clip(timeout_s):
                raise TimeoutError(f"no clip after {timeout_s:g} s")
            if self._stopped:
                raise RuntimeError("the session was stopped: start a new one")
            is_holding = self.plan.is_holding
            if not self.ready and not is_holding:
                error = self.error
                self.retry()
                raise RuntimeError(f"the next clip could not be generated: {error}") from error
            was_recording = self._recording is not None
            upcoming = self.plan.begun if is_holding and self.plan.begun else self.ready[0]
            clip = self.begin(upcoming.number).clip
            if was_recording and self._recording is None:
                warn(self.recording_error)
            return clip

    def retry(self) -> None:
        """Continue after an error."""
        with self.changed:
            self.error = None
            self.changed.notify_all()

    def stop(self) -> None:
        """End the session and its recording; the clip in progress is abandoned.

        Raises
        ------
        OSError
            If the end of the recording cannot be written; the session has ended anyway.
        """
        with self.changed:
            self._stopped = True
            self.plan.making = None
            self.changed.notify_all()
        if self._thread.ident:
            self._thread.join(JOIN_S)  # Python aborts if it exits while a thread is computing
        self.stop_recording()

    def record(self, path: str | os.PathLike[str]) -> None:
        """Record what is heard to a file, from the next clip on, until `stop_recording`.

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
            How many seconds of the current clip were heard so far. Default: all of it is written.

        Raises
        ------
        TypeError, ValueError
            If the clip is shorter than `heard_s`; the recording continues.
        OSError
            If the end of the file cannot be written; nothing is being recorded any more.
        """
        with self.changed:
            recording = self._recording
            n_heard = None
            if heard_s is not None and self.plan.begun is not None:
                n_heard = _n_samples("heard_s", heard_s, self.plan.begun.clip)
            self._recording = None
            return recording.close(n_heard) if recording else None

    @property
    def ready(self) -> list[LiveClip]:
        """Clips that are generated and have not begun to play."""
        return self.plan.ready

    @property
    def waiting(self) -> list[WaitingPrompt]:
        """Prompts that wait to be heard, in their order."""
        with self.changed:
            rows = zip(self.plan.waiting, self.plan.places(), self.plan.states(), strict=True)
            return [
                WaitingPrompt(goal.number, goal.prompt, state, place, self._seconds_to_make(place))
                for goal, place, state in rows
            ]

    @property
    def status(self) -> dict[str, Any]:
        """State of the session, for a display; can be written as JSON."""
        with self.changed:
            return {
                "ready": [made.number for made in self.ready],
                "awaited": self.plan.is_awaited
                and self.error is None
                and not self._stopped
                and not self.plan.is_holding,
                "progress": self.progress,
                "queue": [goal.prompt.text for goal in self.plan.queue],
                "waiting": [_described_waiting(each) for each in self.waiting],
                "cuts": self.ready[0].at_beat if self.ready else self.plan.is_awaited,
                "held": self.plan.is_held,
                "holding": self.plan.is_holding,
                "paused": self._is_paused or self._is_unheard(),
                "error": f"{type(self.error).__name__}: {self.error}" if self.error else "",
                "hints": list(self.hints),
                "recording": str(self._recording.path) if self._recording else "",
                "recording_error": self.recording_error,
                "stopped": self._stopped,
            }

    @property
    def code(self) -> str:
        """Python code of a session with the same prompts and settings, for a cell where `pipe` is the model.

        `recipe` holds exactly what was heard, with repetitions and cuts.
        """
        with self.changed:
            prompts = [self.heard[0][0].start if self.heard else self.plan.first]
            for point, _ in self.heard:
                if point.end != prompts[-1] and not point.changes_only_seed:
                    prompts.append(point.end)
            prompts += [goal.prompt for goal in self.plan.waiting]
            first, *others = [_prompt_code(self._without_defaults(prompt)) for prompt in prompts]
            options = {"clips_per_prompt": self.clips_per_prompt, "clips_per_seed": self.clips_per_seed}
            options |= {"ahead": self.ahead, "num_inference_steps": self.options.num_inference_steps}
            arguments = [f"{name}={value!r}" for name, value in options.items()]
        if self.seed_clip is not None:
            arguments.append("seed_clip=seed_clip")  # the reader has it
        lines = ["from riffusion_lab import Prompt", "from riffusion_lab.live import Session", ""]
        lines.append(f"session = Session(pipe, {first}, {', '.join(arguments)})")
        lines += [f"session.add({prompt})" for prompt in others]
        return "\n".join([*lines, "clip = session.next()"]) + "\n"

    @property
    def recipe(self) -> dict[str, Any]:
        """All that is needed to regenerate what was heard (`replay_session`); can be written as JSON."""
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
        return f"Session({self.plan.here.text!r})"

    def _check_cut(self, cut_s: float) -> int:
        """Samples heard of the current clip when it was last repeated, rounded to a whole number of columns."""
        if self.plan.begun is None:
            raise ValueError(f"no clip has begun yet that could have been cut after {cut_s!r} s: leave out cut_s")
        clip = self.plan.begun.clip
        hop = clip.params.hop_length
        return round(_n_samples("cut_s", cut_s, clip) / hop) * hop

    def _note_heard(self, made: LiveClip, n_heard: int | None) -> None:
        """Note that a clip begins, and that `n_heard` samples of the last repetition before it were heard."""
        if n_heard is not None and self.plan.begun is not None:
            point, times = self.heard.pop()
            n_samples = self.plan.begun.clip.waveform.shape[1]
            self.heard.append((point, times - 1 + n_heard / n_samples))
        if self.plan.begun is made and n_heard is None:
            point, times = self.heard.pop()
            self.heard.append((point, times + 1))
        else:
            self.heard.append((made.point, 1))

    def _record_clip(self, clip: Clip, n_heard: int | None) -> None:
        """Pass a clip that begins to the recording, if there is one, and how many samples of the one before were heard.

        If writing fails, only the recording ends.
        """
        if self._recording is None:
            return
        try:
            self._recording.begin(clip, n_heard)
        except OSError as error:
            self._recording = None
            self.recording_error = str(error)

    def _seconds_to_make(self, place: int) -> float | None:
        """Estimated seconds until the clip at this place of the plan is ready."""
        n_clips = place + 1 - len(self.ready)
        if n_clips <= 0:
            return 0.0
        return (n_clips - self.progress) * self.seconds_per_clip if self.seconds_per_clip else None

    def _listen(self) -> None:
        """Note that somebody listens; a paused session resumes."""
        is_idle = self._is_paused or self._is_unheard()
        self._is_paused = False
        self._asked_at = time.monotonic()
        if is_idle:
            self.changed.notify_all()

    def _is_unheard(self) -> bool:
        return self._n_blocked == 0 and time.monotonic() - self._asked_at > UNHEARD_S

    def _wait_for_clip(self, timeout_s: float | None) -> bool:
        """Wait for something that `next` can return or raise; False after the timeout."""
        self._listen()
        self._n_blocked += 1
        try:
            return bool(
                self.changed.wait_for(
                    lambda: self.ready or self.error or self._stopped or self.plan.is_holding, timeout_s
                )
            )
        finally:
            self._n_blocked -= 1
            self._asked_at = time.monotonic()

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
                asked = self.plan.take_point()
                point = replace(asked, prompts=tuple(self._filled(prompt) for prompt in asked.prompts))
            try:
                self._make(asked, point)
            except _NotWanted:
                pass
            except Exception as error:  # the thread survives it, `status` shows it, and `next` raises it
                self._fail(asked, error)

    def _make(self, asked: Point, point: Point) -> None:
        """Generate the clip of a point and add it to those that are ready, unless it is no longer wanted."""
        started = time.perf_counter()
        self.progress = 0.0
        clip = generate_point(self.pipe, point, self.options)
        self._check_wanted()
        _ = clip.waveform  # computed here, where nobody waits for it
        beats = find_beats(self.pipe, point, clip)
        with self.changed:
            self.seconds_per_clip = time.perf_counter() - started
            self.progress = 0.0
            if self.plan.making is asked:
                self.n_made += 1
                self.recent.append(self.plan.add_ready(self.n_made, clip, asked, point, beats))
            self.changed.notify_all()

    def _fail(self, asked: Point, error: Exception) -> None:
        """Store why a clip failed, if it is still wanted, and put it back for the next try."""
        with self.changed:
            self.progress = 0.0
            if self.plan.making is asked:
                self.error = error
                self.plan.put_back()
            self.changed.notify_all()

    def _may_generate(self) -> bool:
        is_asked = not self._is_paused and not self._is_unheard()
        is_room = len(self.ready) < self.ahead
        return self.error is None and is_asked and is_room and self.plan.has_next

    def _rearrange(self, wanted: list[Goal]) -> None:
        self.plan.rearrange(wanted)
        self.error = None
        self.changed.notify_all()

    def _without_defaults(self, prompt: Prompt) -> Prompt:
        """A prompt without the settings that it would have by default."""
        plain = check_walk_prompt(self.pipe, replace(prompt, guidance_scale=None, strength=None))
        is_usual = prompt.guidance_scale == plain.guidance_scale
        has_effect = self.seed_clip is not None and prompt.strength != plain.strength
        return replace(
            prompt,
            guidance_scale=None if is_usual else prompt.guidance_scale,
            strength=prompt.strength if has_effect else None,
        )

    def _filled(self, prompt: Prompt) -> Prompt:
        """A prompt with the session's guidance scale and strength if it has none of its own."""
        return replace(
            prompt,
            guidance_scale=self.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
            strength=self.strength if prompt.strength is None else prompt.strength,
        )

    def _on_step_end(self, _pipe: Pipeline, step: int, _timestep: object, _tensors: dict[str, Any]) -> None:
        self._check_wanted()
        with self.changed:
            self.progress = (step + 1) / self.options.num_inference_steps

    def _check_wanted(self) -> None:
        """Abandon the clip in progress if it is no longer wanted, or if nobody listens."""
        with self.changed:
            if self._is_unheard():
                self.plan.put_back()
            if self.plan.making is None:
                self.progress = 0.0
                raise _NotWanted


def _prompt_code(prompt: Prompt) -> str:
    """Python code of a prompt, without the settings that it leaves to the session."""
    facts = {name: value for name, value in asdict(prompt).items() if name != "text" and value is not None}
    return f"Prompt({', '.join([repr(prompt.text), *(f'{name}={value!r}' for name, value in facts.items())])})"


def _described_waiting(waiting: WaitingPrompt) -> dict[str, Any]:
    facts = {"number": waiting.number, "text": waiting.prompt.text, "seed": waiting.prompt.seed}
    return facts | {"state": waiting.state, "clips_before": waiting.clips_before, "make_s": waiting.make_s}


def _n_samples(name: str, seconds: float, clip: Clip) -> int:
    """Convert seconds of a clip to samples; refuse more than the clip has."""
    n_all = clip.waveform.shape[1]
    n_samples = round(check_number(name, seconds, 0) * clip.sample_rate)
    if n_samples > n_all:
        raise ValueError(f"{name} must be at most the {n_all / clip.sample_rate:g} s of the clip, not {seconds!r}")
    return n_samples
