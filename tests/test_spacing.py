"""Even walks: the choice among clips is the best one, more are generated where they differ, and the ends stay."""

import math
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image

from riffusion_lab import Prompt, interpolate, replay, spacing, text_to_audio, walk
from riffusion_lab.spacing import EVEN_RATIO, even_clips, evenest_path, picture_distance, widest_gaps

A, B = Prompt("slow piano", seed=1), Prompt("techno", seed=2)
STEPS = {"num_inference_steps": 2, "duration_s": 0.64, "loop": False}


@dataclass
class Grey:
    """A clip of one grey level, as far as distances go."""

    level: float

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(np.full((4, 4), round(self.level), np.uint8)).convert("RGB")


def grey_clips(curve):
    """Return a function from alphas to clips along a curve in [0, 1], and a list of what it was asked for."""
    asked = []

    def generate(alphas):
        asked.append(list(alphas))
        return [Grey(255 * curve(alpha)) for alpha in alphas]

    return generate, asked


def steps_of(clips):
    return [picture_distance(*pair) for pair in pairwise(clips)]


# --- the choice -------------------------------------------------------------------------------------------------


def by_trial(distances, n_clips):
    """Ratio and largest step of the best choice, found by trying all of them."""
    n = len(distances)
    choices = []
    for middle in combinations(range(1, n - 1), n_clips - 2):
        steps = [distances[pair] for pair in pairwise((0, *middle, n - 1))]
        choices.append((max(steps) / min(steps), max(steps)))
    even = [choice for choice in choices if choice[0] <= EVEN_RATIO]
    return min(even, key=lambda choice: choice[1]) if even else min(choices)


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    places = random.random((9, 1 + seed % 3)).cumsum(axis=0)  # in one to three dimensions
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    path = evenest_path(distances, 5)
    steps = [distances[pair] for pair in pairwise(path.places)]
    assert (path.places[0], path.places[-1], len(path.places)) == (0, 8, 5) and list(path.places) == sorted(path.places)
    assert path.ratio == max(steps) / min(steps)
    ratio, largest = by_trial(distances, 5)
    if ratio > EVEN_RATIO:
        assert path.ratio == ratio
    else:
        assert path.ratio <= EVEN_RATIO and max(steps) == largest


def test_of_many_distances_some_are_enough():
    """Of a hundred clips there are 4,950 distances; all of them would take a gigabyte."""
    levels = np.linspace(0, 1, 100) ** 2
    path = evenest_path(np.abs(levels[:, None] - levels), 20)
    assert len(path.places) == 20 and path.ratio <= EVEN_RATIO


@pytest.mark.parametrize(("levels", "ratio"), [([5, 5, 5], 1.0), ([5, 5, 9], math.inf), ([0, 3, 9], 2.0)])
def test_ratios_where_clips_are_the_same(levels, ratio):
    levels = np.array(levels, float)
    path = evenest_path(np.abs(levels[:, None] - levels), 3)
    assert (path.places, path.ratio) == ((0, 1, 2), ratio)


def test_the_widest_gaps_are_halved_except_the_finest():
    levels = np.array([0, 1, 8, 9.0])
    distances = np.abs(levels[:, None] - levels)
    assert widest_gaps([0, 0.25, 0.5, 1], distances, 1) == [0.375]
    assert widest_gaps([0, 0.25, 0.25 + spacing.FINEST, 1], distances, 3) == [0.125, (1.25 + spacing.FINEST) / 2]
    assert widest_gaps([0, 0.25, 0.5, 1], distances, 0) == []


# --- the search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "curve",
    [lambda x: x**4, lambda x: x**0.25, lambda x: 1 / (1 + math.exp(-30 * (x - 0.5)))],
    ids=["slow start", "fast start", "steep middle"],
)
def test_steps_become_even(curve):
    generate, asked = grey_clips(curve)
    linear = steps_of(generate([i / 8 for i in range(9)]))
    assert max(linear) > 5 * min(linear)
    asked.clear()
    found = even_clips(generate, 9, max_extra_clips=20)
    steps = steps_of(found.clips)
    assert len(found.clips) == 9 and max(steps) <= EVEN_RATIO * min(steps)
    assert found.ratio == pytest.approx(max(steps) / min(steps))
    assert asked[0] == [i / 8 for i in range(9)] and all(len(each) == 1 for each in asked[1:])
    assert found.n_extra == len(asked) - 1 > 0


def test_even_steps_cost_nothing_more():
    generate, asked = grey_clips(lambda x: x)
    assert even_clips(generate, 6, max_extra_clips=20).n_extra == 0 and len(asked) == 1


def test_a_jump_ends_the_search():
    generate, asked = grey_clips(lambda x: 0.1 * x + 0.8 * (x > 0.3))
    found = even_clips(generate, 5, max_extra_clips=40)
    assert found.ratio > EVEN_RATIO
    alphas = sorted(alpha for each in asked for alpha in each)
    assert min(b - a for a, b in pairwise(alphas)) >= spacing.FINEST / 2
    assert found.n_extra == 40


def test_no_more_extra_clips_than_allowed_also_in_batches():
    generate, asked = grey_clips(lambda x: x > 0.3)
    found = even_clips(generate, 5, max_extra_clips=7, batch_size=3)
    assert [len(each) for each in asked] == [5, 3, 3, 1] and found.n_extra == 7


