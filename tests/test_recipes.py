"""Schedulers and recipes: which schedulers work, replay on each, NaN, the weights' hash, and recipes by strangers."""

import copy
import json
import shutil
import socket

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.pipelines import pipeline_utils
from peft import LoraConfig
from torch import nn
from torch.nn.utils import parametrize

from riffusion_lab import Prompt, interpolate, models
from riffusion_lab.edit import audio_to_audio, extend, inpaint
from riffusion_lab.generate import text_to_audio
from riffusion_lab.hashing import PIECE, _weighted_sum, weights_hash
from riffusion_lab.recipes import make_recipe, scheduler_from_recipe
from riffusion_lab.replaying import replay
from riffusion_lab.values import check_finite
from tiny import tiny_pipeline

pytestmark = [
    pytest.mark.usefixtures("no_surprising_warnings"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # of diffusers' schedulers
]

SHORT = {"num_inference_steps": 4, "duration_s": 0.08, "loop": False, "guidance_scale": 1}
NOISE_LEVELS = {"sigma_min": 0.05, "sigma_max": 40.0}
ZERO_SNR = {"rescale_betas_zero_snr": True}
UNCOMMON = {"timestep_spacing": "leading", "steps_offset": 0}


def pixels(clip):
    return np.asarray(clip.image)


def with_scheduler(pipe, scheduler):
    mine = copy.copy(pipe)
    mine.scheduler = scheduler
    return mine


# --- replay with every scheduler ------------------------------------------------------------------------------

SETTINGS = {
    "DDIMScheduler": [ZERO_SNR, UNCOMMON, {"set_alpha_to_one": False}, {"thresholding": True}, {"clip_sample": True}],
    "DDIMParallelScheduler": [UNCOMMON],
    "DDPMScheduler": [{}, {"variance_type": "fixed_large"}],
    "DDPMParallelScheduler": [{}],
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
    "CogVideoXDDIMScheduler": [{"snr_shift_scale": 1.0}],
    "LCMScheduler": [{"original_inference_steps": 30}],
    "TCDScheduler": [{}],
    "EulerDiscreteScheduler": [{"use_karras_sigmas": True, **NOISE_LEVELS}, {"timestep_type": "continuous"}],
    "EulerAncestralDiscreteScheduler": [{"timestep_spacing": "linspace"}],
    "HeunDiscreteScheduler": [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}],
    "KDPM2DiscreteScheduler": [{"use_karras_sigmas": True}],
    "KDPM2AncestralDiscreteScheduler": [{"use_beta_sigmas": True}],
    "LMSDiscreteScheduler": [{"use_karras_sigmas": True}],
    "DEISMultistepScheduler": [{"use_karras_sigmas": True, **NOISE_LEVELS}, {"solver_order": 3}],
    "DPMSolverMultistepScheduler": [
        {"use_karras_sigmas": True, **NOISE_LEVELS},
        {"use_exponential_sigmas": True, **NOISE_LEVELS},
        {"use_beta_sigmas": True, **NOISE_LEVELS},
        {"algorithm_type": "sde-dpmsolver++", "euler_at_final": True, "solver_type": "heun"},
        {"use_lu_lambdas": True, "solver_order": 3, "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        {"trained_betas": np.linspace(1e-4, 0.02, 1000)},
        ZERO_SNR,
    ],
    "DPMSolverSinglestepScheduler": [{"use_karras_sigmas": True, "lower_order_final": True, **NOISE_LEVELS}],
    "UniPCMultistepScheduler": [{"use_karras_sigmas": True, **NOISE_LEVELS, **ZERO_SNR}, {"solver_order": 3}],
    "SASolverScheduler": [{"use_karras_sigmas": True}],
}


def configured(pipe, name, settings):
    """Return a pipeline with a scheduler that was given settings as diffusers hands them on: in one config."""
    config = {**pipe.scheduler.config, "rescale_betas_zero_snr": False, **settings}
    return with_scheduler(pipe, getattr(diffusers, name).from_config(config))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [(name, each) for name, all_ in SETTINGS.items() for each in all_])
