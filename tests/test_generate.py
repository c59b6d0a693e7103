"""From a prompt to a clip: the stock pipeline's own picture, loops, any length, recipes, and what is refused."""

import copy
import json
import math
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from torch import nn

from conftest import RATE, chirp
from riffusion_lab import Prompt, interpolate
from riffusion_lab.clip import Clip
from riffusion_lab.edit import audio_to_audio, inpaint
from riffusion_lab.generate import text_to_audio
from riffusion_lab.hashing import weights_hash
from riffusion_lab.latents import decode
from riffusion_lab.models import load_pipeline
from riffusion_lab.networks import circular_time, perturbed_attention, sliding_windows, windows
from riffusion_lab.prompts import encode_prompt
from riffusion_lab.replaying import replay
from riffusion_lab.sampling import scale_static_noise
from tiny import save_stable_diffusion, state, tiny_pipeline

pytestmark = pytest.mark.usefixtures("no_surprising_warnings")

PROMPT = "slow piano"
NOISE = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(7))


def pixels(clip):
    return np.asarray(clip.image)


def stock(pipe, prompt=PROMPT, seed=0, **options):
    """Call diffusers' pipeline as its own manual does."""
    pipe = StableDiffusionPipeline(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)},
                                   requires_safety_checker=False)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 4.0, **options}
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0])


# --- the stock pipeline ---------------------------------------------------------------------------------------


def test_without_loop_it_is_the_stock_pipeline_to_the_bit(pipe):
    clip = text_to_audio(pipe, PROMPT, loop=False)
    assert isinstance(clip, Clip) and not clip.loop
    assert pixels(clip).shape == (512, 512, 3) and math.isclose(clip.duration_s, 5.12)
    assert pixels(clip).std() > 1  # not one flat colour, in which all pictures would be alike
    assert np.array_equal(pixels(clip), stock(pipe))


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 2}, {"guidance_scale": 1.0}, {"negative_prompt": "techno"}]
)
def test_options_reach_the_stock_pipeline(pipe, options):
    expected = stock(pipe, **options)
    assert np.array_equal(pixels(text_to_audio(pipe, PROMPT, loop=False, **options)), expected)
    assert not np.array_equal(expected, stock(pipe))


def test_a_stochastic_scheduler_draws_from_the_clips_own_generator(pipe):
    mine = copy.copy(pipe)
    mine.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.array_equal(pixels(text_to_audio(mine, PROMPT, seed=3, loop=False)), stock(mine, seed=3))


def with_settings(folder, own, **settings):
    """Load a copy of a model that wants something else by default."""
    shutil.copytree(folder, own)
    settings = json.loads((own / "riffusion_lab.json").read_text()) | settings
    (own / "riffusion_lab.json").write_text(json.dumps(settings))
    return load_pipeline(own, device="cpu")


@pytest.fixture
def steady(folder, tmp_path):
    """A model whose clips begin with noise that lasts twice as much as it was drawn."""
    return with_settings(folder, tmp_path / "steady", steady_noise_gain=2.0)


@pytest.fixture
def perturbed(folder, tmp_path):
    """A model without self-attention on the way up, where it predicts without the words."""
    return with_settings(folder, tmp_path / "perturbed", pag_applied_layers=["up_blocks.0"])


def test_what_lasts_of_the_first_noise_is_as_strong_as_the_model_wants(pipe, steady):
    assert scale_static_noise(pipe, NOISE) is NOISE
    mean = NOISE.mean(dim=-1, keepdim=True)
    assert torch.allclose(scale_static_noise(steady, NOISE), NOISE + mean, atol=1e-5)
    half = scale_static_noise(steady, NOISE.half())
    assert half.dtype == torch.float16 and torch.allclose(half.float(), NOISE + mean, atol=5e-3)
    waves = torch.fft.rfft(torch.cat([NOISE, NOISE.flip(-1)], dim=-1))  # two of the model's clips wide
    gains = torch.ones(65)
    gains[:2] = torch.tensor([2.0, 1.5])
    assert torch.allclose(scale_static_noise(steady, torch.fft.irfft(waves)), torch.fft.irfft(waves * gains), atol=1e-5)


def test_clips_from_nothing_begin_with_it_and_those_inside_a_mask_do_not(steady):
    begun = []
    steady.unet.register_forward_pre_hook(lambda _, inputs: begun.append(inputs[0][:1]))
    drawn = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    clip = text_to_audio(steady, PROMPT, loop=False)
    assert torch.equal(begun[0], scale_static_noise(steady, drawn)) and not torch.equal(begun[0], drawn)
    assert np.array_equal(pixels(clip), stock(steady, latents=begun[0]))
    begun.clear()
    assert np.array_equal(pixels(audio_to_audio(steady, clip, PROMPT, strength=1)), pixels(clip))
    begun.clear()
    inpaint(steady, clip, (1, 2), PROMPT)
    assert torch.equal(begun[0], drawn)


