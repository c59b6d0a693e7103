"""Models that are not a whole folder in diffusers' layout: single files, and folders with a variant of the weights."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clip_tokenizer import build_vocabulary
from original_format import original_weights
from riffusion_lab import checkpoints, load_pipeline, text_to_audio
from riffusion_lab.models import ModelSettings, model_name, model_settings
from test_models import Bomb
from tiny import save_tiny_pipeline, tiny_text_encoder, tiny_tokenizer, tiny_unet

PARTS = ("unet", "vae", "text_encoder")


def same_weights(a: StableDiffusionPipeline, b: StableDiffusionPipeline) -> bool:
    pairs = [(getattr(a, part).state_dict(), getattr(b, part).state_dict()) for part in PARTS]
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs)


@pytest.fixture(scope="module")
def original() -> StableDiffusionPipeline:
    """A tiny model of Stable Diffusion 1.x's kind."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    tokenizer = tiny_tokenizer()
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def weights(original, tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """Its weights by their original names; its configuration takes the place of the shipped one, of full size."""
    original.save_pretrained(tmp_path / "configuration")
    for path in (tmp_path / "configuration").rglob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(checkpoints, "STABLE_DIFFUSION_V1", tmp_path / "configuration")
    return original_weights(original)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# What is shipped


def test_shipped_tokenizer_is_clips():
    folder = checkpoints.STABLE_DIFFUSION_V1 / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 49_408 and tokenizer.model_max_length == 77
    # as openai/CLIP's own `tokenize` gives them
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("  A PHOTO of\na cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("94 bpm").input_ids[1:-1] == [280, 275, 40338]
    assert tokenizer("", padding="max_length").input_ids == [49406] + [49407] * 76


def test_shipped_vocabulary_follows_from_the_merges():
    folder = checkpoints.STABLE_DIFFUSION_V1 / "tokenizer"
    version, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert version == "#version: 0.2" and len(merges) == 48_894
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == build_vocabulary(merges)


@pytest.mark.slow
def test_a_file_of_full_size_fits_the_shipped_configuration(tmp_path, capfd):
    """Every tensor of 1.07 billion weights is there, but repeats one number, so the file is small."""
    folder = checkpoints.STABLE_DIFFUSION_V1
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in (unet, vae, text_encoder)]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]  # Stable Diffusion 1.5's own
    shapes = {name: w.shape for name, w in original_weights(Parts(unet, vae, text_encoder)).items()}
    one = torch.tensor([0.01], dtype=torch.bfloat16)
    torch.save({"state_dict": {name: one.expand(shape) for name, shape in shapes.items()}}, tmp_path / "v1.ckpt")
    capfd.readouterr()
    pipe = load_pipeline(tmp_path / "v1.ckpt", device="cpu", dtype="bfloat16")
    assert capfd.readouterr() == ("v1.ckpt on cpu in bfloat16\n", "")
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}
    assert all(bool((weight[..., :1] == one).all()) for weight in pipe.unet.parameters())
    # facts about Riffusion v1 and Stable Diffusion 1.5 that no weight tells
    scheduler = pipe.scheduler.config
    assert (type(pipe.scheduler), scheduler.prediction_type, scheduler.steps_offset) == (PNDMScheduler, "epsilon", 1)
    assert (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (scheduler.skip_prk_steps, scheduler.set_alpha_to_one) == (True, False)
    assert (pipe.vae.config.scaling_factor, pipe.unet.config.attention_head_dim) == (0.18215, 8)
    assert pipe.text_encoder.config.hidden_act == "quick_gelu"


class Parts:
    def __init__(self, unet, vae, text_encoder) -> None:
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder


# Single files


def write(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "global_step": 470_000}, path)
    return path


@pytest.mark.parametrize("name", ["tune.safetensors", "tune.ckpt"])
def test_a_single_file_is_the_same_model(original, weights, tmp_path, name, news, capfd):
    capfd.readouterr()
    pipe = load_pipeline(write(tmp_path / name, weights), device="cpu")
    assert capfd.readouterr() == (f"{name} on cpu in float32\n", "") and news == []
    assert type(pipe) is StableDiffusionPipeline and pipe.safety_checker is None
    assert same_weights(pipe, original)
    assert not any(getattr(pipe, part).training for part in PARTS)
    assert model_name(pipe) == name and model_settings(pipe) == ModelSettings()
    assert text_to_audio(pipe, "jazz", num_inference_steps=2).recipe["model"] == name


def test_half_precision_is_read_as_what_is_asked_for(original, weights, tmp_path):
    halves = {name: weight.half() for name, weight in weights.items()}
    pipe = load_pipeline(write(tmp_path / "half.safetensors", halves), device="cpu")
    weight = pipe.unet.conv_in.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, original.unet.conv_in.weight.half().float())


