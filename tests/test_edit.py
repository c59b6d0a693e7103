"""From a clip to another: restyled, partly made anew, longer; on every scheduler the noise must be the right one."""

import json
import math
from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import chirp
from riffusion_lab import audio_to_audio, edit, extend, inpaint, load_pipeline, text_to_audio
from riffusion_lab.clip import Clip
from riffusion_lab.conditioning import encode_point
from riffusion_lab.latents import decode, encode, latent_mask
from riffusion_lab.masks import as_mask, box_mask, paste
from riffusion_lab.params import SpectrogramParams
from riffusion_lab.requests import broadcast_arguments
from riffusion_lab.sampling import first_step, from_clip, img2img_scheduler
from tiny import save_stable_diffusion

pytestmark = pytest.mark.usefixtures("no_surprising_warnings")


def pixels(clip):
    return np.asarray(clip.image).astype(int)


@pytest.fixture
def clip(pipe):
    return text_to_audio(pipe, "church bells", seed=5)


def recording(n_samples, **options):
    return Clip.from_audio(chirp(200, 4000, n_samples), 44_100, **options)


# --- masks ------------------------------------------------------------------------------------------------------


def test_a_box_is_where_it_says():
    clip = recording(441 * 400)
    mask = box_mask(clip, 1.0, 2.5, low_hz=500, high_hz=2000)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (columns[0], columns[-1]) == (100, 249)
    bands_hz = [clip.params.frequency_hz(511 - row) for row in (rows[-1], rows[0])]
    assert 500 <= bands_hz[0] < 510 and 1980 < bands_hz[1] <= 2000
    assert box_mask(clip).all()
    assert np.array_equal(as_mask((1.0, 2.5, 500, 2000), clip), mask)


def test_masks_come_as_arrays_and_pictures():
    clip = recording(441 * 200)
    mask = box_mask(clip, 0.5, 1)
    for given in (
        mask,
        mask.astype(float),
        mask * 255,
        np.asfortranarray(mask),
        Image.fromarray(mask),
        Image.fromarray(mask).convert("RGB"),
    ):
        assert np.array_equal(as_mask(given, clip), mask)
        assert as_mask(given, clip).flags.c_contiguous  # as the hash in a recipe needs it


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((512, 200)), ValueError, "the mask is empty"),
        (np.ones((512, 100)), ValueError, r"shape \(512, 100\), the clip's picture \(512, 200\)"),
        (np.ones((512, 200, 3)), ValueError, "the mask has the shape"),
        ("all", TypeError, "an array, a picture or a box, not str"),
        ((1.0,), ValueError, "use .start_s, stop_s. or"),
        ((1.0, 3.0), ValueError, "a time in seconds must be between 0 and 2, not 3.0"),
        ((1.0, 0.5), ValueError, "a box from 1 to 0.5 s .* holds no pixel"),
        ((math.nan, 1.0), ValueError, "a time in seconds must be finite"),
        ((0, 1, 100, 20_000), ValueError, "a frequency in hertz must be between 0 and 10000, not 20000"),
        ((0, 1, 1000, 1000.1), ValueError, "low_hz|holds no pixel"),
        ((0.501, 0.502), ValueError, "holds no pixel: a column is 10 ms"),
    ],
)
def test_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        as_mask(mask, recording(441 * 200))


def test_latent_cells_are_those_a_mask_touches():
    mask = np.zeros((512, 130), bool)
    mask[511, 7] = mask[8, 64] = True
    cells = latent_mask(mask, 24)
    assert cells.shape == (64, 24)
    assert {tuple(cell) for cell in np.argwhere(cells[:, :16].numpy())} == {(63, 0), (1, 8)}
    assert cells[:, 17:].all()  # behind the clip's end


