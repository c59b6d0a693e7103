"""LoRAs for few steps: recognized, their scheduler and settings set; walks that keep their ends, also at full size."""

import copy
import re
import shutil
import warnings

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from riffusion_lab import Prompt, audio_to_audio, interpolate, load_pipeline, models
from riffusion_lab import text_to_audio as generate
from riffusion_lab.few_steps import FEW_STEPS, recognized_kind
from riffusion_lab.lora import active_loras
from riffusion_lab.models import model_settings
from tiny import save_stable_diffusion, tiny_pipeline

SHORT = {"duration_s": 0.64, "loop": False}
# The layers that diffusers' script for LCM-LoRAs trains (train_lcm_distill_lora_sd.py)
LCM_LAYERS = re.compile(
    r"\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut"
    r"|downsamplers\.0\.conv|upsamplers\.0\.conv|time_emb_proj)$"
)
RANK, ALPHA = 4, 2.0  # the published one has rank 64


def lcm_lora(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random matrices under the names of lcm-lora-sdv1-5, which are kohya's."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in unet.named_modules():
        if not LCM_LAYERS.search(name):
            continue
        start = "lora_unet_" + name.replace(".", "_")
        n_out, *inputs = layer.weight.shape  # a linear layer's (out, in), a convolution's (out, in, height, width)
        ones = [1] * (len(inputs) - 1)
        weights[f"{start}.lora_down.weight"] = 0.01 * torch.randn(RANK, *inputs, generator=random)
        weights[f"{start}.lora_up.weight"] = 0.01 * torch.randn(n_out, RANK, *ones, generator=random)
        weights[f"{start}.alpha"] = torch.tensor(ALPHA)
    return weights


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("loras") / "plain.safetensors"
    save_file(lcm_lora(tiny_pipeline().unet), path)
    return path


def renamed(lora_file, name):
    path = lora_file.parent / name
    path.parent.mkdir(exist_ok=True)
    return shutil.copy(lora_file, path)


def pixels(clip):
    return np.asarray(clip.image).astype(int)


def same(a, b):
    return np.array_equal(pixels(a), pixels(b))


# --- by name ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("latent-consistency/lcm-lora-sdv1-5", "lcm"),
        ("lcm-lora-sdv1-5", "lcm"),
        ("LCM_LoRA_Weights_SD15", "lcm"),
        ("lcm lora v1.5", "lcm"),
        ("latent-consistency lora", "lcm"),
        ("Hyper-SD15-2steps-lora", "hyper-sd-2steps"),
        ("Hyper-SD15-4steps-lora", "hyper-sd-4steps"),
        ("hyper_sd15_8_steps_lora", "hyper-sd-8steps"),
        # what asks for settings that are not known here, and what only looks like one
        ("Hyper-SD15-8steps-CFG-lora", None),
        ("Hyper-SD15-1step-lora", None),
        ("ByteDance/Hyper-SD", None),
        ("TCD-SD15-LoRA", None),
        ("filmcmix", None),
        ("funk", None),
        ("", None),
    ],
)
def test_kinds_are_recognized_by_their_names(name, kind):
    assert recognized_kind(name) == kind


@pytest.mark.parametrize("name", ["lcm-lora-sdv1-5.safetensors", "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"])
def test_scheduler_steps_and_guidance_are_set_and_said(folder, lora_file, name, capfd):
    pipe = load_pipeline(folder, device="cpu", lora=renamed(lora_file, name))
    said = "small with LoRA lcm_lora_sdv1_5 at 1 on cpu in float32 with LCMScheduler, 4 steps, guidance 1\n"
    assert capfd.readouterr() == (said, "")
    assert type(pipe.scheduler) is diffusers.LCMScheduler
    own = load_pipeline(folder, device="cpu").scheduler.config
    assert {name: pipe.scheduler.config[name] for name in ("beta_schedule", "prediction_type")} == {
        name: own[name] for name in ("beta_schedule", "prediction_type")
    }
    recipe = generate(pipe, "piano", **SHORT).recipe
    assert (recipe["num_inference_steps"], recipe["guidance_scale"]) == (4, 1.0)
    assert recipe["scheduler"]["class"] == "LCMScheduler"
    assert model_settings(pipe).tempi_bpm == (94, 105, 141)  # the model's other settings stay