def test_averaged_weights_win(original, weights, tmp_path, news):
    """Files to train on hold the U-Net twice; its folder in diffusers' layout holds the averaged one."""
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): weight + 1
        for name, weight in weights.items()
        if name.startswith("model.diffusion_model.")
    }
    assert len(averages) > 100  # fewer are none for diffusers
    pipe = load_pipeline(write(tmp_path / "both.ckpt", weights | averages), device="cpu")
    assert news == []
    assert torch.equal(pipe.unet.conv_in.weight, original.unet.conv_in.weight + 1)
    assert torch.equal(pipe.vae.encoder.conv_in.weight, original.vae.encoder.conv_in.weight)


@pytest.mark.parametrize("said_by", ["metadata", "tensor", "yaml", "nobody"])
def test_v_prediction_is_taken_from_what_says_so(weights, tmp_path, said_by):
    path = tmp_path / "tune.safetensors"
    metadata = {"modelspec.prediction_type": "v"} if said_by == "metadata" else None
    added = {"v_pred": torch.zeros(0)} if said_by == "tensor" else {}
    save_file(weights | added, path, metadata=metadata)
    if said_by == "yaml":
        path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    prediction_type = load_pipeline(path, device="cpu").scheduler.config.prediction_type
    assert prediction_type == ("epsilon" if said_by == "nobody" else "v_prediction")


def rename(weights, old, new):
    return {name.replace(old, new): weight for name, weight in weights.items()}


def with_width(weights, width):
    return weights | {name: torch.zeros(8, width) for name in weights if name.endswith("attn2.to_k.weight")}


def with_channels(weights, n_channels):
    return weights | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, n_channels, 3, 3)}


def without(weights, start):
    return {name: weight for name, weight in weights.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: with_width(w, 1024), "it is Stable Diffusion 2, not"),
        (lambda w: rename(w, "cond_stage_model.", "conditioner.embedders.0."), "it is Stable Diffusion XL, not"),
        (lambda w: with_channels(w, 9), "its U-Net takes 9 channels, as for inpainting, not 4"),
        (lambda w: with_channels(w, 8), "its U-Net takes 8 channels, as for editing by instructions, not 4"),
        (lambda w: without(w, "cond_stage_model."), "it lacks the text encoder"),
        (lambda w: rename(w, ".transformer.text_model.", ".model."), "it lacks the text encoder"),
        (lambda w: without(w, "first_stage_model."), "it lacks the autoencoder"),
        (
            lambda w: without(w, "model.diffusion_model.out.2."),
            "it lacks some of the weights",
        ),
        (lambda w: without(w, "cond_stage_model.transformer.text_model.final"), "it lacks some of the weights"),
        (lambda _: {"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, r"it is a LoRA, not a model: pass it as lora="),
        (lambda _: {"conv_in.weight": torch.zeros(8, 4, 3, 3)}, "it is one part of a model in diffusers' layout"),
        (lambda _: {"encoder.layer.0": torch.zeros(3)}, "it is not a Stable Diffusion 1.x: it has neither"),
    ],
)
@pytest.mark.parametrize("name", ["tune.safetensors", "tune.ckpt"])
def test_another_kind_of_file_is_refused_in_one_line(weights, tmp_path, change, said, name):
    with pytest.raises(OSError, match=f"cannot load the model '{name}' .*{said}") as refusal:
        load_pipeline(write(tmp_path / name, change(weights)), device="cpu")
    assert len(str(refusal.value).splitlines()) == 1


def test_rifflings_own_kind_is_refused_as_a_part():
    part = Path(checkpoints.__file__).parent / "weights" / "riffling" / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(OSError, match="it is one part of a model in diffusers' layout: pass the model's folder"):
        load_pipeline(part)


def test_a_ckpt_never_runs_code(weights, tmp_path):
    witness = tmp_path / "bomb went off"
    torch.save({"state_dict": weights, "callbacks": Bomb(witness)}, tmp_path / "tune.ckpt")
    with pytest.raises(OSError, match=r"tune.ckpt contains code \(posix.mkdir\), which is never run") as refusal:
        load_pipeline(tmp_path / "tune.ckpt")
    assert len(str(refusal.value).splitlines()) == 1 and not witness.exists()


@pytest.mark.parametrize("name", ["tune.safetensors", "tune.ckpt"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", None])
def test_torn_file(weights, tmp_path, name, content):
    path = write(tmp_path / name, weights)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(OSError, match=f"cannot load the model '{name}' .*{name} is truncated") as refusal:
        load_pipeline(path, device="cpu")
    assert len(str(refusal.value).splitlines()) == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "tune.gguf").write_bytes(b"GGUF")
    with pytest.raises(OSError, match=r"a single file must be .safetensors or .ckpt"):
        load_pipeline(tmp_path / "tune.gguf")
    with pytest.raises(OSError, match="there is no model 'models/tune.safetensors'"):  # and the Hub is not asked
        load_pipeline("models/tune.safetensors")


# Folders with a variant


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def own_folder(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "small"))