@torch.no_grad()
def test_without_the_words_the_named_blocks_have_no_self_attention(pipe, perturbed):
    words = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(1))

    def predict(model, latents=NOISE):
        return model.unet(torch.cat([latents, latents]), 500, words).sample

    plain = predict(perturbed)
    with perturbed_attention(pipe):
        assert torch.equal(predict(pipe), plain)
    with perturbed_attention(perturbed):
        without, with_words = predict(perturbed).chunk(2)
    assert torch.equal(with_words, plain[1:])
    layers = [m for n, m in perturbed.unet.named_modules() if n.startswith("up_blocks.0") and n.endswith(".attn1")]
    assert layers
    for layer in layers:  # diffusers' own perturbs the other half
        layer.set_processor(PAGIdentitySelfAttnProcessor2_0())
    other_half = perturbed.unet(torch.cat([NOISE, NOISE]), 500, words.flip(0)).sample[1:]
    assert torch.allclose(without, other_half, atol=1e-5) and not torch.allclose(without, plain[:1], atol=1e-3)


def test_guided_clips_have_it_and_others_do_not(pipe, perturbed):
    before = state(perturbed)
    clip = text_to_audio(perturbed, PROMPT, loop=False)
    with perturbed_attention(perturbed):
        assert np.array_equal(pixels(clip), stock(perturbed))
    assert not np.array_equal(pixels(clip), stock(perturbed))
    assert np.array_equal(pixels(audio_to_audio(perturbed, clip, PROMPT, strength=1)), pixels(clip))
    unguided = {"seed": [0, 1], "guidance_scale": 1.0, "loop": False, "batch_size": 2}
    for theirs, ours in zip(*(text_to_audio(model, PROMPT, **unguided) for model in (pipe, perturbed)), strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))
    assert state(perturbed) == before


def test_the_attention_is_itself_again_after_an_error(perturbed):
    def stop(*_):
        raise KeyboardInterrupt

    before = state(perturbed)
    with pytest.raises(KeyboardInterrupt):
        text_to_audio(perturbed, PROMPT, callback_on_step_end=stop)
    assert state(perturbed) == before


def test_seed_and_prompt_and_generator_matter(pipe):
    clip = text_to_audio(pipe, PROMPT, seed=5, loop=False)
    same = text_to_audio(pipe, PROMPT, generator=torch.Generator().manual_seed(5), loop=False)
    assert np.array_equal(pixels(clip), pixels(same))
    assert not np.array_equal(pixels(clip), pixels(text_to_audio(pipe, PROMPT, seed=6, loop=False)))
    assert not np.array_equal(pixels(clip), pixels(text_to_audio(pipe, "techno", seed=5, loop=False)))


def test_the_seed_is_0_if_there_is_none(pipe):
    given, not_given = text_to_audio(pipe, PROMPT, seed=0), text_to_audio(pipe, PROMPT)
    assert np.array_equal(pixels(given), pixels(not_given)) and not_given.recipe["seed"] == 0


def test_the_largest_seed_and_one_too_large(pipe):
    """Torch's generator on a CPU has no more seeds than that: of a larger one it uses the lowest 32 bits."""
    drawn = [torch.randn(9, generator=torch.Generator().manual_seed(seed)) for seed in (5, 2**32 + 5)]
    assert torch.equal(*drawn)  # if this fails, larger seeds may be allowed
    clip = text_to_audio(pipe, PROMPT, seed=2**32 - 1, num_inference_steps=1, loop=False)
    assert clip.recipe["seed"] == 2**32 - 1
    assert np.array_equal(pixels(clip), stock(pipe, seed=2**32 - 1, num_inference_steps=1))
    with pytest.raises(ValueError, match="seed must be between 0 and 4294967295, not 4294967301: .* that of seed 5$"):
        text_to_audio(pipe, PROMPT, seed=[1, 2**32 + 5])


def test_old_recipes_with_seeds_of_more_than_32_bits_make_the_same_clip(pipe):
    clip = text_to_audio(pipe, PROMPT, seed=5, num_inference_steps=1)
    assert np.array_equal(pixels(replay({**clip.recipe, "seed": 2**40 + 5}, pipe)), pixels(clip))
    _, step, _ = interpolate(pipe, Prompt(PROMPT, 5), Prompt("jazz", 7), num_clips=3, num_inference_steps=1)
    recipe = step.recipe
    recipe["start"]["seed"], recipe["end"]["seed"] = 2**40 + 5, 2**32 + 7
    assert np.array_equal(pixels(replay(recipe, pipe)), pixels(step))


