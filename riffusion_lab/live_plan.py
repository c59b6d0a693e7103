"""The plan of endless music: what was made, what is being made, and the way to the prompts that wait."""

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
        Where it lies among the prompts: as asked for, and with all settings filled in.
    at_beat : bool
        Whether it is to begin at the next beat of the clip that sounds, which then ends there. Otherwise it begins at
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
    """What a session makes, in which order: from the clip that sounds to the last prompt that waits.

    It takes no lock and starts nothing; a session calls it under its own lock.

    Parameters
    ----------
    first : Prompt
    clips_per_prompt, clips_per_seed : int
        Clips from one prompt, or seed, to the next.

    Attributes
    ----------
    begun : LiveClip or None
        What sounds.
    ready : list of LiveClip
        Made, not begun yet.
    making : Point or None
        What is being made.
    path : deque of Point
        What is made after that, as far as it is settled.
    last : Point
        The last one that was settled; the way goes on from there.
    goals : list of Goal
        Prompts that there is a way to, not heard yet.
    queue : deque of Goal
        Those that wait behind them.
    is_held : bool
        Whether the seed stays as it is while no prompt waits.
    is_awaited : bool
        Whether the next clip that is made is to begin at a beat.
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
        self._replayed: list[tuple[Point, float]] = []  # points of a recipe that are not made yet, and their times

    @property
    def here(self) -> Prompt:
        """The prompt that is heard now."""
        return self.begun.asked.nearest if self.begun else self.last.start

    @property
    def unheard(self) -> list[Point]:
        """All points that are settled and not heard yet: made, being made, and behind them."""
        made = [clip.asked for clip in self.ready]
        return [*made, *([self.making] if self.making else []), *self.path]

    @property
    def waiting(self) -> list[Goal]:
        """All prompts that wait, in their order."""
        return self._on_way() + list(self.queue)

    @property
    def is_holding(self) -> bool:
        """Whether the clip that sounds goes round on purpose."""
        is_more_to_come = bool(self.unheard or self.queue)
        return self.is_held and self.begun is not None and not is_more_to_come

    @property
    def has_next(self) -> bool:
        """Whether there is anything to make."""
        return not self.is_held or bool(self.path or self.queue)

    def add(self, prompt: Prompt) -> int:
        """Go to a prompt, next or after those that wait; return its number."""
        if not self.queue:
            self._drop_dispensable(self.unheard)
        # A copy: the way to this prompt is known by the identity of its end
        goal = Goal(next(self._numbers), replace(prompt))
        self.queue.append(goal)
        return goal.number

    def find(self, number: int) -> Goal:
        """Return the prompt that waits under a number; a ValueError if it does not wait any more."""
        goal = next((goal for goal in self.waiting if goal.number == number), None)
        if goal is None:
            raise ValueError(f"prompt {number!r} does not wait any more: it was heard, or taken out")
        return goal

    def rearrange(self, wanted: list[Goal]) -> None:
        """Let these prompts wait, in this order; the way to the first one that has another place is dropped."""
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
        """Keep the seed that is heard while no prompt waits, or let it wander again."""
        self.is_held = on
        if on and not self.queue:
            self._drop_dispensable(self.unheard)
            self.is_awaited = self.is_awaited and bool(self.path or self.making)

    def replay(self, heard: list[tuple[Point, float]]) -> None:
        """Go along the points of a recipe, each so many times, in place of all that was to come."""
        self.queue.clear()
        self.goals = []
        self.ready = []
        self.making = None
        self._replayed = heard
        self.path = deque(point for point, _ in heard)
        self.last = self.path[-1]
        self.is_awaited = self.begun is not None

    def make_again(self) -> None:
        """Make what is not heard yet once more."""
        self.path = deque(self.unheard)
        self.ready = []
        self.making = None
        self.is_awaited = self.begun is not None

    def put_back(self) -> None:
        """Give up the clip that is being made: it is made later."""
        if self.making is not None:
            self.path.appendleft(self.making)
            self.making = None

    def take_point(self) -> Point:
        """Begin to make the next point; at the end of the path, settle the way to the next prompt or seed first."""
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
        """Take a clip that was made; `point` is the one asked for with all settings filled in."""
        made = LiveClip(number, clip, asked, point, at_beat=self.is_awaited, beats=beats, times=self._times_of(asked))
        self.is_awaited = False
        self.making = None
        self.ready.append(made)
        return made

    def begin(self, made: LiveClip) -> None:
        """Note that a clip sounds now; those before it are not heard any more, nor do their prompts wait."""
        self.ready = [other for other in self.ready if other.number > made.number]
        self.begun = made
        prompt = made.asked.nearest
        reached = next((i for i, goal in enumerate(self.goals) if goal.prompt is prompt), None)
        if reached is not None:
            self.goals = self.goals[reached + 1 :]

    def places(self) -> list[int]:
        """How many clips are heard before each prompt that waits, behind the one that sounds."""
        unheard = self.unheard
        on_way = [_first_place(unheard, goal) for goal in self._on_way()]
        n_to_goal = (self.clips_per_prompt + 1) // 2  # the first clip that is at least halfway
        behind = [len(unheard) + i * self.clips_per_prompt + n_to_goal - 1 for i in range(len(self.queue))]
        return on_way + behind

    def states(self) -> list[str]:
        """For each prompt that waits, "made", "making", "next" or "later"; see `WaitingPrompt`."""
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
        """Take the first prompt from the queue; if the music is there already, its next seed."""
        goal = self.queue.popleft()
        if goal.prompt == start:
            goal = replace(goal, prompt=replace(start, seed=(start.seed + 1) % N_SEEDS))
        self.goals.append(goal)
        return goal.prompt

    def _times_of(self, asked: Point) -> float | None:
        """How many times a clip is to be heard, if it is one of a replay."""
        times = next((times for point, times in self._replayed if point is asked), None)
        if times is not None and asked is self._replayed[-1][0]:
            self._replayed = []  # it was the last one
        return times

    def _drop_dispensable(self, unheard: list[Point]) -> None:
        """Keep these points up to the last one that is needed; the way to the next prompt begins there.

        If nothing is left, the next clip is awaited: it begins at a beat of the one that sounds.
        """
        kept = list(unheard)
        while kept and self._is_dispensable(kept[-1]):
            kept.pop()
        self.last = kept[-1] if kept else Point.between(self.here, self.here, 1.0)
        self.ready = self.ready[: len(kept)]
        behind = deque(kept[len(self.ready) :])
        if self.making and behind:
            behind.popleft()  # it is being made already
        else:
            self.making = None
        self.path = behind
        if not kept:
            self.is_awaited = self.begun is not None

    def _is_dispensable(self, point: Point) -> bool:
        """Whether a point only leads to another seed, or on to a prompt that is heard already."""
        if point.alpha == 0:  # the very first clip
            return False
        if any(point is replayed for replayed, _ in self._replayed):
            return False
        if any(point.end is goal.prompt for goal in self.goals):
            return False
        is_heard = self.begun is not None and replace(point.end, seed=0) == replace(self.here, seed=0)
        return is_heard or point.changes_only_seed


def _first_place(points: list[Point], goal: Goal) -> int:
    """Place of the first point that is at least halfway to a prompt; how many there are if none is."""
    return next((i for i, point in enumerate(points) if point.nearest is goal.prompt), len(points))