@pytest.mark.parametrize("box", [np.s_[100:300, 50:90], np.s_[:, 50:90], np.s_[200:206, 60:64], np.s_[:, :]])
def test_paste_is_new_inside_soft_at_inner_edges_and_old_outside(box):
    old, new = Image.new("RGB", (200, 512), "white"), Image.new("RGB", (200, 512), "black")
    mask = np.zeros((512, 200), bool)
    mask[box] = True
    pasted = np.asarray(paste(old, new, mask))[..., 0]
    assert (pasted[~mask] == 255).all()
    assert (pasted[mask] < 255).all() and pasted[mask].min() == 0  # black in the depth, however small the box
    inner = np.asarray(mask & np.roll(~mask, 1, axis=1))  # left edge
    assert (pasted[:, 1:][inner[:, 1:]] > 0).all()


# --- the right noise at every step --------------------------------------------------------------------------------


class Spy:
    """A U-Net that knows the clip and the noise: it answers what leads straight to the clip."""

    def __init__(self, pipe, clean, noise):
        self.alphas, self.clean, self.noise, self.seen = pipe.scheduler.alphas_cumprod, clean, noise, []

    def __call__(self, latents, timestep, **_):
        a = self.alphas[int(timestep)]
        self.seen.append((int(timestep), latents.chunk(2)[0]))
        return ((a.sqrt() * self.noise - (1 - a).sqrt() * self.clean).expand(len(latents), -1, -1, -1),)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("strength", [0.3, 0.55, 0.99, 1.0])
def test_latents_have_the_noise_of_their_step_inside_and_outside_a_mask(pipe, monkeypatch, clip, kind, strength):
    scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    monkeypatch.setitem(vars(pipe), "scheduler", scheduler)
    (point,) = broadcast_arguments(pipe, prompt="slow piano", seed=3, guidance_scale=4.0)
    conditioning = encode_point(pipe, point, 512)
    clean = encode(pipe, clip.image, loop=False)
    spy = Spy(pipe, clean, conditioning.noise)
    monkeypatch.setattr(pipe.unet, "forward", spy)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, 30:] = True
    made = from_clip(pipe, [conditioning], clean, num_inference_steps=10, strength=strength, loop=False, mask=mask)
    assert len(spy.seen) == int(10 * strength)
    for step, (timestep, latents) in enumerate(spy.seen):
        a = spy.alphas[timestep]
        wanted = a.sqrt() * clean + (1 - a).sqrt() * conditioning.noise
        assert torch.allclose(latents, wanted, atol=0.02), (kind, step, timestep)
    assert torch.equal(made[..., :30], clean[..., :30])
    assert torch.allclose(made, clean, atol=1e-3)
    monkeypatch.undo()


def test_pndm_which_must_begin_with_its_first_step_gives_way_to_ddim(pipe):
    config = pipe.scheduler.config
    assert type(img2img_scheduler(diffusers.PNDMScheduler.from_config(config))) is diffusers.DDIMScheduler
    euler = diffusers.EulerDiscreteScheduler.from_config(config)
    assert img2img_scheduler(euler) is euler


@pytest.mark.parametrize(("strength", "first"), [(0, 10), (0.55, 5), (0.04, 10), (1, 0)])
def test_steps_are_counted_as_by_diffusers(strength, first):
    assert first_step(10, strength) == first


def test_a_share_of_the_steps_that_is_whole_loses_none():
    """Compared with fractions, which do not round; 0.29 * 100 is 28.999999999999996 in floating point."""
    for n_steps in range(1, 121):
        for percent in range(101):
            n_taken = Fraction(percent, 100) * n_steps // 1
            assert n_steps - first_step(n_steps, percent / 100) == n_taken
            assert n_steps - first_step(n_steps, float(np.float32(percent / 100))) == n_taken
        for n_taken in range(n_steps + 1):
            assert n_steps - first_step(n_steps, n_taken / n_steps) == n_taken


def test_other_shares_are_cut_as_by_diffusers():
    for strength in np.random.default_rng(0).random(1_000).tolist():  # none of them is whole but for rounding
        assert first_step(50, strength) == 50 - int(50 * strength)
    assert first_step(100, 0.2999) == 71 and first_step(12, 0.7499) == 4