@pytest.mark.parametrize("prompt", ["", " \n", "( )", "[]"])
def test_an_empty_prompt_is_the_unconditional_model(pipe, prompt):
    clip = text_to_audio(pipe, prompt, loop=False)
    assert np.array_equal(pixels(clip), stock(pipe, ""))
    assert clip.recipe["prompt"] == prompt and np.array_equal(pixels(replay(clip, pipe)), pixels(clip))
    assert torch.equal(encode_prompt(pipe, prompt), encode_prompt(pipe, ""))
    unguided = pixels(text_to_audio(pipe, "", guidance_scale=1, loop=False)).astype(int)
    guided = pixels(text_to_audio(pipe, prompt, guidance_scale=50, loop=False))
    # with guidance both predictions are the same but for rounding, in batches of two and of one: a pixel may tip
    assert np.abs(unguided - guided).max() <= 1
    assert np.abs(unguided - stock(pipe, guidance_scale=50)).max() > 1


# --- lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_clip_does_not_depend_on_its_batch(pipe, batch_size):
    prompts, seeds = ["piano", "jazz", "techno"], [4, 0, 9]
    clips = text_to_audio(pipe, prompts, seed=seeds, batch_size=batch_size, loop=False)
    assert [clip.recipe["prompt"] for clip in clips] == prompts
    assert [clip.recipe["seed"] for clip in clips] == seeds
    for clip, prompt, seed in zip(clips, prompts, seeds, strict=True):
        alone = pixels(text_to_audio(pipe, prompt, seed=seed, loop=False)).astype(int)
        # matrix products of another batch size may round otherwise, which can tip a pixel by one
        assert np.abs(pixels(clip) - alone).max() <= 1


def test_lists_and_single_values(pipe):
    options = {"num_inference_steps": 1, "loop": False}
    assert [c.recipe["seed"] for c in text_to_audio(pipe, PROMPT, seed=range(2), **options)] == [0, 1]
    assert [c.recipe["seed"] for c in text_to_audio(pipe, ["piano", "jazz"], seed=8, **options)] == [8, 8]
    one = text_to_audio(pipe, [PROMPT], **options)
    assert isinstance(one, list) and len(one) == 1
    two = text_to_audio(pipe, PROMPT, seed=[0, 1], negative_prompt=["jazz", ""], **options)
    assert [clip.recipe["negative_prompt"] for clip in two] == ["jazz", ""]
    assert np.array_equal(pixels(two[0]), stock(pipe, num_inference_steps=1, negative_prompt="jazz"))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    drawn = text_to_audio(pipe, PROMPT, generator=generators, **options)
    assert np.array_equal(pixels(drawn[1]), stock(pipe, seed=1, num_inference_steps=1))


@pytest.mark.parametrize(
    "seeds", [[0, 1], (0, 1), range(2), np.arange(2), np.array([0, 1], np.uint8), torch.arange(2), list(np.arange(2))]
)
def test_seeds_come_as_any_kind_of_list(pipe, seeds):
    clips = text_to_audio(pipe, PROMPT, seed=seeds, num_inference_steps=1, loop=False)
    assert [clip.recipe["seed"] for clip in clips] == [0, 1]
    assert {type(clip.recipe["seed"]) for clip in clips} == {int}
    assert np.array_equal(pixels(clips[1]), stock(pipe, seed=1, num_inference_steps=1))


