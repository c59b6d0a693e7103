"""LoRAs, with the real peft: loaded in every form, fitted to the model, taken off again, and written into recipes."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from riffusion_lab import load_pipeline, lora, models, replay, text_to_audio
from riffusion_lab.hashing import weights_hash
from riffusion_lab.live import Session, replay_session
from riffusion_lab.lora import active_loras
from tiny import save_tiny_pipeline, tiny_pipeline

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
PROJECTIONS = ["q_proj", "out_proj", "fc1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "small")


def train(*, unet: bool = True, text_encoder: bool = False, seed: int = 0, alpha: int = 8) -> StableDiffusionPipeline:
    """A tiny pipeline with a LoRA in it, as after a training: not zero any more."""
    pipe = tiny_pipeline()
    torch.manual_seed(seed)
    if unet:
        pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=ATTENTION, init_lora_weights=False))
    if text_encoder:
        layers = LoraConfig(r=4, lora_alpha=alpha, target_modules=PROJECTIONS, init_lora_weights=False)
        pipe.text_encoder.add_adapter(layers)
    return pipe


def save(pipe: StableDiffusionPipeline, file: Path) -> Path:
    """Save the LoRA of a pipeline as diffusers' training scripts do."""
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    trained = {name: part for name, part in parts.items() if getattr(part, "peft_config", None)}
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(part) for name, part in trained.items()}
    settings = {
        f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in trained.items()
    }
    pipe.save_lora_weights(file.parent, weight_name=file.name, **layers, **settings)
    return file


@pytest.fixture(scope="module")
def funk(tmp_path_factory) -> Path:
    return save(train(), tmp_path_factory.mktemp("loras") / "funk.safetensors")


@pytest.fixture(scope="module")
def dub(tmp_path_factory) -> Path:
    return save(train(text_encoder=True, seed=1), tmp_path_factory.mktemp("loras") / "dub.safetensors")


def pixels(pipe: StableDiffusionPipeline) -> np.ndarray:
    return np.asarray(text_to_audio(pipe, "piano", seed=1, num_inference_steps=2, duration_s=0.64).image, int)


def scales(pipe: StableDiffusionPipeline, name: str) -> set[float]:
    layers = [layer for part in (pipe.unet, pipe.text_encoder) for layer in part.modules()]
    return {layer.scaling[name] for layer in layers if name in getattr(layer, "scaling", {})}


@pytest.mark.parametrize("parts", [{"unet": True}, {"text_encoder": True, "unet": False}, {"text_encoder": True}])
def test_a_lora_sounds_as_it_was_trained(folder, tmp_path, parts, news, capfd):
    trained = train(**parts)
    path = save(trained, tmp_path / "funk.safetensors")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load_pipeline(folder, device="cpu", lora=path)
    assert capfd.readouterr() == ("small with LoRA funk at 1 on cpu in float32\n", "") and news == []
    assert scales(pipe, "funk") == {2.0}  # alpha through rank
    models.model_settings(trained)
    trained.unet._riffusion_lab = pipe.unet._riffusion_lab
    assert np.array_equal(pixels(pipe), pixels(trained))
    assert not np.array_equal(pixels(pipe), pixels(load_pipeline(folder, device="cpu")))


def test_taken_off_the_base_is_the_same_to_the_bit(folder, funk, dub):
    plain, pipe = load_pipeline(folder, device="cpu"), load_pipeline(folder, device="cpu", lora={funk: 0.7, dub: -1})
    with_loras = pixels(pipe)
    pipe.unload_lora_weights()
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(plain, part).state_dict(), getattr(pipe, part).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert weights_hash(pipe) == weights_hash(plain) and active_loras(pipe) == []
    assert np.array_equal(pixels(pipe), pixels(plain)) and not np.array_equal(with_loras, pixels(plain))
    assert "loras" not in text_to_audio(pipe, "piano", num_inference_steps=1).recipe


# Several, with weights


def test_several_with_weights(folder, funk, dub, capfd):
    pipe = load_pipeline(folder, device="cpu", lora={str(funk): 0.5, dub: -0.25})
    assert capfd.readouterr().out == "small with LoRA funk at 0.5 with LoRA dub at -0.25 on cpu in float32\n"
    assert pipe.get_active_adapters() == ["funk", "dub"]
    assert scales(pipe, "funk") == {2 * 0.5} and scales(pipe, "dub") == {2 * -0.25}
    found = {each["name"]: each["weight"] for each in active_loras(pipe)}
    assert found == {"funk": 0.5, "dub": -0.25}