def test_encode_is_decodes_way_back_and_its_strips_are_the_whole(pipe):
    noise = torch.randn(1, 4, 64, 192, generator=torch.Generator().manual_seed(0))
    for loop in (False, True):
        picture = decode(pipe, noise, loop=loop)
        strips = encode(pipe, picture, loop=loop)
        assert strips.shape == noise.shape
        turned = encode(pipe, Image.fromarray(np.roll(np.asarray(picture), 512, axis=1)), loop=loop)
        inside = np.s_[..., 80:112]
        assert torch.allclose(turned.roll(-64, dims=-1)[inside], strips[inside], atol=1e-4)


# --- restyling ----------------------------------------------------------------------------------------------------


def test_strength_0_keeps_the_clip_and_1_forgets_it(pipe, clip):
    kept = audio_to_audio(pipe, clip, "techno", strength=0)
    assert np.array_equal(pixels(kept), pixels(audio_to_audio(pipe, clip, "jazz", strength=0, seed=9)))
    new = audio_to_audio(pipe, clip, "slow piano", strength=1, seed=1)
    assert np.array_equal(pixels(new), pixels(text_to_audio(pipe, "slow piano", seed=1)))


@pytest.mark.slow
def test_prompt_seed_negative_and_strength_matter(pipe, clip):
    plain = {"prompt": "slow piano", "strength": 0.7}
    first = pixels(audio_to_audio(pipe, clip, **plain))
    assert np.array_equal(first, pixels(audio_to_audio(pipe, clip, **plain)))
    for change in ({"prompt": "jazz"}, {"seed": 1}, {"negative_prompt": "techno"}, {"strength": 0.4},
                   {"end_prompt": "techno"}, {"guidance_scale": 1}, {"prompt": "(slow:2) piano"}):  # fmt: skip
        assert not np.array_equal(first, pixels(audio_to_audio(pipe, clip, **{**plain, **change})))


@pytest.mark.parametrize("n_columns", [20, 333, 512, 730, 1536])
def test_any_length_and_nothing_of_the_end_is_lost(pipe, n_columns):
    sound = recording(441 * n_columns)
    made = audio_to_audio(pipe, sound, "techno", strength=0.4)
    assert made.image.size == (n_columns, 512) and not made.loop
    assert made.maximum == pytest.approx(sound.maximum)


def test_any_rate_and_params(pipe):
    stereo = Clip.from_audio(np.stack([chirp(100, 900), chirp(900, 100)])[:, :48_000], 48_000,
                             params=SpectrogramParams(stereo=True, max_frequency=20_000))  # fmt: skip
    made = audio_to_audio(pipe, stereo, "techno")
    assert made.params == SpectrogramParams() and made.duration_s == stereo.duration_s


def test_end_prompt_takes_over_column_by_column(pipe, clip):
    options = {"strength": 1.0, "seed": 1, "loop": False, "num_inference_steps": 1}
    start, end = (pixels(audio_to_audio(pipe, clip, text, **options)) for text in ("slow piano", "techno"))
    morph = pixels(audio_to_audio(pipe, clip, "slow piano", end_prompt="techno", **options))
    nearness = [[np.abs(morph - whole)[:, part].mean() for whole in (start, end)] for part in (np.s_[:64], np.s_[-64:])]
    assert nearness[0][0] < nearness[0][1] and nearness[1][1] < nearness[1][0]


@pytest.mark.parametrize(
    ("function", "given"),
    [(audio_to_audio, {"strength": 1}), (inpaint, {"mask": (1, 2)}), (extend, {"seconds": 0.5})],
)
def test_an_empty_prompt_is_the_unconditional_model(pipe, clip, function, given):
    given = {"clip": clip, "num_inference_steps": 2, "seed": 3, **given}
    guided = pixels(function(pipe, prompt=" ", guidance_scale=50, **given))
    unguided = pixels(function(pipe, prompt="", guidance_scale=1, **given))
    # both predictions are the same but for rounding, in batches of two and of one: a pixel may tip
    assert np.abs(guided - unguided).max() <= 1
    other = pixels(function(pipe, prompt="jazz", guidance_scale=50, **given))
    assert np.abs(guided - other).max() > 1