@pytest.mark.parametrize("whole", [np.int64, np.uint8, np.array, torch.tensor])
@pytest.mark.parametrize("number", [np.float32, np.float64, np.float16, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(pipe, whole, number):
    options = {"seed": whole(1), "num_inference_steps": whole(1), "batch_size": whole(1), "guidance_scale": number(2.5)}
    clip = text_to_audio(pipe, np.str_(PROMPT), duration_s=number(0.5), loop=np.bool_(False), **options)
    assert json.loads(json.dumps(clip.recipe)) == clip.recipe
    plain = text_to_audio(pipe, PROMPT, seed=1, num_inference_steps=1, guidance_scale=2.5, duration_s=0.5, loop=False)
    assert clip.recipe == plain.recipe and np.array_equal(pixels(clip), pixels(plain))


def test_prompts_come_as_an_array(pipe):
    clips = text_to_audio(
        pipe, np.array(["piano", "jazz"]), negative_prompt=np.array(["slow", ""]), num_inference_steps=1
    )
    assert [clip.recipe["prompt"] for clip in clips] == ["piano", "jazz"]
    assert json.loads(json.dumps(clips[0].recipe))["negative_prompt"] == "slow"
    assert isinstance(text_to_audio(pipe, np.array("piano"), num_inference_steps=1), Clip)


# --- loops ----------------------------------------------------------------------------------------------------


def test_circular_convolutions_commute_with_rolling(loaded):
    """Rolling a loop in time and decoding is decoding and rolling; to the bit, for each pixel sums the same numbers."""
    with torch.no_grad(), circular_time(loaded.vae.decoder):
        rolled_after = loaded.vae.decode(NOISE).sample.roll(8 * 5, dims=-1)
        rolled_before = loaded.vae.decode(NOISE.roll(5, dims=-1)).sample
    torch.testing.assert_close(rolled_before, rolled_after, rtol=0, atol=1e-5)
    with torch.no_grad():
        plain = loaded.vae.decode(NOISE.roll(5, dims=-1)).sample
    assert (plain - rolled_after).abs().max() > 1e-3  # so padding does show, and the test can fail


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": (2, 1)}, {"dilation": 2}, {"kernel_size": 5}])
@pytest.mark.parametrize("width", [8, 200])
def test_a_circular_convolution_is_one_of_the_picture_with_its_ends_around_it(options, width):
    options = {"kernel_size": 3, "padding": 2, **options}
    layer = nn.Conv2d(2, 3, **options)
    image = torch.randn(1, 2, 10, width, generator=torch.Generator().manual_seed(0))
    around = torch.cat([image[..., -2:], image, image[..., :2]], dim=-1)
    wanted = F.conv2d(around, layer.weight, layer.bias, layer.stride, (2, 0), layer.dilation)
    with circular_time(layer):
        torch.testing.assert_close(layer(image), wanted)


@pytest.mark.parametrize("width", [4, 200])
def test_frequency_stays_padded_with_zeros(width):
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    image = torch.ones(1, 1, 4, width)
    with circular_time(layer):
        assert layer(image)[0, 0, :, 0].tolist() == [6, 9, 9, 6]  # edge rows miss a row, edge columns nothing
    assert layer(image)[0, 0, :, 0].tolist() == [4, 6, 6, 4]


def test_circular_time_restores_after_errors_and_may_be_nested(loaded):
    before = state(loaded)
    with pytest.raises(KeyboardInterrupt), circular_time(loaded.unet), circular_time(loaded.unet):
        assert any("_conv_forward" in vars(layer) for layer in loaded.unet.modules())
        raise KeyboardInterrupt
    assert state(loaded) == before


def test_loop_is_the_models_default_and_only_the_last_third_is_circular(pipe):
    convolutions = [layer for layer in pipe.unet.modules() if isinstance(layer, nn.Conv2d) and layer.padding[1]]
    circular = []

    def watch(_pipe, _step, _timestep, tensors):
        circular.append({"_conv_forward" in vars(layer) for layer in convolutions})
        return tensors

    clip = text_to_audio(pipe, PROMPT, num_inference_steps=6, callback_on_step_end=watch)
    assert clip.loop and clip.recipe["loop"] is True
    # seen after each step: the fourth switches on for the fifth and sixth
    assert circular == [{False}] * 3 + [{True}] * 3
    assert not np.array_equal(pixels(clip), stock(pipe, num_inference_steps=6))


def test_a_model_of_its_own_file_does_not_loop(pipe, monkeypatch):
    monkeypatch.setattr(pipe.config, "_name_or_path", None, raising=False)
    plain = tiny_pipeline()
    plain.set_progress_bar_config(disable=True)
    assert text_to_audio(plain, PROMPT, num_inference_steps=1).loop is False


# --- any length -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("duration_s", "n_columns", "width"), [(0.01, 1, 64), (2.0, 200, 256), (5.0, 500, 512)])
def test_shorter_clips_are_rounded_up_and_trimmed(pipe, duration_s, n_columns, width):
    clip = text_to_audio(pipe, PROMPT, duration_s=duration_s)
    assert clip.image.size == (n_columns, 512) and not clip.loop
    assert np.array_equal(pixels(clip), stock(pipe, width=width, height=512)[:, :n_columns])


@pytest.mark.parametrize(("duration_s", "loop"), [(6.0, False), (10.24, True), (15.36, True)])
def test_longer_clips(pipe, duration_s, loop):
    clip = text_to_audio(pipe, PROMPT, duration_s=duration_s)
    assert clip.image.size == (round(100 * duration_s), 512)
    assert clip.loop is loop and clip.recipe["duration_s"] == pytest.approx(duration_s)


def test_windows_cover_everything():
    for n_columns in (65, 96, 100, 128, 192):
        starts = [int(window[0]) for window in windows(n_columns, width=64, hop=32, loop=False)]
        covered = torch.cat(windows(n_columns, width=64, hop=32, loop=False))
        assert starts[0] == 0 and sorted(set(covered.tolist())) == list(range(n_columns))
        assert all(0 < later - sooner <= 32 for sooner, later in zip(starts, starts[1:], strict=False))
    counts = torch.bincount(torch.cat(windows(128, width=64, hop=32, loop=True)))
    assert counts.tolist() == [2] * 128  # in a loop no column is special


def test_windows_average_what_the_network_sees(loaded):
    """MultiDiffusion by hand: three windows over 128 columns, the overlaps averaged."""
    latents = torch.cat([NOISE, NOISE.flip(-1)], dim=-1)
    given = {"timestep": 500, "encoder_hidden_states": torch.ones(1, 77, 16), "return_dict": False}
    with torch.no_grad():
        left, middle, right = (loaded.unet(latents[..., k : k + 64], **given)[0] for k in (0, 32, 64))
        with sliding_windows(loaded.unet, width=64, hop=32, loop=False):
            (whole,) = loaded.unet(latents, **given)
    by_hand = torch.cat(
        [left[..., :32], (left[..., 32:] + middle[..., :32]) / 2, (middle[..., 32:] + right[..., :32]) / 2,
         right[..., 32:]], dim=-1)  # fmt: skip
    torch.testing.assert_close(whole, by_hand, rtol=0, atol=1e-6)  # sums of two floats, in another order
    assert "forward" not in vars(loaded.unet)


def test_sliding_windows_restore_hooked_networks():
    """accelerate's hooks put their own forward on the network: it must come back."""
    unet = tiny_pipeline().unet
    hooked = unet.forward = lambda *_, **__: None
    with pytest.raises(RuntimeError), sliding_windows(unet, width=64, hop=32, loop=True):
        raise RuntimeError
    assert vars(unet)["forward"] is hooked


@pytest.mark.parametrize("loop", [False, True])
def test_strips_are_the_whole_picture(loaded, loop):
    """The margin is wider than what the decoder sees, so strips join without a trace."""
    latents = torch.cat([NOISE, NOISE.flip(-1), NOISE.roll(9, dims=-1)], dim=-1)[..., : 192 if loop else 136]
    strips = np.asarray(decode(loaded, latents, loop=loop)).astype(int)
    with torch.no_grad():
        context = circular_time(loaded.vae.decoder) if loop else warnings.catch_warnings()
        with context:
            whole = loaded.image_processor.postprocess(loaded.vae.decode(latents).sample)[0]
    assert strips.shape == (512, latents.shape[-1] * 8, 3)
    assert np.abs(strips - np.asarray(whole)).max() <= 1  # rounding to 8 bits may tip


# --- progress and cancel --------------------------------------------------------------------------------------


def test_callback_sees_every_step_and_may_change_the_latents(pipe):
    seen = []

    def silence(stepped, step, timestep, tensors):
        assert stepped.unet is pipe.unet and tensors["latents"].shape == (1, 4, 64, 64)
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = text_to_audio(pipe, PROMPT, loop=False, callback_on_step_end=silence)
    assert seen == [(0, 999), (1, 666), (2, 332)]  # trailing spacing: the first step sees pure noise
    blank = decode(pipe, torch.zeros(1, 4, 64, 64), loop=False)
    assert np.array_equal(pixels(changed), np.asarray(blank))
    watched = text_to_audio(pipe, PROMPT, loop=False, callback_on_step_end=lambda *_: None)
    assert np.array_equal(pixels(watched), stock(pipe))


@pytest.mark.parametrize("duration_s", [5.12, 10.24])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_cancelled_in_the_circular_part_it_leaves_the_pipe_as_found(pipe, duration_s, error):
    """The fixture compares the pipe; and the next clip is what it would have been."""

    def cancel(_pipe, step, _timestep, _tensors):
        if step == 2:
            raise error

    with pytest.raises(error):
        text_to_audio(pipe, PROMPT, duration_s=duration_s, callback_on_step_end=cancel)
    assert np.array_equal(pixels(text_to_audio(pipe, PROMPT, loop=False)), stock(pipe))


# --- recipes --------------------------------------------------------------------------------------------------


def test_a_recipe_says_everything_but_where(pipe, folder):
    recipe = text_to_audio(pipe, PROMPT, seed=np.int64(3)).recipe
    assert json.loads(json.dumps(recipe)) == recipe
    given = {name: recipe[name] for name in ("kind", "prompt", "negative_prompt", "seed", "num_inference_steps")}
    assert given == {
        "kind": "text_to_audio", "prompt": PROMPT, "negative_prompt": None, "seed": 3, "num_inference_steps": 3
    }  # fmt: skip
    assert (recipe["guidance_scale"], recipe["duration_s"], recipe["loop"]) == (4.0, 5.12, True)
    assert (recipe["model"], recipe["device"], recipe["dtype"]) == ("small", "cpu", "float32")
    assert recipe["scheduler"]["class"] == "DDIMScheduler"
    assert recipe["scheduler"]["config"]["rescale_betas_zero_snr"] is True
    assert set(recipe["versions"]) == {"riffusion_lab", "torch", "diffusers", "transformers"}
    assert str(folder.parent) not in json.dumps(recipe)


@pytest.mark.parametrize("options", [{}, {"duration_s": 6.5, "negative_prompt": "jazz"}, {"loop": False, "seed": 2}])
def test_replay_is_the_same_clip(pipe, folder, options):
    clip = text_to_audio(pipe, PROMPT, **options)
    again = replay(clip, pipe)
    assert np.array_equal(pixels(again), pixels(clip)) and again.recipe == clip.recipe and again.loop is clip.loop
    fresh = load_pipeline(folder, device="cpu")
    assert np.array_equal(pixels(replay(json.loads(json.dumps(clip.recipe)), fresh)), pixels(clip))


def test_replay_takes_the_recipes_scheduler(pipe):
    mine = copy.copy(pipe)
    mine.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    clip = text_to_audio(mine, PROMPT)
    assert np.array_equal(pixels(replay(clip, pipe)), pixels(clip))
    assert not np.array_equal(pixels(text_to_audio(pipe, PROMPT)), pixels(clip))


def test_replay_survives_a_png(pipe, tmp_path):
    clip = text_to_audio(pipe, PROMPT, seed=4)
    clip.save(tmp_path / "clip.png")
    opened = Clip.from_image(tmp_path / "clip.png")
    assert np.array_equal(pixels(replay(opened, pipe)), pixels(clip))


def test_replay_says_that_weights_differ(pipe):
    clip = text_to_audio(pipe, PROMPT)
    other = tiny_pipeline(seed=1)
    other.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="other weights of small") as caught:
        assert not np.array_equal(pixels(replay(clip, other)), pixels(clip))
    assert [warning.filename for warning in caught] == [__file__]


def test_weights_hash_notices_every_change_and_no_dtype():
    pipe = tiny_pipeline()
    first = weights_hash(pipe)
    assert weights_hash(pipe) == first == weights_hash(tiny_pipeline())
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1
    changed = weights_hash(pipe)
    assert changed != first
    half = weights_hash(pipe.to(dtype=torch.float16))
    assert weights_hash(pipe.to(dtype=torch.float32)) == half != changed  # what halving lost stays lost


def test_weights_hash_notices_settings_that_no_recipe_holds(folder, pipe, perturbed, steady):
    scaled = load_pipeline(folder, device="cpu")
    scaled.vae.register_to_config(scaling_factor=2.0)
    assert weights_hash(load_pipeline(folder, device="cpu")) == weights_hash(pipe)
    assert len({weights_hash(model) for model in (pipe, perturbed, steady, scaled)}) == 4


def torn(recipe, **changes):
    return {name: value for name, value in {**recipe, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "soup"}, "its kind is 'soup'"),
        ({"kind": ...}, "its kind is None"),
        ({"prompt": ..., "seed": ...}, "it lacks prompt, seed"),
        ({"seed": None}, "only clips made with a seed"),
        ({"scheduler": {"class": "os.system", "config": {}}}, "is invalid: diffusers"),
        ({"scheduler": {"class": "UNet2DConditionModel", "config": {}}}, "is invalid: diffusers"),
        ({"scheduler": {"class": "DDIMScheduler", "config": {"soup": 1}}}, "cannot be built"),
        ({"scheduler": "DDIMScheduler"}, "of the recipe is invalid: it must have a class and a config"),
        ({"num_inference_steps": -1}, "num_inference_steps must be between 1"),
    ],
)
def test_foreign_recipes(pipe, changes, message):
    recipe = text_to_audio(pipe, PROMPT, num_inference_steps=1).recipe
    with pytest.raises(ValueError, match=message):
        replay(torn(recipe, **changes), pipe)