def test_replay_is_the_same_clip_for_every_scheduler(pipe, name, settings):
    """Over JSON, as from a PNG. Latents are compared, too: they are finer than pixels, which are rounded."""
    mine = configured(pipe, name, settings)
    clip = text_to_audio(mine, "piano", seed=3, **SHORT)
    recipe = json.loads(json.dumps(clip.recipe, allow_nan=False))
    assert settings.keys() <= recipe["scheduler"]["config"].keys()
    assert np.array_equal(pixels(replay(recipe, pipe)), pixels(clip))
    rebuilt = with_scheduler(pipe, scheduler_from_recipe(recipe))
    assert torch.equal(latents(rebuilt), latents(mine))


def latents(pipe):
    """Return the latents of a clip after the last step."""
    last = []
    text_to_audio(pipe, "piano", seed=3, **SHORT, callback_on_step_end=lambda *step: last.append(step[-1]["latents"]))
    return last[-1]


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler"])
def test_noise_levels_count_where_no_parameter_has_their_name(pipe, name):
    """If they did not, the test above would pass without them."""
    with_levels = latents(configured(pipe, name, {"use_karras_sigmas": True, **NOISE_LEVELS}))
    assert not torch.equal(with_levels, latents(configured(pipe, name, {"use_karras_sigmas": True})))