def test_weight_zero_is_the_base(folder, funk):
    assert np.array_equal(
        pixels(load_pipeline(folder, device="cpu", lora={funk: 0})), pixels(load_pipeline(folder, device="cpu"))
    )


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "much", True, None])
def test_a_weight_that_is_no_number(folder, funk, weight, monkeypatch):
    monkeypatch.setattr(models, "_read", lambda *_: pytest.fail("weights must be checked first"))
    with pytest.raises((TypeError, ValueError), match=r"the weight of the LoRA '.*funk.safetensors' must be"):
        load_pipeline(folder, lora={funk: weight})


@pytest.mark.parametrize("given", [3, ["a.safetensors"], {3: 1.0}])
def test_what_is_no_name_is_refused(folder, given):
    with pytest.raises(TypeError, match="lora must be a file, a folder or a name, or a dict of these and weights"):
        load_pipeline(folder, lora=given)


def test_the_same_lora_twice(folder, funk):
    other_spelling = funk.parent / ".." / funk.parent.name / funk.name
    with pytest.raises(ValueError, match="the LoRA 'funk.safetensors' is listed twice: pass it once"):
        load_pipeline(folder, lora={funk: 1, other_spelling: 0.5})


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/funk.safetensors", "b/funk.safetensors"], ["funk", "funk_2"]),
        (["slow funk v1.5.safetensors"], ["slow_funk_v1_5"]),
        (["keys.safetensors"], ["keys_1"]),  # a method of torch's, too
        (["lora.safetensors", "l.safetensors"], ["lora_1", "l_1"]),  # in peft's own names
        (["funk/pytorch_lora_weights.safetensors"], ["funk"]),
        (["ファンク.safetensors"], ["ファンク"]),
    ],
)
def test_names_come_from_files(folder, funk, tmp_path, files, names, news):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(funk, tmp_path / file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load_pipeline(folder, device="cpu", lora={tmp_path / file: 0.5 for file in files})
    assert pipe.get_active_adapters() == names and news == []
    assert all(scales(pipe, name) == {1.0} for name in names)


# Where it is, and in which form


def test_a_folder_with_one_file(folder, funk, tmp_path):
    (tmp_path / "readme.md").touch()
    with pytest.raises(OSError, match=f"there is no LoRA in '{tmp_path.name}'"):
        load_pipeline(folder, lora=tmp_path)
    shutil.copy(funk, tmp_path)
    assert load_pipeline(folder, device="cpu", lora=tmp_path).get_active_adapters() == ["funk"]
    shutil.copy(funk, tmp_path / "more.safetensors")
    with pytest.raises(OSError, match="there are 2 files in .*, funk.safetensors, more.safetensors: pass one of them"):
        load_pipeline(folder, lora=tmp_path)
    shutil.copy(funk, tmp_path / "pytorch_lora_weights.safetensors")  # the one that diffusers writes
    name = re.sub(r"\W", "_", tmp_path.name)
    assert load_pipeline(folder, device="cpu", lora=tmp_path).get_active_adapters() == [name]


def test_missing_lora(folder, monkeypatch):
    monkeypatch.setattr(models, "_read", lambda *_: pytest.fail("the LoRA must be looked for first"))
    for name in ("nowhere.safetensors", "loras/nowhere.safetensors", ""):
        with pytest.raises(OSError, match=f"there is no LoRA '{name}'"):
            load_pipeline(folder, lora=name)


def test_without_peft(folder, funk, monkeypatch):
    monkeypatch.setattr(lora, "is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="pip install peft"):
        load_pipeline(folder, lora=funk)


def test_a_lora_on_the_hub(folder, funk, tmp_path, monkeypatch):
    asked = []
    blob = shutil.copy(funk, tmp_path / "0123abc")  # in the Hub's cache files are links to such ones

    def download(name, file, *, token):
        asked.append((name, file, token))
        link = tmp_path / file
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(models, "_is_online", lambda _: True)
    monkeypatch.setattr(
        models, "list_repo_files", lambda *_, **__: ["README.md", "funk.safetensors", "old/a.safetensors"]
    )
    monkeypatch.setattr(models, "hf_hub_download", download)
    pipe = load_pipeline(folder, device="cpu", lora="someone/funk-v1.5")
    assert asked == [("someone/funk-v1.5", "funk.safetensors", False)] and pipe.get_active_adapters() == ["funk"]


def test_a_lora_of_the_hub_without_network(folder, funk, monkeypatch):
    monkeypatch.setattr(models, "_is_online", lambda _: False)
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(funk.parent))
    assert load_pipeline(folder, device="cpu", lora="someone/funk").get_active_adapters() == ["funk"]

    def absent(*_args, **_options):
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(models, "snapshot_download", absent)
    with pytest.raises(OSError, match=r"cannot find the LoRA 'someone/funk' \(.*are you online\?\): not in the cache"):
        load_pipeline(folder, lora="someone/funk")


def in_kohyas_form(path: Path) -> None:
    """As sd-scripts writes a LoRA, and so most of those that are on offer."""
    weights = {}
    for name, weight in load_file(path).items():
        part, _, layer = name.partition(".")
        layer, side, _ = layer.rsplit(".", 2)
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        start = prefix + layer.replace(".", "_")
        weights[f"{start}.lora_{'down' if side == 'lora_A' else 'up'}.weight"] = weight
        weights[f"{start}.alpha"] = torch.tensor(8.0)
    save_file(weights, path)


@pytest.mark.parametrize("layer", ["attn1_to_q", "attn2_to_out_0", "ff_net_0_proj", "self_attn_k_proj", "mlp_fc1"])
def test_each_layer_has_its_own_alpha(folder, tmp_path, layer):
    """In kohya's form; here one layer has an alpha twice as large as the others."""
    weights = kohya_weights(layer_alpha={layer: 8.0}, alpha=4.0)
    path = tmp_path / "kohya.safetensors"
    save_file(weights, path)
    loud = load_pipeline(folder, device="cpu", lora=path)
    doubled = [name for name in weights if f"{layer}.lora_up" in name]
    assert doubled
    even = weights | {name.replace("lora_up.weight", "alpha"): torch.tensor(4.0) for name in doubled}
    save_file(even | {name: 2 * weights[name] for name in doubled}, path)
    same = load_pipeline(folder, device="cpu", lora=path)
    save_file(even, path)
    plain = load_pipeline(folder, device="cpu", lora=path)
    hashes = [active_loras(pipe)[0]["sha256"] for pipe in (loud, same, plain)]
    assert hashes[0] == hashes[1] != hashes[2]


def kohya_weights(layer_alpha: dict[str, float], alpha: float) -> dict[str, torch.Tensor]:
    """Matrices for some layers of both parts of a tiny pipeline, as sd-scripts names them."""
    pipe, weights = tiny_pipeline(), {}
    random = torch.Generator().manual_seed(0)
    ends = ("to_q", "to_out.0", "net.0.proj", "q_proj", "k_proj", "out_proj", "fc1")
    for prefix, part in (("lora_unet_", pipe.unet), ("lora_te_text_model_", pipe.text_encoder)):
        for name, layer in part.named_modules():
            if name.endswith(ends):
                start = prefix + name.replace(".", "_")
                weights[f"{start}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=random)
                weights[f"{start}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=random)
                own = [value for end, value in layer_alpha.items() if start.endswith(end)]
                weights[f"{start}.alpha"] = torch.tensor(own[0] if own else alpha)
    return weights


def in_pefts_form(path: Path) -> None:
    """As peft's ``save_pretrained`` writes it: the configuration stands beside it."""
    weights = load_file(path)
    save_file({"base_model.model." + name.partition(".")[2]: weight for name, weight in weights.items()}, path)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ATTENTION + PROJECTIONS}
    path.with_name("adapter_config.json").write_text(json.dumps(settings))


def in_an_older_form(path: Path) -> None:
    """As diffusers wrote it before there were parts: attention processors of the U-Net, alpha as the rank."""
    weights = {}
    for name, weight in load_file(path).items():
        layer, projection, side = re.fullmatch(r"unet\.(.*)\.to_(q|k|v|out)(?:\.0)?\.lora_(A|B)\.weight", name).groups()
        direction = "down" if side == "A" else "up"
        factor = 2 if side == "B" else 1  # what alpha would say
        weights[f"{layer}.processor.to_{projection}_lora.{direction}.weight"] = weight * factor
    save_file(weights, path)


def as_pickle(path: Path) -> None:
    weights = {name: weight * (2 if "lora_B" in name else 1) for name, weight in load_file(path).items()}
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("name", "rewrite", "text_encoder"),
    [
        ("funk.safetensors", in_kohyas_form, True),
        ("adapter_model.safetensors", in_pefts_form, True),
        ("funk.safetensors", in_an_older_form, False),
        ("funk.bin", as_pickle, True),
    ],
)
def test_every_form_is_the_same_lora(folder, tmp_path, name, rewrite, text_encoder, news):
    path = save(train(text_encoder=text_encoder), tmp_path / "plain.safetensors")
    expected = pixels(load_pipeline(folder, device="cpu", lora=path))
    rewrite(path)
    path = path.rename(tmp_path / name)
    pipe = load_pipeline(folder, device="cpu", lora=path)
    assert news == []
    # only the scale is multiplied at another place
    assert np.abs(pixels(pipe) - expected).max() <= 1


# What does not fit


def changed(path: Path, to: Path, change) -> Path:
    save_file({name: weight.contiguous() for name, weight in change(load_file(path)).items()}, to)
    return to


def wider(weights):
    return {n: torch.zeros(4, 320) if "lora_A" in n else torch.zeros(320, 4) for n in weights}


def renamed(weights, old, new):
    return {name.replace(old, new): weight for name, weight in weights.items()}


def half_of(weights):
    return {name: weight for name, weight in weights.items() if "lora_A" in name}


def one_elsewhere(weights):
    return renamed(weights, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.9.to_q")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wider, "its layer .* has 320 inputs and 320 outputs, the model's .*: it was made for another base model"),
        (
            lambda w: renamed(w, "unet.", "unet.transformer."),
            r"the unet lacks all of its \d+ layers, such as transformer",
        ),
        (one_elsewhere, r"the unet lacks 1 of its \d+ layers, such as mid_block.attentions.9.to_q"),
        (lambda w: renamed(w, "unet.", "text_encoder_2."), "this model has no place for .* such as text_encoder_2"),
        (lambda w: renamed(w, "unet.", "transformer."), "this model has no place for .* such as transformer"),
        (half_of, "it is incomplete: it lacks .*lora_B.weight"),
        (lambda w: renamed(w, "lora_A.weight", "lokr_w1"), "it is a LoKr, LoHa or DoRA"),
        (lambda _: {"model.diffusion_model.out.2.bias": torch.zeros(4)}, "it is not a LoRA; if it is a whole model"),
    ],
)
def test_a_lora_for_another_model_is_refused_in_one_line(folder, funk, tmp_path, change, said):
    path = changed(funk, tmp_path / "other.safetensors", change)
    with pytest.raises(OSError, match=f"cannot load the LoRA 'other.safetensors': {said}") as refusal:
        load_pipeline(folder, device="cpu", lora=path)
    assert len(str(refusal.value).splitlines()) == 1


