"""Walks: their ends, what lies between, and that arguments are checked at once."""

import json
import math

import numpy as np
import pytest
import torch

from riffusion_lab import Prompt, interpolate, replay, text_to_audio, walk
from riffusion_lab.blending import lerp, slerp, weighted_mean
from riffusion_lab.clip import Clip
from riffusion_lab.params import SpectrogramParams
from tiny import state

pytestmark = pytest.mark.usefixtures("no_surprising_warnings")
A = Prompt("slow piano", seed=1)
B = Prompt("techno", seed=2, negative_prompt="jazz", guidance_scale=3.0)


def pixels(clip):
    return np.asarray(clip.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def noise(seed, dtype=torch.float32):
    return torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- slerp ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slerp_keeps_the_length_of_noise_where_a_line_does_not(dtype):
    a, b = noise(0, dtype), noise(1, dtype)
    halfway = slerp(a, b, 0.5)
    assert halfway.dtype == dtype
    assert float(halfway.float().std()) == pytest.approx(1, abs=0.02)
    assert float(lerp(a, b, 0.5).float().std()) == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_slerp_of_parallel_opposite_and_zero_vectors_is_finite(dtype):
    a = noise(0, dtype)
    assert torch.allclose(slerp(a, a, 0.3), a, rtol=2e-3)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a, rtol=2e-3)
    for other in (-a, 0 * a):
        assert slerp(a, other, 0.3).isfinite().all()


def test_slerp_goes_at_even_speed():
    a, b = noise(0), noise(1)
    places = [slerp(a, b, alpha) for alpha in np.linspace(0, 1, 9)]
    steps = [float((p - q).norm()) for p, q in zip(places, places[1:], strict=False)]
    assert max(steps) / min(steps) < 1.01


# --- numbers ----------------------------------------------------------------------------------------------------


def test_numbers_are_exact_at_the_ends_stand_still_between_equals_and_never_leave_the_range():
    random = np.random.default_rng(0)
    alphas = [*np.linspace(0, 1, 101).tolist(), *random.random(100).tolist()]
    pairs = [(0.75, 0.75), (0.1, 0.1), (3.3, 3.3), (1, 1), (0.75, math.nextafter(0.75, 1)), (1.0, 0.0), (0.1, 7.7)]
    pairs += random.uniform(0, 20, (100, 2)).tolist()
    for start, end in pairs:
        assert weighted_mean([start, end], [1, 0]) == start and weighted_mean([start, end], [0, 1]) == end
        low, high = sorted((start, end))
        for alpha in alphas:
            number = weighted_mean([start, end], [1 - alpha, alpha])
            assert low <= number <= high  # so a walk between equals stands still
            assert number == pytest.approx(start + alpha * (end - start), rel=1e-12, abs=1e-12)  # float64's rounding


def batches(pipe, clips):
    """How many latents the U-Net sees at each of its calls while clips are made; two for each clip, with guidance."""
    sizes = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        list(clips)
    finally:
        hook.remove()
    return sizes


@pytest.mark.slow
def test_equal_strength_and_guidance_stay_equal_so_that_a_walk_is_one_batch_of_as_many_steps(pipe):
    seed_clip = text_to_audio(pipe, "church bells", seed=5, num_inference_steps=1)
    start, end = (Prompt(text, 1, guidance_scale=3.3, strength=0.75) for text in ("slow piano", "techno"))
    # in floating point (1 - alpha) * 0.75 + alpha * 0.75 is 0.7499999999999999 at 0.3; 3.3 is not 3.3 at either alpha
    curve = {0: 0, 1 / 3: 0.3, 2 / 3: 0.2, 1: 1}.get
    options = {"num_clips": 4, "seed_clip": seed_clip, "curve": curve, "num_inference_steps": 12, "batch_size": 4}
    assert batches(pipe, interpolate(pipe, start, end, **options)) == [8] * 9  # 0.75 of 12 steps