def test_an_end_prompt_may_be_empty(pipe, clip):
    options = {"num_inference_steps": 2, "seed": 3, "strength": 1}
    ends = [pixels(audio_to_audio(pipe, clip, "jazz", end_prompt=end, **options)) for end in ("", " ", "jazz")]
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_numbers_of_numpy_are_numbers(pipe, clip):
    options = {"guidance_scale": np.float32(2), "num_inference_steps": np.int64(2)}
    restyled = audio_to_audio(
        pipe, clip, "jazz", strength=np.float32(0.5), seed=np.arange(2), loop=np.bool_(False), **options
    )
    longer = extend(
        pipe,
        clip,
        "jazz",
        seconds=np.float32(0.5),
        memory_s=np.array(2),
        before=np.bool_(True),
        seed=np.uint8(1),
        **options,
    )
    filled = inpaint(pipe, clip, (np.float32(1), 2), np.str_("jazz"), strength=np.array(1), seed=np.int8(2), **options)
    recipes = [json.loads(json.dumps(made.recipe)) for made in (*restyled, longer, filled)]
    assert [recipe["seed"] for recipe in recipes] == [0, 1, 1, 2]
    assert {recipe["guidance_scale"] for recipe in recipes} == {2.0}
    assert (restyled[0].loop, longer.recipe["before"], longer.recipe["memory_s"]) == (False, True, 2.0)
    plain = {"guidance_scale": 2.0, "num_inference_steps": 2, "seed": 1}
    expected = audio_to_audio(pipe, clip, "jazz", strength=0.5, loop=False, **plain)
    assert np.array_equal(pixels(restyled[1]), pixels(expected))
    expected = extend(pipe, clip, "jazz", seconds=0.5, memory_s=2, before=True, **plain)
    assert np.array_equal(pixels(longer), pixels(expected))


def test_lists_and_batches(pipe, clip):
    one = audio_to_audio(pipe, clip, "jazz", seed=[1, 2, 3])
    two = audio_to_audio(pipe, clip, "jazz", seed=[1, 2, 3], batch_size=2)
    assert all(np.abs(pixels(a) - pixels(b)).mean() < 1 for a, b in zip(one, two, strict=True))
    assert [made.recipe["seed"] for made in one] == [1, 2, 3]


def test_a_recipe_names_the_source_but_no_sound(pipe, clip):
    recipe = audio_to_audio(pipe, clip, "jazz").recipe
    assert recipe["kind"] == "audio_to_audio" and len(recipe["source_sha256"]) == 64


def test_callback_sees_every_step(pipe, clip):
    seen = []

    def watch(_pipe, step, _timestep, _tensors):
        seen.append(step)

    audio_to_audio(pipe, clip, "jazz", strength=0.7, num_inference_steps=4, callback_on_step_end=watch)
    assert seen == [0, 1]


# --- inpainting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [(1.0, 2.0), (0.0, 5.12, 1000, 4000), (2.0, 2.1, 300, 5000), (0.0, 5.12)])
def test_outside_the_mask_nothing_changes(pipe, clip, mask):
    marked = as_mask(mask, clip)
    made = inpaint(pipe, clip, mask, "techno", seed=3)
    assert np.array_equal(pixels(made)[~marked], pixels(clip)[~marked])
    assert (pixels(made)[marked] != pixels(clip)[marked]).mean() > 0.1
    assert (made.params, made.maximum, made.loop) == (clip.params, clip.maximum, clip.loop)


def test_a_recording_keeps_its_level_in_inpainting(pipe):
    sound = recording(441 * 300)
    made = inpaint(pipe, sound, (1.0, 1.5), "jazz")
    assert made.maximum == sound.maximum and made.image.size == sound.image.size