def test_nothing_to_replay(pipe):
    drawn = text_to_audio(pipe, PROMPT, generator=torch.Generator(), num_inference_steps=1)
    with pytest.raises(ValueError, match="only clips made with a seed"):
        replay(drawn, pipe)
    with pytest.raises(ValueError, match="no recipe, for it was not generated"):
        replay(Clip.from_audio(chirp(200, 8_000), RATE), pipe)
    with pytest.raises(TypeError, match="a recipe is a dict"):
        replay("slow piano", pipe)


# --- remarks --------------------------------------------------------------------------------------------------


def test_unknown_words_are_named_once_with_the_nearest_known(pipe):
    with pytest.warns(UserWarning, match="small was not taught these words") as caught:
        clips = text_to_audio(pipe, ["Slow pianno zzz"] * 2, num_inference_steps=1)
    assert len(clips) == 2 and len(caught) == 1  # they work all the same
    assert "pianno (nearest: piano); zzz" in str(caught[0].message) and "slow" not in str(caught[0].message)
    assert caught[0].filename == __file__  # the warning points at the caller


def test_another_tempo_takes_the_nearest_and_says_so(pipe):
    with pytest.warns(UserWarning, match="100 bpm: it takes the nearest, 105 bpm"):
        clip = text_to_audio(pipe, "piano 100 bpm", loop=False)
    assert np.array_equal(pixels(clip), stock(pipe, "piano 105 bpm"))
    assert clip.recipe["prompt"] == "piano 100 bpm"
    text_to_audio(pipe, "piano 105 bpm", num_inference_steps=1)  # known: no warning, which would be an error here


