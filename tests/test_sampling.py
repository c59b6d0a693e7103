"""What a call does to the pipeline and to the networks that it shares: nothing that others could notice."""

import copy
import threading

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from riffusion_lab import load_pipeline, text_to_audio
from riffusion_lab.blending import lerp, slerp
from riffusion_lab.conditioning import encode_point
from riffusion_lab.hashing import weights_hash
from riffusion_lab.latents import decode
from riffusion_lab.networks import locked
from riffusion_lab.prompts import Prompt, encode_prompt, n_tokens
from riffusion_lab.requests import Point, check_point

WAIT_S = 20


def test_what_a_user_sets_on_the_pipe_meanwhile_stays_set_and_is_used_next(pipe):
    pipe = copy.copy(pipe)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    mine = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    used = []

    def set_scheduler(stepped, _step, _timestep, _tensors):
        pipe.scheduler = mine
        used.append(type(stepped.scheduler))

    clips = text_to_audio(pipe, ["piano", "jazz"], callback_on_step_end=set_scheduler, num_inference_steps=2)
    assert pipe.scheduler is mine
    assert used == [DDIMScheduler] * 4  # also in the second batch
    assert {clip.recipe["scheduler"]["class"] for clip in clips} == {"DDIMScheduler"}
    assert text_to_audio(pipe, "piano", num_inference_steps=2).recipe["scheduler"]["class"] == "EulerDiscreteScheduler"


def run_in_thread(function) -> threading.Event:
    done = threading.Event()

    def run():
        function()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


def test_while_one_thread_denoises_another_decodes_but_does_not_denoise(pipe):
    latents = torch.zeros(1, 4, 64, 64)
    denoised = []

    def try_both(_pipe, step, _timestep, _tensors):
        if step > 0:
            return
        assert run_in_thread(lambda: decode(pipe, latents, loop=True)).wait(WAIT_S)
        denoised.append(run_in_thread(lambda: text_to_audio(pipe, "jazz", num_inference_steps=1)))
        assert not denoised[0].wait(0.5)

    text_to_audio(pipe, "piano", callback_on_step_end=try_both, num_inference_steps=2)
    assert denoised[0].wait(WAIT_S)


def test_a_compiled_network_shares_the_lock_of_its_original():
    network = torch.nn.Linear(1, 1)
    compiled = torch.compile(network)

    def enter():
        with locked(compiled):
            pass

    with locked(network):
        done = run_in_thread(enter)
        assert not done.wait(0.2)
    assert done.wait(WAIT_S)


@pytest.mark.parametrize("encode", [encode_prompt, n_tokens])
def test_tokens_are_counted_and_encoded_by_one_thread_at_a_time(pipe, encode):
    """The tokenizer keeps how it pads and truncates, which both set."""
    with locked(pipe.text_encoder):
        done = run_in_thread(lambda: encode(pipe, "piano"))
        assert not done.wait(0.2)
    assert done.wait(WAIT_S)


def test_offloaded_networks_share_a_lock(folder):
    """Each moves the others away when it is used."""
    pipe = load_pipeline(folder, device="cpu")
    pipe.enable_model_cpu_offload(device="cpu")

    def enter():
        with locked(pipe.vae):
            pass

    with locked(pipe.unet):
        done = run_in_thread(enter)
        hashed = run_in_thread(lambda: weights_hash(pipe))
        assert not done.wait(0.2) and not hashed.is_set()
    assert done.wait(WAIT_S) and hashed.wait(WAIT_S)


# --- points of several prompts --------------------------------------------------------------------------------


def mix(pipe, *weights):
    prompts = [
        Prompt("piano", 1, guidance_scale=1.6),
        Prompt("techno", 2, guidance_scale=3.0),
        Prompt("jazz", 3, guidance_scale=5.0),
    ]
    return check_point(pipe, Point(tuple(prompts), weights))


def test_a_point_at_one_prompt_is_that_prompt_to_the_bit(pipe):
    alone = encode_point(pipe, check_point(pipe, Point((Prompt("techno", 2, guidance_scale=3.0),))), 512)
    mixed = encode_point(pipe, mix(pipe, 0.0, 1.0, 0.0), 512)
    assert torch.equal(alone.noise, mixed.noise)
    assert torch.equal(alone.prompt_embeds, mixed.prompt_embeds)
    assert mixed.guidance_scale == 3.0


def test_a_mix_of_three_is_their_weighted_mean_with_noise_as_long_as_theirs(pipe):
    weights = (0.5, 0.3, 0.2)
    point = mix(pipe, *weights)
    mixed = encode_point(pipe, point, 512)
    alone = [encode_point(pipe, Point((prompt,)), 512) for prompt in point.prompts]
    mean = sum(weight * each.prompt_embeds for weight, each in zip(weights, alone, strict=True))
    assert torch.allclose(mixed.prompt_embeds, mean, atol=1e-5)
    assert float(mixed.noise.std()) == pytest.approx(1, abs=0.02)
    assert point.guidance_scale == pytest.approx(0.5 * 1.6 + 0.3 * 3.0 + 0.2 * 5.0)
    assert point.nearest.text == "piano"
    assert point.label == "piano (50%) + techno (30%) + jazz (20%)"


def test_a_point_has_a_weight_for_each_prompt_and_a_generator_for_one_alone(pipe):
    two = (Prompt("piano"), Prompt("jazz"))
    with pytest.raises(ValueError, match="one weight per prompt, not 1 for 2"):
        check_point(pipe, Point(two))
    with pytest.raises(ValueError, match="a generator goes with a single prompt"):
        check_point(pipe, Point(two, (0.5, 0.5), generator=torch.Generator()))


def test_a_mix_of_two_lies_on_line_and_arc(pipe):
    prompts = (Prompt("piano", 1), Prompt("techno", 2))
    a, b = (encode_point(pipe, check_point(pipe, Point((prompt,))), 512) for prompt in prompts)
    mixed = encode_point(pipe, check_point(pipe, Point.between(*prompts, 0.3)), 512)
    assert torch.equal(mixed.noise, slerp(a.noise, b.noise, 0.3))
    assert torch.equal(mixed.prompt_embeds, lerp(a.prompt_embeds, b.prompt_embeds, 0.3))