# --- longer -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("n_columns", "seconds"), [(512, 7.0), (100, 1.0), (37, 0.5)])
def test_extend_keeps_what_was_there(pipe, before, n_columns, seconds):
    sound = recording(441 * n_columns)
    longer = extend(pipe, sound, "jazz", seconds=seconds, before=before)
    assert longer.image.size == (n_columns + round(100 * seconds), 512) and not longer.loop
    kept = np.s_[:, -n_columns:] if before else np.s_[:, :n_columns]
    assert np.array_equal(pixels(longer)[kept], pixels(sound))
    assert longer.maximum == sound.maximum
    assert np.array_equal(pixels(longer), pixels(extend(pipe, sound, "jazz", seconds=seconds, before=before)))


@pytest.mark.slow
def test_each_window_of_extend_has_its_own_noise_and_hears_the_one_before(pipe, clip):
    longer = pixels(extend(pipe, clip, "jazz", seconds=5.12))
    assert not np.array_equal(longer[:, 512:768], longer[:, 768:])
    other = pixels(extend(pipe, text_to_audio(pipe, "techno", seed=8), "jazz", seconds=5.12))
    assert not np.array_equal(longer[:, 512:], other[:, 512:])


@pytest.mark.parametrize("before", [False, True])
def test_a_list_of_prompts_is_heard_part_by_part(pipe, clip, before):
    """In time: with `before` the last prompt of the list is the one next to the clip."""
    options = {"seconds": 1.5, "before": before, "seed": 3, "num_inference_steps": 1}
    prompts = ["jazz", "techno", "slow piano"]
    near, far = (prompts[-1], prompts[0]) if before else (prompts[0], prompts[-1])
    parts = pixels(extend(pipe, clip, prompts, **options))
    assert parts.shape == (512, 512 + 150, 3)

    def part(picture, number):  # 0 is next to the clip
        new = picture[:, :150][:, ::-1] if before else picture[:, 512:]
        return new[:, 50 * number : 50 * number + 50]

    nearest = pixels(extend(pipe, clip, near, **options))
    assert np.array_equal(part(parts, 0), part(nearest, 0))  # windows, noise and words are the same there
    assert not np.array_equal(part(parts, 1), part(nearest, 1))
    other_far = pixels(extend(pipe, clip, [near if text == far else text for text in prompts], **options))
    assert np.array_equal(part(other_far, 1), part(parts, 1))
    assert not np.array_equal(part(other_far, 2), part(parts, 2))


def test_each_window_of_a_part_is_given_its_own_words(pipe, clip, monkeypatch):
    prompts = []

    def encode_and_note(pipe, point, *rest, **options):
        prompts.append(point.start)
        return encode_point(pipe, point, *rest, **options)

    monkeypatch.setattr(edit, "encode_point", encode_and_note)
    options = {"seconds": 12.0, "num_inference_steps": 1, "negative_prompt": ["piano", "bells"], "guidance_scale": 2}
    longer = extend(pipe, clip, ["jazz", "techno"], **options)
    # a window adds 256 columns, of which the next one makes 8 again: 600 columns take 3 windows
    asked = [(prompt.text, prompt.negative_prompt) for prompt in prompts]
    assert asked == [("jazz", "piano")] * 3 + [("techno", "bells")] * 3
    assert (longer.recipe["prompt"], longer.recipe["negative_prompt"]) == (["jazz", "techno"], ["piano", "bells"])
    assert json.loads(json.dumps(longer.recipe)) == longer.recipe and longer.title == ""