def test_schedulers_that_ignore_zero_snr_are_named(pipe):
    mine = copy.copy(pipe)
    mine.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    with pytest.warns(UserWarning, match="PNDMScheduler ignores this model's noise"):
        text_to_audio(mine, PROMPT, num_inference_steps=1)
    mine.scheduler = PNDMScheduler.from_config(
        DDIMScheduler().config, skip_prk_steps=True
    )  # a model without zero SNR: nothing to say
    text_to_audio(mine, PROMPT, num_inference_steps=1)


def test_a_negative_prompt_without_guidance_has_no_effect(pipe):
    with pytest.warns(UserWarning, match="negative_prompt has no effect at guidance_scale=1"):
        text_to_audio(pipe, PROMPT, negative_prompt="jazz", guidance_scale=1, num_inference_steps=1)


def test_notation_of_other_tools_is_remarked_once_a_call(pipe):
    prompts = ["[piano:jazz:0.5] slow", "[jazz:piano:0.5]"]
    with pytest.warns(UserWarning, match="plain words") as caught:
        first, _ = text_to_audio(pipe, prompts, negative_prompt="techno--", num_inference_steps=1)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and texts[0].startswith("'[piano:jazz:0.5]'") and texts[1].startswith("'techno--'")
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="'slow--' makes words stronger"):
        audio_to_audio(pipe, first, "piano", end_prompt="piano slow--", num_inference_steps=1)
    with pytest.warns(UserWarning, match=r"was not taught .*: pianos \(nearest: piano\)"):
        audio_to_audio(pipe, first, "piano", end_prompt="pianos", num_inference_steps=1)