# --- walks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ends_are_the_clips_of_text_to_audio(pipe):
    first, middle, last = interpolate(pipe, A, B, num_clips=3)
    assert same(first, text_to_audio(pipe, A.text, seed=A.seed))
    options = {"negative_prompt": B.negative_prompt, "guidance_scale": B.guidance_scale}
    assert same(last, text_to_audio(pipe, B.text, seed=B.seed, **options))
    assert not same(middle, first) and not same(middle, last)


@pytest.mark.slow
def test_ends_of_unlike_length_are_the_clips_of_text_to_audio_too(pipe):
    long = Prompt("slow piano " * 20, seed=3)
    first, _, last = interpolate(pipe, A, long, num_clips=3)
    assert same(first, text_to_audio(pipe, A.text, seed=A.seed))
    assert same(last, text_to_audio(pipe, long.text, seed=3))


@pytest.mark.slow
def test_a_batch_changes_next_to_nothing(pipe):
    prompts = A, Prompt("techno", seed=2)
    one, two = (list(interpolate(pipe, *prompts, num_clips=4, batch_size=n)) for n in (1, 3))
    for a, b in zip(one, two, strict=True):
        assert np.abs(pixels(a) - pixels(b)).mean() < 1


def test_an_empty_prompt_is_a_point_too(pipe):
    options = {"num_inference_steps": 1}
    first, last = interpolate(pipe, Prompt(""), Prompt(" ", seed=2), num_clips=2, **options)
    assert same(first, text_to_audio(pipe, "", **options))
    assert same(last, text_to_audio(pipe, "", seed=2, **options))


def test_numbers_of_numpy_and_torch_are_numbers(pipe):
    prompt = Prompt(np.str_("piano"), np.uint8(1), guidance_scale=np.float32(2.5), strength=torch.tensor(0.5))
    assert prompt == Prompt("piano", 1, None, 2.5, 0.5)
    assert {type(value) for value in (prompt.text, prompt.seed, prompt.guidance_scale)} == {str, int, float}
    options = {"num_clips": np.int64(2), "curve": lambda x: np.float32(x), "num_inference_steps": torch.tensor(1)}
    clips = list(interpolate(pipe, prompt, np.array([B, A], dtype=object), duration_s=np.array(0.2), **options))
    assert len(clips) == 3
    recipe = json.loads(json.dumps(clips[0].recipe))
    assert (recipe["start"]["seed"], recipe["start"]["guidance_scale"], recipe["alpha"]) == (1, 2.5, 0.0)
    assert same(
        clips[0], text_to_audio(pipe, "piano", seed=1, guidance_scale=2.5, num_inference_steps=1, duration_s=0.2)
    )


@pytest.mark.slow
def test_equal_ends_stand_still(pipe):
    assert all(same(clip, text_to_audio(pipe, A.text, seed=1)) for clip in interpolate(pipe, A, A, num_clips=3))


def test_one_clip_is_the_start(pipe):
    assert [same(clip, text_to_audio(pipe, A.text, seed=1)) for clip in interpolate(pipe, A, B, num_clips=1)] == [True]


@pytest.mark.slow
def test_the_curve_says_when(pipe):
    linear = list(interpolate(pipe, A, B, num_clips=3))
    late = list(interpolate(pipe, A, B, num_clips=3, curve=lambda x: x**2))
    assert [clip.recipe["alpha"] for clip in late] == [0, 0.25, 1]
    assert same(late[0], linear[0]) and same(late[2], linear[2]) and not same(late[1], linear[1])


@pytest.mark.slow
def test_a_closed_walk_returns_and_passes_each_prompt_once(pipe):
    c = Prompt("jazz", seed=3)
    clips = list(walk(pipe, [A, B, c], num_clips=2, closed=True, num_inference_steps=1))
    assert len(clips) == 4 and same(clips[0], clips[-1])
    assert same(clips[2], text_to_audio(pipe, "jazz", seed=3, num_inference_steps=1))
    assert len(list(walk(pipe, [A, B, c], num_clips=3, num_inference_steps=1))) == 5


