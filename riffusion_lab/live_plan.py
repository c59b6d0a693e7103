"""The plan of endless music: clips that are ready or in progress, and the path to the waiting prompts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import count

from .clip import Clip
from .prompts import Prompt
from .requests import Point
from .values import N_SEEDS


@dataclass(frozen=True)
class LiveClip:
    """A clip of a session, and how it joins the others.

    number : int
        From 1.
    clip : Clip
    asked, point : Point
        Its position between two prompts: as requested, and with all settings filled in.
    at_beat : bool
        Whether it begins at the next beat of the clip that is playing, which then ends there. Otherwise it begins at
        that clip's end.
    beats : tuple of int
        Where this clip may end early, in samples from its beginning; see `find_beats`.
    times : float, optional
        In a replay: how many times in a row it was heard; 1.5 if it was cut in the middle of the second time.
    """

    number: int
    clip: Clip
    asked: Point
    point: Point
    at_beat: bool = False
    beats: tuple[int, ...] = ()
    times: float | None = None


@dataclass(frozen=True, eq=False)
class Goal:
    """A prompt that was added, and its number."""

    number: int
    prompt: Prompt


class Plan:
    """What a session generates, and in which order: from the current clip to the last waiting prompt.

    It uses no lock and starts no thread; a session calls it under its own lock.

    Parameters
    ----------
    first : Prompt
    clips_per_prompt, clips_per_seed : int
        Clips from one prompt, or seed, to the next.

    Attributes
    ----------
    begun : LiveClip or None
        The clip that is playing.
    ready : list of LiveClip
        Generated, but not playing yet.
    making : Point or None
        The point whose clip is being generated.
    path : deque of Point
        Points to generate after that, as far as they are decided.
    last : Point
        The last point decided; the path continues from there.
    goals : list of Goal
        Prompts that the path leads to, not heard yet.
    queue : deque of Goal
        Those that wait behind them.
    is_held : bool
        Whether the seed stays the same while no prompt waits.
    is_awaited : bool
        Whether the next clip that is generated will begin at a beat.
    """

    def __init__(self, first: Prompt, clips_per_prompt: int, clips_per_seed: int) -> None:
        self.first = first
        self.clips_per_prompt = clips_per_prompt
        self.clips_per_seed = clips_per_seed
        self.begun: LiveClip | None = None
        self.ready: list[LiveClip] = []
        self.making: Point | None = None
        self.path: deque[Point] = deque([Point.between(first, first, 0.0)])
        self.last = self.path[0]
        self.goals: list[Goal] = []
        self.queue: deque[Goal] = deque()
        self.is_held = False
        self.is_awaited = False
        self._numbers = count(1)
        self._replayed: list[tuple[Point, float]] = []  # points of a recipe, and how many times each was heard

    @property
    def here(self) -> Prompt:
        """The prompt that is heard now."""
        return self.begun.asked.nearest if self.begun else self.last.start

    @property
    def unheard(self) -> list[Point]:
        """All decided points that are not heard yet: ready, in progress, and on the path behind them."""
        made = [clip.asked for clip in self.ready]
        return [*made, *([self.making] if self.making else []), *self.path]

    @property
    def waiting(self) -> list[Goal]:
        """All prompts that wait, in their order."""
        return self._on_way() + list(self.queue)

    @property
    def is_holding(self) -> bool:
        """Whether the current clip repeats on purpose, since its seed is held."""
        is_more_to_come = bool(self.unheard or self.queue)
        return self.is_held and self.begun is not None and not is_more_to_come

    @property
    def has_next(self) -> bool:
        """Whether there is anything to generate."""
        return not self.is_held or bool(self.path or self.queue)

    def add(self, prompt: Prompt) -> int:
        """Add a prompt, to be heard next or after those that wait; return its number."""
        if not self.queue:
            self._drop_dispensable(self.unheard)
        # A copy, because points on the way to this prompt are recognized by the identity of their end
        goal = Goal(next(self._numbers), replace(prompt))
        self.queue.append(goal)
        return goal.number

    def find(self, number: int) -> Goal:
        """Return the waiting prompt with this number; raise a ValueError if it is no longer waiting."""
        goal = next((goal for goal in self.waiting if goal.number == number), None)
        if goal is None:
            raise ValueError(f"prompt {number!r} does not wait any more: it was heard, or taken out")
        return goal

    def rearrange(self, wanted: list[Goal]) -> None:
        """Set the waiting prompts and their order; drop the path from the first prompt that changed place."""
        on_way = self._on_way()
        n_kept = 0
        while n_kept < min(len(on_way), len(wanted)) and on_way[n_kept] is wanted[n_kept]:
            n_kept += 1
        self.goals = on_way[:n_kept]
        self.queue = deque(wanted[n_kept:])
        if n_kept < len(on_way):
            end = on_way[n_kept].prompt
            unheard = self.unheard
            first = next(i for i, point in enumerate(unheard) if point.end is end)
            self._drop_dispensable(unheard[:first])

    def hold(self, on: bool) -> None:
        """Keep the current seed while no prompt waits, or let it change again."""
        self.is_held = on
        if on and not self.queue:
            self._drop_dispensable(self.unheard)
            self.is_awaited = self.is_awaited and bool(self.path or self.making)

    def replay(self, heard: list[tuple[Point, float]]) -> None:
        """Replace everything planned by the points of a recipe, with how many times each was heard."""
        self.queue.clear()
        self.goals = []
        self.ready = []
        self.making = None
        self._replayed = heard
        self.path = deque(point for point, _ in heard)
        self.last = self.path[-1]
        self.is_awaited = self.begun is not None

    def make_again(self) -> None:
        """Plan to regenerate all clips that are not heard yet."""
        self.path = deque(self.unheard)
        self.ready = []
        self.making = None
        self.is_awaited = self.begun is not None

    def put_back(self) -> None:
        """Abandon the clip in progress and put it back, to be generated later."""
        if self.making is not None:
            self.path.appendleft(self.making)
            self.making = None

    def take_point(self) -> Point:
        """Take the next point to generate; at the end of the path, first extend it to the next prompt or seed."""
        if not self.path:
            start = self.last.end
            if self.queue:
                goal = self._take_goal(start)
                n_clips = self.clips_per_prompt
            else:
                goal = replace(start, seed=(start.seed + 1) % N_SEEDS)
                n_clips = self.clips_per_seed
            self.path.extend(Point.between(start, goal, (i + 1) / n_clips) for i in range(n_clips))
            self.last = self.path[-1]
        self.making = self.path.popleft()
        return self.making

    def add_ready(self, number: int, clip: Clip, asked: Point, point: Point, beats: tuple[int, ...]) -> LiveClip:
        """Add a clip that was generated; `point` is `asked` with all settings filled in."""
        made = LiveClip(number, clip, asked, point, at_beat=self.is_awaited, beats=beats, times=self._times_of(asked))
        self.is_awaited = False
        self.making = None
        self.ready.append(made)
        return made

    def begin(self, made: LiveClip) -> None:
        """Note that a clip plays now: drop earlier clips, and prompts that have been reached."""
        self.ready = [other for other in self.ready if other.number > made.number]
        self.begun = made
        prompt = made.asked.nearest
        reached = next((i for i, goal in enumerate(self.goals) if goal.prompt is prompt), None)
        if reached is not None:
            self.goals = self.goals[reached + 1 :]

    def places(self) -> list[int]:
        """For each waiting prompt, how many clips are played between the current one and its first clip."""
        unheard = self.unheard
        on_way = [_first_place(unheard, goal) for goal in self._on_way()]
        n_to_goal = (self.clips_per_prompt + 1) // 2  # the first clip that is at least halfway
        behind = [len(unheard) + i * self.clips_per_prompt + n_to_goal - 1 for i in range(len(self.queue))]
        return on_way + behind

    def states(self) -> list[str]:
        """For each waiting prompt, "made", "making", "next" or "later"; see `WaitingPrompt`."""
        places = self.places()
        n_on_way = len(places) - len(self.queue)
        n_made = sum(place < len(self.ready) for place in places)
        states = ["made"] * n_made + ["making"] * (n_made < n_on_way) + ["next"] + ["later"] * len(places)
        return states[: len(places)]

    def _on_way(self) -> list[Goal]:
        unheard = self.unheard
        self.goals = [goal for goal in self.goals if _first_place(unheard, goal) < len(unheard)]
        return list(self.goals)

    def _take_goal(self, start: Prompt) -> Prompt:
        """Take the first prompt from the queue; if the path already ends there, use its next seed."""
        goal = self.queue.popleft()
        if goal.prompt == start:
            goal = replace(goal, prompt=replace(start, seed=(start.seed + 1) % N_SEEDS))
        self.goals.append(goal)
        return goal.prompt

    def _times_of(self, asked: Point) -> float | None:
        """How many times to play a clip, if it belongs to a replay."""
        times = next((times for point, times in self._replayed if point is asked), None)
        if times is not None and asked is self._replayed[-1][0]:
            self._replayed = []  # it was the last one
        return times

    def _drop_dispensable(self, unheard: list[Point]) -> None:
        """Keep these points up to the last one that is needed; the path to the next prompt begins there.

        If none is needed, the next clip will begin at a beat of the one that is playing.
        """
        kept = list(unheard)
        while kept and self._is_dispensable(kept[-1]):
            kept.pop()
        self.last = kept[-1] if kept else Point.between(self.here, self.here, 1.0)
        self.ready = self.ready[: len(kept)]
        behind = deque(kept[len(self.ready) :])
        if self.making and behind:
            behind.popleft()  # it is already being generated
        else:
            self.making = None
        self.path = behind
        if not kept:
            self.is_awaited = self.begun is not None

    def _is_dispensable(self, point: Point) -> bool:
        """Whether a point only leads to another seed, or to a prompt that is already heard."""
        if point.alpha == 0:  # the very first clip
            return False
        if any(point is replayed for replayed, _ in self._replayed):
            return False
        if any(point.end is goal.prompt for goal in self.goals):
            return False
        is_heard = self.begun is not None and replace(point.end, seed=0) == replace(self.here, seed=0)
        return is_heard or point.changes_only_seed


def _first_place(points: list[Point], goal: Goal) -> int:
    """Index of the first point that is at least halfway to a prompt; the number of points if there is none."""
    return next((i for i, point in enumerate(points) if point.nearest is goal.prompt), len(points))