def test_more_than_a_minute_works_with_a_warning(pipe):
    with pytest.warns(UserWarning, match="61.44 s are more than 60 s"):
        clip = text_to_audio(pipe, PROMPT, duration_s=61.44, num_inference_steps=1, guidance_scale=1)
    assert clip.image.size == (6144, 512) and clip.loop


# --- bad input ------------------------------------------------------------------------------------------------

BAD = [
    ({"prompt": None}, TypeError, "prompt must be a str .*None"),
    ({"prompt": b"piano"}, TypeError, "prompt must be a str .*b'piano'"),
    ({"prompt": 3}, TypeError, "prompt must be a str .*3"),
    ({"prompt": ["piano", 3]}, TypeError, "prompt must be a str .*3"),
    ({"prompt": []}, ValueError, "not be empty"),
    ({"prompt": np.array([], str)}, ValueError, "not be empty"),
    ({"prompt": np.arange(2)}, TypeError, "prompt must be a str .*0"),
    ({"prompt": "piano " * 1000}, ValueError, "prompt 'piano .*' has 6,000 characters: give at most 4,000"),
    ({"negative_prompt": "piano " * 1000}, ValueError, "negative_prompt .* has 6,000 characters"),
    ({"negative_prompt": 3}, TypeError, "negative_prompt must be a str"),
    ({"negative_prompt": ["jazz", "techno"]}, ValueError, "2 negative prompts for one clip"),
    ({"prompt": ["piano", "jazz"], "seed": [1, 2, 3]}, ValueError, "the same length"),
    ({"seed": -1}, ValueError, "seed must be between 0 .* not -1"),
    ({"seed": 2**32}, ValueError, "seed must be between"),
    ({"seed": np.uint64(2**63)}, ValueError, "seed must be between"),
    ({"seed": np.arange(-1, 2)}, ValueError, "seed must be between 0 .* not -1"),
    ({"seed": np.array([])}, ValueError, "not be empty"),
    ({"seed": np.array([0.5])}, TypeError, "seed must be a whole number, not 0.5"),
    ({"seed": np.ones((2, 2), int)}, TypeError, r"seed must be a whole number, not \[1, 1\]"),
    ({"seed": np.float64(1)}, TypeError, "seed must be a whole number"),
    ({"seed": np.bool_(True)}, TypeError, "seed must be a whole number"),
    ({"seed": {1, 2}}, TypeError, "seed must be a whole number, not {1, 2}"),
    ({"seed": 1.5}, TypeError, "seed must be a whole number, not 1.5"),
    ({"seed": True}, TypeError, "seed must be a whole number, not True"),
    ({"seed": 0, "generator": torch.Generator()}, ValueError, "seed=0 and generator cannot both be given"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator"),
    ({"num_inference_steps": 0}, ValueError, "num_inference_steps must be between 1 and 1000, not 0"),
    ({"num_inference_steps": -3}, ValueError, "not -3"),
    ({"num_inference_steps": 1001}, ValueError, "not 1001"),
    ({"num_inference_steps": 2.5}, TypeError, "whole number, not 2.5"),
    ({"num_inference_steps": np.array([2])}, TypeError, "whole number, not array"),
    ({"num_inference_steps": torch.tensor([2])}, TypeError, "whole number, not tensor"),
    ({"guidance_scale": np.float32("nan")}, ValueError, "guidance_scale must be finite, not nan"),
    ({"guidance_scale": np.array([2.0])}, TypeError, "guidance_scale must be a number"),
    ({"guidance_scale": np.bool_(True)}, TypeError, "guidance_scale must be a number"),
    ({"num_inference_steps": "25"}, TypeError, "whole number, not '25'"),
    ({"guidance_scale": math.nan}, ValueError, "guidance_scale must be finite, not nan"),
    ({"guidance_scale": math.inf}, ValueError, "guidance_scale must be finite, not inf"),
    ({"guidance_scale": -1}, ValueError, "guidance_scale must be 0 or more, not -1"),
    ({"guidance_scale": "7"}, TypeError, "guidance_scale must be a number, not '7'"),
    ({"duration_s": 0}, ValueError, "duration_s must be between 0.01 and 3600, not 0"),
    ({"duration_s": -2}, ValueError, "duration_s .* not -2"),
    ({"duration_s": 1e9}, ValueError, "between 0.01 and 3600, not 1000000000.0"),
    ({"duration_s": math.nan}, ValueError, "duration_s must be finite, not nan"),
    ({"duration_s": "5"}, TypeError, "duration_s must be a number, not '5'"),
    (
        {"duration_s": 7.0, "loop": True},
        ValueError,
        "must last a multiple of 5.12 s, not 7 s: use duration_s=5.12 or loop=False",
    ),
    ({"loop": "yes"}, TypeError, "loop must be True, False or None, not 'yes'"),
    ({"loop": np.int64(1)}, TypeError, "loop must be True, False or None, not 1"),
    ({"batch_size": 0}, ValueError, "batch_size must be .* not 0"),
    ({"batch_size": 1.0}, TypeError, "batch_size must be a whole number"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[str(case[0])[:40] for case in BAD])
def test_bad_input_is_refused_before_the_first_step(pipe, monkeypatch, given, error, message):
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(error, match=message):
        text_to_audio(pipe, **{"prompt": PROMPT, **given})
    monkeypatch.undo()


def test_a_pipe_that_is_none():
    with pytest.raises(TypeError, match="pipe must be a StableDiffusionPipeline"):
        text_to_audio(PROMPT, PROMPT)


# --- Riffusion v1 ---------------------------------------------------------------------------------------------


@pytest.fixture
def full_size_folder(tmp_path):
    yield save_stable_diffusion(tmp_path / "v1")
    shutil.rmtree(tmp_path / "v1")  # 2 GB, which pytest would keep


@pytest.mark.slow
def test_a_full_size_stable_diffusion_laid_out_as_riffusion_v1(full_size_folder, capfd):
    """All of v1 but the training: its shapes, files and scheduler; one step at 512 x 512."""
    capfd.readouterr()
    full = load_pipeline(full_size_folder, device="cpu")
    assert capfd.readouterr() == ("v1 on cpu in float32\n", "")
    assert (full.unet.config.cross_attention_dim, full.text_encoder.config.hidden_size) == (768, 768)
    assert sum(weight.numel() for weight in full.unet.parameters()) == 859_520_964  # Stable Diffusion 1.5's own
    clip = text_to_audio(full, "jazz", num_inference_steps=1)
    assert clip.image.size == (512, 512) and clip.loop is False
    assert clip.recipe["guidance_scale"] == 7.0 and clip.recipe["scheduler"]["class"] == "PNDMScheduler"


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_unet_makes_the_same_clips(perturbed, in_place):
    """Also where what was traced for one clip would fit the next one, but for the guidance."""
    compiled = load_pipeline(perturbed.name_or_path, device="cpu")
    torch._dynamo.reset()
    if in_place:  # "eager": traced, not translated, which would take minutes
        compiled.unet.compile(backend="eager")
    else:
        compiled.unet = torch.compile(compiled.unet, backend="eager")

    def clips(pipe):
        guided = {"seed": 1, "num_inference_steps": 3, "loop": True}
        unguided = {"seed": [1, 2], "num_inference_steps": 2, "guidance_scale": 1.0, "batch_size": 2, "loop": False}
        yield text_to_audio(pipe, PROMPT, **guided)
        yield from text_to_audio(pipe, PROMPT, **unguided)
        yield text_to_audio(pipe, PROMPT, **guided)

    for ours, theirs in zip(clips(compiled), clips(perturbed), strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))