def test_a_list_of_one_prompt_is_that_prompt(pipe, clip):
    options = {"seconds": 3.0, "num_inference_steps": 1}
    one = extend(pipe, clip, ["jazz"], **options)
    assert np.array_equal(pixels(one), pixels(extend(pipe, clip, "jazz", **options)))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "given", "error", "message"),
    [
        (audio_to_audio, {"clip": "a.wav"}, TypeError, "clip must be a Clip, not 'a.wav'"),
        (audio_to_audio, {"strength": 2}, ValueError, "strength must be between 0 .* not 2"),
        (audio_to_audio, {"strength": math.nan}, ValueError, "strength must be finite"),
        (audio_to_audio, {"strength": None}, TypeError, "strength must be a number"),
        (audio_to_audio, {"end_prompt": 3}, TypeError, "end_prompt must be a str"),
        (audio_to_audio, {"seed": 2**40 + 5}, ValueError, "seed must be between 0 and 4294967295.*that of seed 5$"),
        (audio_to_audio, {"seed": -1}, ValueError, "seed must be between"),
        (audio_to_audio, {"pipe": "riffling"}, TypeError, "pipe must be a StableDiffusionPipeline"),
        (audio_to_audio, {"batch_size": 0}, ValueError, "batch_size"),
        (inpaint, {"mask": np.zeros((512, 512))}, ValueError, "the mask is empty"),
        (inpaint, {"strength": -0.1}, ValueError, "strength must be between"),
        (extend, {"seconds": 0}, ValueError, "seconds must be between 0.01 and 3600, not 0"),
        (extend, {"seconds": 4000}, ValueError, "seconds must be between 0.01 and 3600, not 4000"),
        (
            extend,
            {"prompt": ["jazz", "techno"], "seconds": 0.01},
            ValueError,
            "2 prompts for 0.01 s: give each at least",
        ),
        (extend, {"prompt": []}, ValueError, "not be empty"),
        (extend, {"prompt": ["jazz", 3]}, TypeError, "prompt must be a str .*3"),
        (
            extend,
            {"seed": [1, 2]},
            TypeError,
            "seed must be a single value, not .1, 2.: for several takes, call extend",
        ),
        (extend, {"seed": np.arange(2)}, TypeError, "seed must be a single value"),
        (extend, {"generator": [torch.Generator()]}, TypeError, "generator must be a single value"),
        (extend, {"negative_prompt": ["jazz", "techno"]}, ValueError, "2 negative prompts for one clip"),
        (extend, {"prompt": ["a", "b", "c"], "negative_prompt": ["jazz", "techno"]}, ValueError, "the same length"),
        (extend, {"memory_s": 5}, ValueError, "memory_s must be between 0.08 and 4.48, not 5"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(pipe, clip, monkeypatch, function, given, error, message):
    monkeypatch.setattr(pipe.unet, "forward", lambda *_, **__: pytest.fail("a step was taken"))
    needed = {inpaint: {"mask": (0, 1)}, extend: {"seconds": 1}}.get(function, {})
    with pytest.raises(error, match=message):
        function(**{"pipe": pipe, "clip": clip, "prompt": "jazz", **needed, **given})
    monkeypatch.undo()


@pytest.mark.parametrize(("function", "options"), [(inpaint, {"mask": (0, 1)}), (extend, {"seconds": 1})])
def test_pictures_that_must_be_kept_have_the_models_params(pipe, function, options):
    stereo = recording(441 * 200, params=SpectrogramParams(stereo=True))
    with pytest.raises(ValueError, match="params are not the model's.*Clip.from_audio"):
        function(pipe, stereo, prompt="jazz", **options)


def test_a_clip_too_short_to_go_on_from(pipe):
    with pytest.raises(ValueError, match="it must last at least 0.08 s"):
        extend(pipe, recording(441 * 5), "jazz", seconds=1)


# --- Riffusion v1 -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_calls_on_a_stable_diffusion(tmp_path):
    """Random weights; PNDM, an AutoencoderKL and noise prediction, as in Riffusion v1."""
    full = load_pipeline(save_stable_diffusion(tmp_path / "v1", is_narrow=True), device="cpu")
    sound = recording(441 * 512)
    restyled = audio_to_audio(full, sound, "jazz", strength=0.5, num_inference_steps=2, guidance_scale=1)
    filled = inpaint(full, sound, (1.0, 2.0), "jazz", num_inference_steps=1, guidance_scale=1)
    marked = as_mask((1.0, 2.0), sound)
    assert restyled.recipe["scheduler"]["class"] == "DDIMScheduler"
    assert np.array_equal(pixels(filled)[~marked], pixels(sound)[~marked])
    assert not np.array_equal(pixels(filled)[marked], pixels(sound)[marked])