def test_a_scheduler_with_noise_of_its_own_draws_the_clips(pipe):
    """As DPM++ SDE does, whose Brownian noise takes a seed and no generator (`torchsde` is not needed here)."""

    class OwnNoise(DDIMScheduler):
        noise_sampler_seed = None

        def step(self, *arguments, **options):
            seeds = [torch.seed() if self.noise_sampler_seed is None else s for s in self.noise_sampler_seed or [0]]
            latents = super().step(*arguments, **options)[0]
            noise = [torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            return (latents + 0.1 * torch.stack(noise),)

    mine = with_scheduler(pipe, OwnNoise.from_config(pipe.scheduler.config))
    first, again = (text_to_audio(mine, "piano", seed=3, **SHORT) for _ in range(2))
    assert np.array_equal(pixels(first), pixels(again))
    pair = text_to_audio(mine, "piano", seed=[3, 4], batch_size=2, **SHORT)
    assert np.abs(pixels(pair[0]).astype(int) - pixels(first)).max() <= 1  # a batch may round otherwise
    assert not np.array_equal(pixels(pair[1]), pixels(text_to_audio(pipe, "piano", seed=4, **SHORT)))
    restyled = [audio_to_audio(mine, first, "jazz", num_inference_steps=4) for _ in range(2)]
    assert np.array_equal(pixels(restyled[0]), pixels(restyled[1]))


# --- schedulers that cannot -----------------------------------------------------------------------------------


def never(*_):
    raise AssertionError("the first step was taken")


TEXT_ONLY = {"IPNDMScheduler"}  # refused only where they are to begin from a clip
CANNOT = ["FlowMatchEulerDiscreteScheduler", "DDIMInverseScheduler", "CogVideoXDPMScheduler", *TEXT_ONLY]
CANNOT += ["DPMSolverMultistepInverseScheduler", "SCMScheduler", "RePaintScheduler", "KarrasVeScheduler"]


@pytest.mark.filterwarnings("ignore:.*is made for models of another kind")
@pytest.mark.parametrize("name", CANNOT)
def test_schedulers_that_cannot_are_refused_with_advice(pipe, name):
    clip = text_to_audio(pipe, "piano", **SHORT)
    mine = with_scheduler(pipe, getattr(diffusers, name)())
    options = {"num_inference_steps": 4, "callback_on_step_end": never}
    advice = f"{name} cannot (make|change) a clip with num_inference_steps=4 .*: take .* DDIMScheduler or EulerDiscrete"
    calls = [
        lambda: audio_to_audio(mine, clip, "jazz", **options),
        lambda: inpaint(mine, clip, (0, 0.04), "jazz", **options),
        lambda: extend(mine, clip, "jazz", seconds=1, **options),
    ]
    if name not in TEXT_ONLY:
        calls.append(lambda: text_to_audio(mine, "piano", **SHORT, callback_on_step_end=never))
        calls.append(lambda: interpolate(mine, Prompt("piano"), Prompt("jazz"), num_clips=3, num_inference_steps=4))
    for call in calls:
        with pytest.raises(ValueError, match=advice):
            call()


def test_too_many_steps_for_a_scheduler(pipe):
    mine = with_scheduler(pipe, LCMScheduler.from_config(pipe.scheduler.config))
    with pytest.raises(ValueError, match="LCMScheduler cannot make a clip with num_inference_steps=60 .*original.*60"):
        text_to_audio(mine, "piano", num_inference_steps=60, callback_on_step_end=never)


def test_what_divides_by_zero_is_refused_before_the_first_step(pipe):
    """From pure noise, which zero terminal SNR begins with, nothing can be told by predicting the noise."""
    mine = with_scheduler(pipe, DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon"))
    message = "DDIMScheduler cannot make a clip .*after step 1 of 4: .*: take .* EulerDiscreteScheduler or UniPC"
    with pytest.raises(ValueError, match=message):
        text_to_audio(mine, "piano", **SHORT, callback_on_step_end=never)


def test_a_solver_that_ends_in_nan_is_refused_before_the_first_step(pipe):
    """The last step of UniPC's "bh1" multiplies 0 by infinity, whatever the network says."""
    mine = configured(pipe, "UniPCMultistepScheduler", {"solver_type": "bh1"})
    with pytest.raises(
        ValueError, match="UniPCMultistepScheduler cannot make a clip with num_inference_steps=4 .*after step 4 of 4"
    ):
        text_to_audio(mine, "piano", **SHORT, callback_on_step_end=never)


def test_schedulers_of_other_models_are_remarked_on(pipe):
    mine = with_scheduler(pipe, diffusers.EDMEulerScheduler())
    with pytest.warns(UserWarning, match="EDMEulerScheduler is made for models of another kind than Stable Diffusion"):
        clip = text_to_audio(mine, "piano", **SHORT)
    with pytest.warns(UserWarning, match="EDMEulerScheduler"):
        assert np.array_equal(pixels(replay(clip, pipe)), pixels(clip))


def test_a_pipes_own_scheduler_is_not_touched_by_the_trial(pipe):
    before = {name: repr(value) for name, value in vars(pipe.scheduler).items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    text_to_audio(pipe, "piano", **SHORT)
    assert {name: repr(value) for name, value in vars(pipe.scheduler).items()} == before
    assert torch.equal(torch.get_rng_state(), state)


# --- NaN ------------------------------------------------------------------------------------------------------


class SpoilsStep:
    """A hook on a network: what it gives at one step, counted from 1, is NaN."""

    def __init__(self, step):
        self.left = step

    def __call__(self, _network, _inputs, outputs):
        self.left -= 1
        return (outputs[0] * float("nan"),) if self.left == 0 else outputs


@pytest.fixture
def spoil_unet(pipe):
    """Let the U-Net give NaN at one step."""
    hooks = []
    yield lambda step: hooks.append(pipe.unet.register_forward_hook(SpoilsStep(step)))
    for hook in hooks:
        hook.remove()


def watch(*_):
    """A callback that only watches."""


watch.tensor_inputs = ["prompt_embeds"]


@pytest.mark.parametrize("callback", [None, lambda *_: None, watch])
def test_nan_names_scheduler_and_step(pipe, spoil_unet, callback):
    spoil_unet(3)
    with pytest.raises(
        FloatingPointError, match="DDIMScheduler, latents after step 3 of 4: not all numbers are finite$"
    ):
        text_to_audio(pipe, "piano", **SHORT, callback_on_step_end=callback)


def test_nan_is_found_on_the_way_from_a_clip_and_in_extend(pipe, spoil_unet):
    clip = text_to_audio(pipe, "piano", **SHORT)
    spoil_unet(2)
    with pytest.raises(FloatingPointError, match="DDIMScheduler, latents after step 2 of 4"):
        inpaint(pipe, clip, (0, 0.04), "jazz", num_inference_steps=4, guidance_scale=1)
    spoil_unet(1)
    with pytest.raises(FloatingPointError, match="DDIMScheduler, latents after step 1 of 4"):
        extend(pipe, clip, "jazz", seconds=1, num_inference_steps=4)


def test_nan_of_a_callback_is_the_callbacks(pipe):
    clip = text_to_audio(pipe, "piano", **SHORT)

    def spoil(_pipe, step, _timestep, tensors):
        return {"latents": tensors["latents"] / 0} if step == 1 else None

    with pytest.raises(FloatingPointError, match="callback_on_step_end, latents of step 2 of 4"):
        text_to_audio(pipe, "piano", **SHORT, callback_on_step_end=spoil)
    with pytest.raises(FloatingPointError, match="callback_on_step_end, latents of step 2 of"):
        audio_to_audio(pipe, clip, "jazz", num_inference_steps=4, callback_on_step_end=spoil)


@pytest.mark.parametrize(("part", "what"), [("decoder", "picture"), ("encoder", "latents")])
def test_nan_of_the_autoencoder_is_the_autoencoders(pipe, part, what):
    clip = text_to_audio(pipe, "piano", **SHORT)
    hook = getattr(pipe.vae, part).register_forward_hook(lambda _network, _inputs, output: output * float("inf"))
    try:
        with pytest.raises(FloatingPointError, match=f"the autoencoder's {what}: not all numbers are finite"):
            audio_to_audio(pipe, clip, "jazz", num_inference_steps=4)
    finally:
        hook.remove()


def test_nan_in_half_precision_says_what_to_try():
    check_finite("latents", torch.zeros(2, dtype=torch.float16))
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(FloatingPointError, match=f"too large for {str(dtype)[6:]}: try .*dtype='float32'"):
            check_finite("latents", torch.tensor([0, torch.inf], dtype=dtype))


# --- the hash of the weights ----------------------------------------------------------------------------------


@pytest.fixture
def own():
    """A pipeline that a test may spoil."""
    return tiny_pipeline()


def write(pipe):
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1


def write_through_data(pipe):
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3


def scale_through_data(pipe):
    pipe.vae.decoder.layers[0].weight.data.mul_(-1)  # the sum of the bits may stay the same


def shuffle_through_data(pipe):
    weight = pipe.text_encoder.get_input_embeddings().weight
    weight.data.copy_(weight.data.flip(0).clone())  # the same numbers in other places


def replace_data(pipe):
    pipe.unet.conv_out.weight.data = pipe.unet.conv_out.weight.data * 2


def add_buffer(pipe):
    pipe.unet.register_buffer("bias_of_my_own", torch.ones(3))


def count_otherwise(pipe):
    positions = next(buffer for name, buffer in pipe.text_encoder.named_buffers() if name.endswith("position_ids"))
    positions.copy_(positions.flip(-1).clone())


class Double(nn.Module):
    """A parametrization: twice the weight."""

    def forward(self, weight):
        return 2 * weight


def parametrize_weight(pipe):
    parametrize.register_parametrization(pipe.unet.conv_in, "weight", Double())


def add_mask(pipe):
    pipe.vae.register_buffer("mask_of_my_own", torch.tensor([True, False]))


def enable_free_u(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


CHANGES = [write, write_through_data, scale_through_data, shuffle_through_data, replace_data, add_buffer]
CHANGES += [count_otherwise, parametrize_weight, enable_free_u, add_mask]


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_sees_every_change(own, change):
    before = weights_hash(own)
    assert weights_hash(own) == before
    change(own)
    assert weights_hash(own) != before


def test_the_hash_sees_what_a_parametrization_does(own):
    parametrize_weight(own)
    before = weights_hash(own)
    own.unet.conv_in.parametrizations.weight[0].forward = lambda weight: 3 * weight
    assert weights_hash(own) != before


def test_the_hash_is_that_of_the_bits_again(own):
    before = weights_hash(own)
    weight = own.unet.conv_in.weight
    weight.data.add_(1)
    assert weights_hash(own) != before
    own.unet.conv_in.weight.data = tiny_pipeline().unet.conv_in.weight.data
    assert weights_hash(own) == before


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_has_the_same_hash(own, in_place):
    before = weights_hash(own)
    for part in ("unet", "vae", "text_encoder"):
        if in_place:
            getattr(own, part).compile(backend="eager")
        else:
            setattr(own, part, torch.compile(getattr(own, part), backend="eager"))
    own.unet.mid_block = torch.compile(own.unet.mid_block, backend="eager")
    assert weights_hash(own) == before
    write_through_data(own)
    assert weights_hash(own) != before


def test_the_hash_sees_adapters_and_how_strongly_they_act(own):
    plain = weights_hash(own)
    own.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "mine")
    hashes = [plain, weights_hash(own)]
    own.unet.set_adapters(["mine"], [0.5])
    hashes.append(weights_hash(own))
    own.unet.disable_adapters()
    assert weights_hash(own) == plain
    own.unet.enable_adapters()
    next(weight for name, weight in own.unet.named_parameters() if "lora_B" in name).data.add_(1)
    hashes.append(weights_hash(own))
    assert len(set(hashes)) == len(hashes)
    own.unet.set_adapters(["mine"], [1.0])
    own.unet.delete_adapters("mine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_checksums_on_other_devices_see_every_change(dtype):
    """They are the same operations there; here they run on the CPU."""
    tensor = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).mul(50).to(dtype)
    changes = [tensor, tensor.flip(0), tensor.roll(1), -tensor, tensor + 1, tensor * 0]
    changes.append(tensor.clone())
    changes[-1].view(torch.uint8)[-1, -1] ^= 1  # the smallest there is
    sums = [int(_weighted_sum(changed)) for changed in changes]
    assert len(set(sums)) == len(sums) and int(_weighted_sum(tensor.clone())) == sums[0]


def test_checksums_on_other_devices_see_what_moves_from_piece_to_piece():
    tensor = torch.zeros(2 * PIECE + 5, dtype=torch.float16)
    sums = []
    for place in (0, 7, PIECE, PIECE + 7, 2 * PIECE + 3):
        tensor.zero_()[place] = 1
        sums.append(int(_weighted_sum(tensor)))
    assert len(set(sums)) == len(sums)


# --- recipes by strangers -------------------------------------------------------------------------------------


def with_settings(recipe, **settings):
    scheduler = recipe["scheduler"]
    return {**recipe, "scheduler": {**scheduler, "config": {**scheduler["config"], **settings}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soup": 1}, "DDIMScheduler of the recipe cannot be built: it has no setting soup"),
        ({"items": 1}, "has no setting items"),
        ({"num_train_timesteps": 10**12}, "a setting above 100,000: 1,000,000,000,000"),
        ({"beta_schedule": "steep"}, "DDIMScheduler of the recipe cannot be built: steep"),
        ({"beta_start": "low"}, "DDIMScheduler of the recipe cannot be built"),
        ({"timestep_spacing": "wide"}, "DDIMScheduler cannot make a clip with num_inference_steps=4 .*wide"),
    ],
)
def test_settings_that_no_scheduler_takes(pipe, settings, message):
    recipe = text_to_audio(pipe, "piano", **SHORT).recipe
    with pytest.raises(ValueError, match=message):
        replay(with_settings(recipe, **settings), pipe)


@pytest.mark.parametrize(
    "scheduler", [{"class": "Mel", "config": {}}, {"class": "DDIMScheduler"}, {"class": "DDIMScheduler", "config": 3}]
)
def test_what_is_no_scheduler(pipe, scheduler):
    recipe = text_to_audio(pipe, "piano", **SHORT).recipe
    with pytest.raises(ValueError, match="of the recipe is invalid"):
        replay({**recipe, "scheduler": scheduler}, pipe)


def test_a_scheduler_class_of_ones_own_is_not_taken_for_diffusers(pipe):
    own_class = type("DDIMScheduler", (DDIMScheduler,), {})
    clip = text_to_audio(with_scheduler(pipe, own_class.from_config(pipe.scheduler.config)), "piano", **SHORT)
    with pytest.raises(ValueError, match=r"scheduler '.*\.DDIMScheduler' of the recipe is invalid: diffusers"):
        replay(clip, pipe)


def refuse_to_connect(*_, **__):
    raise socket.gaierror("this test has no network")


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty cache of the Hugging Face Hub, which cannot be reached and may not be asked for a model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse_to_connect)
    for module in (models, pipeline_utils):
        monkeypatch.setattr(module, "model_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    return tmp_path / "hub"


def put_into_cache(hub, folder):
    """Lay a folder out as huggingface_hub lays a downloaded model out."""
    snapshot = hub / "models--someone--something" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (hub / "models--someone--something" / "refs").mkdir()
    (hub / "models--someone--something" / "refs" / "main").write_text("a" * 40)


@pytest.mark.parametrize("model", ["small", "models/small", "../small", "./small", "someone/something", 3, None])
@pytest.mark.usefixtures("hub_cache")
def test_replay_downloads_nothing_and_reads_no_folder(pipe, folder, tmp_path, monkeypatch, model):
    """Folders with these names are there: a recipe's model is a stranger's choice."""
    for name in ("work/small", "work/models/small", "small"):
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path / "work")
    recipe = {**text_to_audio(pipe, "piano", **SHORT).recipe, "model": model}
    advice = r"is neither included here nor downloaded from the Hub yet; .*replay\(clip, load_pipeline\("
    with pytest.raises(OSError, match=advice) as caught:
        replay(recipe)
    assert repr(model) in str(caught.value)


def test_replay_loads_a_model_that_was_downloaded_before(pipe, folder, hub_cache):
    clip = text_to_audio(pipe, "piano", **SHORT)
    recipe = {**clip.recipe, "model": "someone/something"}
    put_into_cache(hub_cache, folder)
    again = replay(recipe)
    assert np.array_equal(pixels(again), pixels(clip)) and again.recipe["model"] == "someone/something"


def test_a_folder_does_not_take_the_place_of_a_downloaded_model(pipe, folder, hub_cache, tmp_path, monkeypatch):
    put_into_cache(hub_cache, folder)
    (tmp_path / "someone" / "something").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = {**text_to_audio(pipe, "piano", **SHORT).recipe, "model": "someone/something"}
    with pytest.raises(OSError, match="is neither included here nor downloaded from the Hub yet"):
        replay(recipe)


def test_replay_loads_riffling(pipe, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    shutil.copytree(folder, tmp_path / "riffling")
    clip = text_to_audio(pipe, "piano", **SHORT)
    assert np.array_equal(pixels(replay({**clip.recipe, "model": "riffling"})), pixels(clip))


def test_recipes_of_earlier_versions_are_followed(pipe):
    """They hold only the settings that the scheduler's ``__init__`` names."""
    clip = text_to_audio(pipe, "piano", **SHORT)
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    config |= {"beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
    old = {**clip.recipe, "scheduler": {"class": "DDIMScheduler", "config": config}}
    assert np.array_equal(pixels(replay(old, pipe)), pixels(clip))


def test_a_recipe_is_json_also_where_settings_are_arrays(pipe):
    for betas in (np.linspace(1e-4, 0.02, 1000), list(torch.linspace(1e-4, 0.02, 1000).numpy())):
        mine = configured(pipe, "DDIMScheduler", {"trained_betas": betas})
        recipe = make_recipe(mine, "text_to_audio")
        assert json.loads(json.dumps(recipe)) == recipe
        assert torch.equal(scheduler_from_recipe(recipe).betas, mine.scheduler.betas)