def test_between_clips_the_pipe_is_as_it_was(pipe):
    before = state(pipe)
    clips = interpolate(pipe, A, B, num_clips=3)
    next(clips)
    assert state(pipe) == before
    clips.close()


def test_a_clip_of_a_walk_can_be_replayed(pipe):
    middle = list(interpolate(pipe, A, B, num_clips=3))[1]
    assert same(replay(middle, pipe), middle)


# --- from a seed clip -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_strength_1_is_the_walk_without_the_clip(pipe):
    seed_clip = text_to_audio(pipe, "church bells", seed=5)
    a, b = Prompt("slow piano", 1, strength=1), Prompt("techno", 2, strength=1)
    clips = list(interpolate(pipe, a, b, num_clips=3, seed_clip=seed_clip))
    assert all(same(*pair) for pair in zip(clips, interpolate(pipe, a, b, num_clips=3), strict=True))


def test_strength_0_is_the_clip_itself_and_strength_is_interpolated(pipe):
    seed_clip = text_to_audio(pipe, "church bells", seed=5)
    a, b = Prompt("slow piano", 1, strength=0), Prompt("techno", 2, strength=0.9)
    clips = list(interpolate(pipe, a, b, num_clips=4, seed_clip=seed_clip))
    other = next(interpolate(pipe, Prompt("jazz", 7, strength=0), b, num_clips=1, seed_clip=seed_clip))
    assert same(clips[0], other)
    away = [np.abs(pixels(clip) - pixels(clips[0])).mean() for clip in clips]
    assert away == sorted(away) and away[-1] > 0


def test_a_seed_clip_of_other_params_and_length(pipe):
    sound = 0.1 * np.random.default_rng(0).standard_normal((2, 130_000)).astype(np.float32)
    seed_clip = Clip.from_audio(sound, 44_100, params=SpectrogramParams(stereo=True))
    clips = list(interpolate(pipe, A, B, num_clips=2, seed_clip=seed_clip))
    assert {clip.duration_s for clip in clips} == {seed_clip.duration_s}
    with pytest.raises(ValueError, match="a clip made from another clip|made from another clip"):
        replay(clips[0], pipe)


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"start": "piano"}, TypeError, "'piano' is not a Prompt"),
        ({"end": []}, ValueError, "at least two prompts, not 1"),
        ({"start": Prompt("a", seed=-1)}, ValueError, "seed must be between"),
        ({"end": Prompt("a", seed=2**32)}, ValueError, "seed must be between 0 and 4294967295, not 4294967296"),
        ({"end": Prompt("a", seed=[1, 2])}, TypeError, "seed must be a whole number"),
        ({"end": Prompt("a", strength=2)}, ValueError, "strength must be between 0 .* not 2"),
        ({"end": Prompt("a", guidance_scale=-1)}, ValueError, "guidance_scale must be 0 or more"),
        ({"num_clips": 0}, ValueError, "num_clips must be .* not 0"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"curve": lambda x: 2 * x}, ValueError, "what curve returns must be between 0 and 1, not 2.0"),
        ({"seed_clip": "clip.png"}, TypeError, "clip must be a Clip"),
        ({"duration_s": 0}, ValueError, "duration_s must be between 0.01 and 3600"),
    ],
)
def test_bad_input_is_refused_at_once(pipe, given, error, message):
    with pytest.raises(error, match=message):  # without asking for a clip
        interpolate(pipe, **{"start": A, "end": B, "num_clips": 3, **given})


@pytest.mark.parametrize(("prompts", "closed", "n_prompts"), [([A], False, 1), ([], False, 0), ([], True, 0)])
def test_a_walk_needs_two_prompts(pipe, prompts, closed, n_prompts):
    with pytest.raises(ValueError, match=f"at least two prompts, not {n_prompts}"):
        walk(pipe, prompts, closed=closed, num_clips=3)