def into_variant(folder: Path, part: str, variant: str, *, change: float = 0.0, copy: bool = False) -> None:
    """Give a part's weights a variant's name, as ``save_pretrained(variant=…)`` does."""
    (path,) = [path for path in (folder / part).glob("*model.*") if path.stem.count(".") == 0]
    renamed = path.with_name(f"{path.stem}.{variant}{path.suffix}")
    if path.suffix == ".bin":
        torch.save({name: weight + change for name, weight in torch.load(path).items()}, renamed)
    else:
        save_file({name: weight + change for name, weight in load_file(path).items()}, renamed, {"format": "pt"})
    if not copy:
        path.unlink()


@pytest.mark.parametrize("variants", [("fp16",) * 3, ("bf16",) * 3, ("fp16", None, None), ("bf16", "fp16", "ema")])
def test_parts_that_are_there_as_a_variant_only(folder, own_folder, variants, news, capfd):
    for part, variant in zip(PARTS, variants, strict=True):
        if variant:
            into_variant(own_folder, part, variant)
    capfd.readouterr()
    pipe = load_pipeline(own_folder, device="cpu")
    assert capfd.readouterr() == ("small on cpu in float32\n", "") and news == []
    assert same_weights(pipe, load_pipeline(folder, device="cpu"))
    assert {getattr(pipe, part).dtype for part in PARTS} == {torch.float32}
    assert model_settings(pipe).loop is True


def test_a_variant_of_pickles(folder, own_folder):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        (path,) = (own_folder / part).glob("*.safetensors")
        torch.save(load_file(path), path.with_name(f"{stem}.fp16.bin"))
        path.unlink()
    assert same_weights(load_pipeline(own_folder, device="cpu"), load_pipeline(folder, device="cpu"))


def test_weights_without_a_variant_win(folder, own_folder):
    for part in PARTS:
        into_variant(own_folder, part, "fp16", change=1.0, copy=True)
    assert same_weights(load_pipeline(own_folder, device="cpu"), load_pipeline(folder, device="cpu"))


@pytest.mark.parametrize(("dtype", "change"), [("float32", 1.0), ("bfloat16", 2.0)])
def test_of_several_variants_the_one_in_the_dtype_is_taken(folder, own_folder, dtype, change):
    for variant, added in {"fp16": 1.0, "bf16": 2.0}.items():
        into_variant(own_folder, "unet", variant, change=added, copy=True)
    (own_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe = load_pipeline(own_folder, device="cpu", dtype=dtype)
    expected = load_pipeline(folder, device="cpu").unet.conv_in.bias + change
    assert torch.equal(pipe.unet.conv_in.bias, expected.to(pipe.unet.dtype))


def test_variants_that_no_dtype_tells_apart(own_folder):
    for variant in ("ema", "non_ema"):
        into_variant(own_folder, "unet", variant, copy=True)
    (own_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="its unet comes in the variants ema, non_ema: keep one of them in the folder"):
        load_pipeline(own_folder, device="cpu")


def test_a_variants_class_comes_from_diffusers_or_transformers(own_folder):
    into_variant(own_folder, "unet", "fp16")
    index = own_folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["os", "system"]}))
    with pytest.raises(OSError, match="its unet is from 'os', not from diffusers or transformers"):
        load_pipeline(own_folder, device="cpu")
    assert os.name  # nothing was run


def test_a_variant_sounds_as_the_whole(folder, own_folder):
    for part in PARTS:
        into_variant(own_folder, part, "fp16")
    clips = [
        text_to_audio(load_pipeline(path, device="cpu"), "piano", num_inference_steps=1)
        for path in (folder, own_folder)
    ]
    assert np.array_equal(*(np.asarray(clip.image) for clip in clips))
    assert clips[0].recipe == clips[1].recipe


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "conv_in.weight"), ("vae", "decoder.layers.0.bias"), ("text_encoder", "final_layer_norm.weight")],
)
def test_a_part_that_lacks_weights_is_refused(own_folder, part, name):
    """diffusers and transformers would draw them at random."""
    (file,) = (own_folder / part).glob("*.safetensors")
    weights = load_file(file)
    (lost,) = [key for key in weights if key.endswith(name)]
    save_file({key: weight for key, weight in weights.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(OSError, match=rf"'small'.*its {part} lacks 1 weights, such as .*{name}"):
        load_pipeline(own_folder, device="cpu")


def test_an_autoencoder_with_the_names_of_2022_is_whole(original, tmp_path):
    """As in Riffusion v1: its attention calls its matrices query, key, value and proj_attn."""
    original.save_pretrained(tmp_path / "old")
    (file,) = (tmp_path / "old" / "vae").glob("*.safetensors")
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = load_file(file)
    for new_name, old_name in old.items():
        weights = {name.replace(new_name, old_name): weight for name, weight in weights.items()}
    assert any("proj_attn" in name for name in weights)
    save_file(weights, file, {"format": "pt"})
    assert same_weights(load_pipeline(tmp_path / "old", device="cpu"), original)