def test_a_first_clip_is_not_generated_again():
    generate, asked = grey_clips(lambda x: x)
    first = Grey(0)
    found = even_clips(generate, 3, max_extra_clips=0, first=first)
    assert asked == [[0.5, 1.0]] and found.clips[0] is first


# --- walks ------------------------------------------------------------------------------------------------------


def pixels(clip):
    return np.asarray(clip.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def alphas_of(clips):
    return [clip.recipe["alpha"] for clip in clips]


def fourth_powers(a, b):
    """Stand in for `picture_distance`, with nearly all of the way at the end: the tiny model's own walks are even."""
    return abs(a.recipe["alpha"] ** 4 - b.recipe["alpha"] ** 4)


def test_an_even_walk_keeps_its_ends_and_can_be_replayed(pipe, monkeypatch):
    monkeypatch.setattr(spacing, "picture_distance", fourth_powers)
    first, *middle, last = interpolate(pipe, A, B, num_clips=4, spacing="even", **STEPS)
    assert same(first, text_to_audio(pipe, A.text, seed=1, **STEPS))
    assert same(last, text_to_audio(pipe, B.text, seed=2, **STEPS))
    alphas = alphas_of([first, *middle, last])
    assert (alphas[0], alphas[-1]) == (0, 1) and 1 / 3 < alphas[1] < alphas[2]
    steps = [b**4 - a**4 for a, b in pairwise(alphas)]
    assert max(steps) <= EVEN_RATIO * min(steps)
    assert same(replay(middle[0], pipe), middle[0])


@pytest.mark.filterwarnings("ignore:the largest step from")
def test_an_even_walk_from_a_clip(pipe):
    source = text_to_audio(pipe, "jazz", seed=5, **STEPS)
    a, b = Prompt("piano", seed=1, strength=0), Prompt("techno", seed=2, strength=0.9)
    options = {"num_clips": 4, "seed_clip": source, "num_inference_steps": 3, "loop": False}
    assert min(steps_of(interpolate(pipe, a, b, **options))) == 0  # below a third no step is taken
    clips = list(interpolate(pipe, a, b, spacing="even", max_extra_clips=3, **options))
    assert min(steps_of(clips)) > 0 and alphas_of(clips)[1] > 0.9 / 3


def test_each_prompt_on_the_way_is_one_clip(pipe):
    prompts = [A, B, Prompt("jazz", seed=3)]
    clips = list(walk(pipe, prompts, num_clips=3, closed=True, spacing="even", **STEPS))
    assert len(clips) == 7 and same(clips[0], clips[-1])
    for clip, prompt in zip(clips[::2], prompts, strict=False):
        assert same(clip, text_to_audio(pipe, prompt.text, seed=prompt.seed, **STEPS))
    between = [clip.recipe["start"]["text"] for clip in clips]
    assert between == ["slow piano"] * 3 + ["techno"] * 2 + ["jazz"] * 2


def test_what_is_too_uneven_is_warned_of(pipe, monkeypatch):
    monkeypatch.setattr("riffusion_lab.interpolation.EVEN_RATIO", 1.0)
    monkeypatch.setattr(spacing, "EVEN_RATIO", 1.0)
    clips = interpolate(pipe, A, B, num_clips=3, spacing="even", max_extra_clips=1, **STEPS)
    said = (
        "the largest step from 'slow piano' to 'techno' is 1.. times the smallest one, after 1 extra clips: allow more"
    )
    with pytest.warns(UserWarning, match=said) as caught:
        next(clips)
    assert caught[0].filename == __file__


def test_the_pipe_as_it_was_when_asked_is_the_one_that_generates(pipe):
    import copy

    from diffusers import EulerDiscreteScheduler

    mine = copy.copy(pipe)
    clips = interpolate(mine, A, B, num_clips=3, spacing="even", **STEPS)
    mine.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert {clip.recipe["scheduler"]["class"] for clip in clips} == {"DDIMScheduler"}


@pytest.mark.parametrize("num_clips", [1, 2])
def test_one_and_two_clips_are_those_of_any_walk(pipe, num_clips):
    even, linear = (
        list(interpolate(pipe, A, B, num_clips=num_clips, spacing=each, **STEPS)) for each in ("even", "linear")
    )
    assert alphas_of(even) == alphas_of(linear) and all(same(*pair) for pair in zip(even, linear, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spacing": "equal"}, ValueError, "spacing must be 'linear' or 'even', not 'equal'"),
        ({"spacing": None}, ValueError, "spacing must be 'linear' or 'even', not None"),
        ({"spacing": "even", "curve": math.sqrt}, ValueError, "does not go with curve: pass one of them"),
        ({"max_extra_clips": 3}, ValueError, "max_extra_clips=3 is for spacing='even': leave it out"),
        ({"spacing": "even", "max_extra_clips": -1}, ValueError, "max_extra_clips must be .* not -1"),
        ({"spacing": "even", "max_extra_clips": 1.5}, (TypeError, ValueError), "max_extra_clips must be a whole"),
    ],
)
def test_bad_input_is_refused_at_once(pipe, options, error, message):
    with pytest.raises(error, match=message):  # without asking for a clip
        interpolate(pipe, A, B, num_clips=3, **options)