def test_hyper_sd(folder, lora_file):
    pipe = load_pipeline(folder, device="cpu", lora=renamed(lora_file, "Hyper-SD15-2steps-lora.safetensors"))
    recipe = generate(pipe, "piano", **SHORT).recipe
    assert (recipe["num_inference_steps"], recipe["guidance_scale"]) == (2, 1.0)
    assert recipe["scheduler"]["class"] == "DDIMScheduler"
    assert recipe["scheduler"]["config"]["timestep_spacing"] == "trailing"


def test_what_a_call_asks_for_counts_more(folder, lora_file):
    pipe = load_pipeline(folder, device="cpu", lora=renamed(lora_file, "lcm.safetensors"))
    recipe = generate(pipe, "piano", num_inference_steps=2, guidance_scale=1.5, **SHORT).recipe
    assert (recipe["num_inference_steps"], recipe["guidance_scale"]) == (2, 1.5)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert generate(pipe, "piano", **SHORT).recipe["scheduler"]["class"] == "DDIMScheduler"


@pytest.mark.parametrize(
    ("name", "options"),
    [("plain.safetensors", {}), ("lcm.safetensors", {"few_steps": "none"})],
)
def test_other_loras_change_no_settings(folder, lora_file, name, options):
    pipe = load_pipeline(folder, device="cpu", lora=renamed(lora_file, f"other/{name}"), **options)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert model_settings(pipe).num_inference_steps == 3 and model_settings(pipe).guidance_scale == 4.0


@pytest.mark.parametrize("weight", [0, -1])
def test_a_lora_that_is_not_added_changes_no_settings(folder, lora_file, weight):
    pipe = load_pipeline(folder, device="cpu", lora={renamed(lora_file, "lcm.safetensors"): weight})
    assert type(pipe.scheduler) is diffusers.DDIMScheduler and model_settings(pipe).num_inference_steps == 3


def test_the_name_in_the_files_metadata(folder, tmp_path):
    path = tmp_path / "downloaded.safetensors"
    save_file(lcm_lora(tiny_pipeline().unet), path, metadata={"ss_output_name": "lcm-lora-sdv1-5"})
    assert type(load_pipeline(folder, device="cpu", lora=path).scheduler) is diffusers.LCMScheduler


@pytest.mark.parametrize("with_lora", [True, False])
def test_few_steps_for_a_name_that_tells_nothing(folder, lora_file, with_lora):
    lora = lora_file if with_lora else None
    pipe = load_pipeline(folder, device="cpu", lora=lora, few_steps="lcm")
    assert type(pipe.scheduler) is diffusers.LCMScheduler and model_settings(pipe).num_inference_steps == 4


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("turbo", ValueError, "few_steps must be one of 'auto', 'none', 'lcm', 'hyper-sd-2steps', .* not 'turbo'"),
        (4, TypeError, "few_steps must be a str, not 4"),
        (None, TypeError, "few_steps must be a str, not None"),
    ],
)
def test_an_unknown_kind_is_refused_before_the_model_is_read(folder, monkeypatch, choice, error, message):
    monkeypatch.setattr(models, "_read", lambda *_: pytest.fail("few_steps must be checked first"))
    with pytest.raises(error, match=message):
        load_pipeline(folder, few_steps=choice)


def test_two_kinds_do_not_go_together(folder, lora_file, monkeypatch):
    monkeypatch.setattr(models, "_read", lambda *_: pytest.fail("the names must be compared first"))
    files = {renamed(lora_file, f"{name}.safetensors"): 1.0 for name in ("lcm", "Hyper-SD15-2steps-lora")}
    said = (
        r"lcm \(LCMScheduler, 4 steps, guidance 1\) and Hyper_SD15_2steps_lora \(DDIMScheduler, 2 steps, guidance 1\)"
    )
    with pytest.raises(ValueError, match=f"do not go together: {said}: load one of them"):
        load_pipeline(folder, lora=files)


def test_a_style_goes_with_it(folder, lora_file):
    files = {renamed(lora_file, f"{name}.safetensors"): 0.5 for name in ("lcm", "funk")}
    pipe = load_pipeline(folder, device="cpu", lora=files)
    assert type(pipe.scheduler) is diffusers.LCMScheduler
    assert {each["name"] for each in active_loras(pipe)} == {"lcm", "funk"}