def test_pefts_form_without_its_configuration(folder, funk, tmp_path):
    path = Path(shutil.copy(funk, tmp_path / "funk.safetensors"))
    in_pefts_form(path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(OSError, match="but adapter_config.json, which contains its scale, is not in the same folder"):
        load_pipeline(folder, device="cpu", lora=path)


def test_torn_file(folder, tmp_path):
    (tmp_path / "funk.safetensors").write_bytes(b"nothing")
    with pytest.raises(OSError, match="cannot load the LoRA 'funk.safetensors': funk.safetensors is truncated"):
        load_pipeline(folder, device="cpu", lora=tmp_path / "funk.safetensors")


# Recipes


@pytest.fixture(scope="module")
def funky(folder, funk) -> StableDiffusionPipeline:
    return load_pipeline(folder, device="cpu", lora={funk: 0.7})


def test_recipes_hold_which_and_how_strong(funky, funk):
    recipe = text_to_audio(funky, "piano", num_inference_steps=1).recipe
    (entry,) = recipe["loras"]
    assert (entry["name"], entry["weight"]) == ("funk", 0.7) and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
    assert str(funk.parent) not in json.dumps(recipe)


def test_the_hash_is_of_the_matrices_and_their_scale(folder, funk, tmp_path):
    def entry(path):
        (found,) = active_loras(load_pipeline(folder, device="cpu", lora={path: 0.3}))
        return found

    again = shutil.copy(funk, tmp_path / "again.safetensors")
    assert entry(again) == {**entry(funk), "name": "again"}
    other_scale = save(train(alpha=4), tmp_path / "scale.safetensors")
    other_seed = save(train(seed=2), tmp_path / "seed.safetensors")
    assert len({entry(path)["sha256"] for path in (funk, other_scale, other_seed)}) == 3


def test_layers_with_different_weights(folder, dub):
    pipe = load_pipeline(folder, device="cpu", lora=dub)
    pipe.set_adapters("dub", {"unet": 0.5, "text_encoder": 1.0})
    (entry,) = active_loras(pipe)
    assert set(entry["weight"].values()) == {0.5, 1.0}
    assert {w for name, w in entry["weight"].items() if name.startswith("unet.")} == {0.5}
    pipe.disable_lora()
    assert active_loras(pipe) == []


def replayed(clip, pipe):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = replay(clip, pipe)
    return np.array_equal(np.asarray(clip.image), np.asarray(again.image)), [str(each.message) for each in said]


@pytest.mark.slow
def test_replay_says_what_differs(folder, funky):
    clip = text_to_audio(funky, "piano", num_inference_steps=2)
    assert replayed(clip, funky) == (True, [])
    funky.set_adapters("funk", 0.2)
    same, (said,) = replayed(clip, funky)
    funky.set_adapters("funk", 0.7)
    assert not same
    assert said == (
        "the clip was made with the LoRA funk at 0.7, and the pipeline has the LoRA funk at 0.2: other weights, it "
        "will differ (pipe.set_adapters(['funk'], [0.7]) makes it the same)"
    )
    assert replayed(clip, funky) == (True, [])
    same, said = replayed(clip, load_pipeline(folder, device="cpu"))
    assert not same
    assert any("made with the LoRA funk at 0.7, and the pipeline has no LoRA" in text for text in said)
    plain = text_to_audio(load_pipeline(folder, device="cpu"), "piano", num_inference_steps=2)
    assert any("made with no LoRA, and the pipeline has the LoRA funk at 0.7" in s for s in replayed(plain, funky)[1])


def test_a_lora_of_another_name_is_the_same(folder, funky, funk, tmp_path):
    clip = text_to_audio(funky, "piano", num_inference_steps=2)
    renamed = shutil.copy(funk, tmp_path / "boogie.safetensors")
    assert replayed(clip, load_pipeline(folder, device="cpu", lora={renamed: 0.7})) == (True, [])
    same, (said,) = replayed(clip, load_pipeline(folder, device="cpu", lora={renamed: 0.1}))
    assert not same and "set_adapters(['boogie'], [0.7])" in said


def test_a_lora_that_is_switched_off_is_none(folder, funky):
    plain_pipe = load_pipeline(folder, device="cpu")
    plain = text_to_audio(plain_pipe, "piano", num_inference_steps=2)
    with_lora = weights_hash(funky)
    funky.disable_lora()
    try:
        assert weights_hash(funky) == weights_hash(plain_pipe) != with_lora
        assert replayed(plain, funky) == (True, [])
    finally:
        funky.enable_lora()
    assert weights_hash(funky) == with_lora


def test_replay_without_a_pipe_asks_for_the_lora(funky):
    clip = text_to_audio(funky, "piano", num_inference_steps=1)
    with pytest.raises(
        ValueError, match=r"made with the LoRA funk at 0.7, which the recipe does not hold: call replay"
    ):
        replay(clip)


@pytest.mark.parametrize("loras", [3, [3], [{"name": "funk"}], {"funk": 1}])
def test_a_recipe_whose_loras_cannot_be_understood(funky, loras):
    recipe = text_to_audio(funky, "piano", num_inference_steps=1).recipe
    with pytest.raises(ValueError, match="the recipe's loras cannot be understood"):
        replay({**recipe, "loras": loras}, funky)


def test_a_sessions_recipe_holds_them_too(folder, funk):
    pipe = load_pipeline(folder, device="cpu", lora={funk: 0.7})
    recipe = Session(pipe, "piano", num_inference_steps=1).recipe
    assert recipe["loras"] == active_loras(pipe)
    replay_session(recipe, pipe)
    pipe.set_adapters("funk", 0.1)
    with pytest.warns(UserWarning, match="played with the LoRA funk at 0.7, and the pipeline has the LoRA funk at 0.1"):
        replay_session(recipe, pipe)
