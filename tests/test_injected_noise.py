"""Noise that a scheduler adds at its steps: on a walk it is interpolated, and the ends are the clips of their seeds."""

import copy
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from riffusion_lab import Prompt, audio_to_audio, extend, inpaint, interpolate, replay, text_to_audio
from riffusion_lab.blending import slerp
from riffusion_lab.generate import generate_clips
from riffusion_lab.injected_noise import MixedGenerator, _MixedDraws, mix_injected_noise
from riffusion_lab.requests import Point, check_options, check_point

STEPS = {"num_inference_steps": 3}
SHORT = {**STEPS, "duration_s": 0.64, "loop": False}
A, B = Prompt("piano", seed=1), Prompt("piano", seed=2)
INJECTING = {
    "LCMScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "DDPMScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"},
    "DPMSolverSDEScheduler": {},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ignores this model's noise schedule"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # of diffusers' schedulers
]


@pytest.fixture(params=INJECTING)
def injecting(request, pipe):
    """A pipeline with a scheduler that draws noise at its steps."""
    mine = copy.copy(pipe)
    config = {**pipe.scheduler.config, "rescale_betas_zero_snr": False}
    mine.scheduler = getattr(diffusers, request.param).from_config(config, **INJECTING[request.param])
    return mine


def pixels(clip):
    return np.asarray(clip.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


def mean_difference(a, b):
    return float(np.abs(pixels(a) - pixels(b)).mean())


def at(pipe, alpha, **options):
    """The clip at one place of the walk from A to B."""
    return next(interpolate(pipe, A, B, num_clips=1, curve=lambda _: alpha, **options))


def test_a_walk_keeps_its_ends_and_does_not_jump_between_them(injecting):
    first, last = (text_to_audio(injecting, "piano", seed=prompt.seed, **SHORT) for prompt in (A, B))
    assert same(at(injecting, 0.0, **SHORT), first)
    assert same(at(injecting, 1.0, **SHORT), last)
    # If the injected noise stayed that of the first seed, the last thousandth would be a jump of the size of the walk.
    whole = mean_difference(first, last)
    assert mean_difference(at(injecting, 0.001, **SHORT), first) < 0.05 * whole
    assert mean_difference(at(injecting, 0.999, **SHORT), last) < 0.05 * whole


def test_the_same_from_a_clip(injecting):
    source = text_to_audio(injecting, "jazz", seed=5, **SHORT)
    options = {"num_inference_steps": 4, "seed_clip": source, "loop": False}

    def restyled(seed):
        return audio_to_audio(injecting, source, "piano", seed=seed, strength=0.75, num_inference_steps=4, loop=False)

    first, last = restyled(1), restyled(2)
    assert same(at(injecting, 0.0, **options), first) and same(at(injecting, 1.0, **options), last)
    assert mean_difference(at(injecting, 0.999, **options), last) < 0.05 * mean_difference(first, last)


def test_a_clip_between_seeds_is_the_same_again_alone_in_a_batch_and_replayed(injecting):
    clips = list(interpolate(injecting, A, B, num_clips=4, batch_size=4, **SHORT))
    alone = list(interpolate(injecting, A, B, num_clips=4, **SHORT))
    for batched, single in zip(clips, alone, strict=True):
        assert np.abs(pixels(batched) - pixels(single)).max() <= 1  # a batch may round otherwise
    assert same(alone[1], replay(alone[1], injecting))
    steps = [mean_difference(*pair) for pair in pairwise(alone)]
    assert min(steps) > 0


def lcm(pipe):
    mine = copy.copy(pipe)
    mine.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    return mine


@pytest.mark.parametrize(("weights", "seed"), [((1.0, 0.0, 0.0), 1), ((0.0, 0.0, 1.0), 3)])
def test_mixes_of_three_keep_their_corners(pipe, weights, seed):
    mine = lcm(pipe)
    prompts = tuple(Prompt("piano", seed=each) for each in (1, 2, 3))
    options = check_options(mine, **SHORT)
    corner = text_to_audio(mine, "piano", seed=seed, **SHORT)

    def mixed(weights):
        return next(generate_clips(mine, "interpolate", [check_point(mine, Point(prompts, weights))], options))

    assert same(mixed(weights), corner)
    near = tuple(0.998 * weight + 0.002 / 3 for weight in weights)
    far = mixed((1 / 3, 1 / 3, 1 / 3))
    assert mean_difference(mixed(near), corner) < 0.1 * mean_difference(far, corner)


def test_masks_and_windows_work_and_repeat(pipe):
    mine = lcm(pipe)
    source = text_to_audio(mine, "jazz", seed=5, **STEPS)
    filled = [inpaint(mine, source, (1.0, 3.0), "piano", seed=1, **STEPS) for _ in range(2)]
    assert same(*filled)
    kept = pixels(source)[:, 300:]
    assert np.array_equal(pixels(filled[0])[:, 300:], kept) and not same(filled[0], source)
    longer = [extend(mine, source, "piano", seconds=1.0, seed=1, **STEPS) for _ in range(2)]
    assert same(*longer) and longer[0].image.width == source.image.width + 100


def test_too_many_steps_for_lcm_are_refused_at_once(pipe):
    with pytest.raises(ValueError, match="LCMScheduler cannot make a clip with num_inference_steps=51 "):
        interpolate(lcm(pipe), A, B, num_clips=2, num_inference_steps=51)


# --- the parts --------------------------------------------------------------------------------------------------


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_mixed_noise_lies_on_the_arc_and_leaves_other_draws_alone():
    mixed = MixedGenerator(generators(1, 2), [0.7, 0.3])
    a, b = (torch.randn(4, 64, generator=each) for each in generators(1, 2))
    with _MixedDraws():
        noise = torch.randn(4, 64, generator=mixed)
        plain = torch.randn(4, 64, generator=generators(1)[0])
        with pytest.raises(ValueError, match="only normal noise can be mixed .* not that of torch.rand"):
            torch.rand(4, generator=mixed)
    assert torch.equal(noise, slerp(a, b, 0.3)) and torch.equal(plain, a)
    assert float(noise.std()) == pytest.approx(1, abs=0.15)  # 256 numbers: 1 ± 0.044, three times


def test_a_scheduler_without_mixed_clips_stays_as_it_is():
    scheduler = diffusers.LCMScheduler()
    mix_injected_noise(scheduler, generators(1, 2))
    assert "step" not in vars(scheduler)


def test_a_copy_of_a_prepared_scheduler_steps_by_itself():
    scheduler = diffusers.LCMScheduler()
    mix_injected_noise(scheduler, [MixedGenerator(generators(1, 2), [0.5, 0.5])])
    other = copy.deepcopy(scheduler)
    other.set_timesteps(2)
    other.step(torch.zeros(1, 4, 8, 8), other.timesteps[0], torch.zeros(1, 4, 8, 8))
    assert other.step_index == 1 and scheduler.step_index is None