def test_a_file_of_the_hub_is_named_after_its_place_there(folder, lora_file, tmp_path, monkeypatch, capfd):
    snapshot = tmp_path / "models--latent-consistency--lcm-lora-sdv1-5" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shutil.copy(lora_file, snapshot / "pytorch_lora_weights.safetensors")
    monkeypatch.setattr(models, "_is_online", lambda _: False)
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(snapshot))
    pipe = load_pipeline(folder, device="cpu", lora="latent-consistency/lcm-lora-sdv1-5")
    assert pipe.get_active_adapters() == ["lcm_lora_sdv1_5"]
    assert "with LCMScheduler, 4 steps, guidance 1" in capfd.readouterr().out


def test_without_the_lora_its_settings_are_warned_of(folder, lora_file):
    pipe = load_pipeline(folder, device="cpu", lora=renamed(lora_file, "lcm.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(pipe, "piano", **SHORT)
    said = "the LoRA lcm is not active, but the model still has its scheduler and its defaults .4 steps and guidance 1"
    pipe.disable_lora()
    with pytest.warns(UserWarning, match=said):
        generate(pipe, "piano", **SHORT)
    pipe.enable_lora()
    pipe.fuse_lora()
    pipe.unload_lora_weights()  # what is fused stays
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(pipe, "piano", **SHORT)


def test_every_kind_is_a_scheduler_that_works(pipe):
    for few_steps in FEW_STEPS.values():
        mine = copy.copy(pipe)
        mine.scheduler = few_steps.make_scheduler(pipe.scheduler)
        clip = generate(mine, "piano", num_inference_steps=few_steps.num_inference_steps, guidance_scale=1, **SHORT)
        restyled = audio_to_audio(mine, clip, "piano", num_inference_steps=2, guidance_scale=1)
        assert clip.image.size == restyled.image.size == (64, 512)


# --- at full size -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Random weights with the shapes of Riffusion v1 and of an LCM-LoRA for it, loaded by the name of that LoRA."""
    parent = tmp_path_factory.mktemp("full_size")
    folder = save_stable_diffusion(parent / "v1")
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    path = parent / "lcm-lora-sdv1-5" / "pytorch_lora_weights.safetensors"
    path.parent.mkdir()
    save_file(lcm_lora(unet), path)
    pipe = load_pipeline(folder, device="cpu", lora=path.parent)
    shutil.rmtree(parent)  # 2 GB, which pytest would keep
    return pipe


@pytest.mark.slow
def test_a_full_size_model_with_an_lcm_lora_walks_from_clip_to_clip(full_size):
    """A step takes seconds on a CPU, so there are two of them, and an eighth of a clip."""
    (entry,) = active_loras(full_size)
    assert entry["name"] == "lcm_lora_sdv1_5" and entry["weight"] == 1.0
    assert model_settings(full_size).num_inference_steps == 4
    options = {"num_inference_steps": 2, **SHORT}
    a, b = Prompt("jazz", seed=1), Prompt("rock", seed=2)
    alphas = {0.0: 0.5, 0.5: 0.999, 1.0: 1.0}
    middle, near_the_end, last = interpolate(full_size, a, b, num_clips=3, curve=alphas.get, **options)
    assert same(last, generate(full_size, "rock", seed=2, **options))
    whole = np.abs(pixels(middle) - pixels(last)).mean()
    assert 0 < np.abs(pixels(near_the_end) - pixels(last)).mean() < 0.05 * whole
    assert last.recipe["scheduler"]["class"] == "LCMScheduler" and last.recipe["end"]["guidance_scale"] == 1.0


@pytest.mark.slow
def test_a_full_size_model_with_an_lcm_lora_changes_clips(full_size):
    source = generate(full_size, "jazz", num_inference_steps=1, **SHORT)
    restyled = audio_to_audio(full_size, source, "rock", strength=0.5)  # 2 of the default 4 steps
    assert restyled.recipe["num_inference_steps"] == 4 and not same(restyled, source)


def test_noise_levels_to_start_from_belong_to_the_scheduler_before():
    pipe = tiny_pipeline()
    models.keep_settings(pipe, "tiny", models.ModelSettings(start_sigmas=(40.0, 1.0)))
    models._set_few_steps(pipe, FEW_STEPS["lcm"], ())
    assert model_settings(pipe).start_sigmas == () and model_settings(pipe).num_inference_steps == 4
