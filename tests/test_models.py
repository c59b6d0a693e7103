"""Loading models: what is said, what is refused, and that the pipeline is diffusers' own."""

import copy
import json
import os
import pickle
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from riffusion_lab import models
from riffusion_lab.models import load_pipeline, model_name, model_settings, vocabulary
from tiny import SETTINGS, save_tiny_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def own_folder(folder, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "small"))


def test_loads_a_stock_pipeline_and_says_one_portable_line(folder, capfd):
    pipe = load_pipeline(folder, device="cpu")
    out, err = capfd.readouterr()
    assert type(pipe) is StableDiffusionPipeline
    assert (out, err) == ("small on cpu in float32\n", "")
    assert pipe.safety_checker is None and pipe.feature_extractor is None
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert not any(part.training for part in (pipe.unet, pipe.vae, pipe.text_encoder))


@pytest.mark.slow
def test_a_fresh_interpreter_prints_nothing_to_stderr(folder):
    """Importing diffusers' pipelines is when the libraries talk; that needs a new process to see."""
    imports = "from riffusion_lab.training.evaluation import clip_distance; from riffusion_lab import load_pipeline"
    code = f"{imports}; load_pipeline({str(folder)!r}, device='cpu')"
    root = Path(models.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert (result.stdout, result.stderr) == ("small on cpu in float32\n", "")


def test_dtype_is_set_for_every_part(folder):
    pipe = load_pipeline(folder, device="cpu", dtype="bfloat16")
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}


def test_progress_bars_are_left_as_they_were(folder):
    from diffusers.utils import logging

    assert logging.is_progress_bar_enabled()
    load_pipeline(folder, device="cpu")
    assert logging.is_progress_bar_enabled()


def test_riffling_is_the_default_and_takes_the_cpu_on_a_mac(folder, monkeypatch, capsys):
    monkeypatch.setattr(models, "WEIGHTS", folder.parent)
    shutil.copytree(folder, folder.parent / "riffling")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipe = load_pipeline()
    assert capsys.readouterr().out == "riffling on cpu in float32\n" and pipe.device.type == "cpu"
    assert models._device(None, prefer_cpu=False).type == "mps"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_fastest_device_first(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    device = models._device(None, prefer_cpu=False)
    assert device.type == expected
    assert models._dtype(None, device) == (torch.float16 if expected == "cuda" else torch.float32)


def test_settings_come_from_the_models_own_file(folder, own_folder):
    pipe = load_pipeline(folder, device="cpu")
    assert vocabulary(pipe) == SETTINGS["vocabulary"]
    assert model_settings(pipe).tempi_bpm == tuple(SETTINGS["tempi_bpm"]) and model_settings(pipe).loop is True
    (own_folder / "riffusion_lab.json").unlink()
    plain = load_pipeline(own_folder, device="cpu")
    assert vocabulary(plain) == []
    assert model_settings(plain) == models.ModelSettings(50, 7.0, False, (), ())  # those of Riffusion v1


def read_by_diffusers(folder) -> StableDiffusionPipeline:
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline.from_pretrained(folder, **without)


def test_a_hub_models_settings_are_read_from_the_cache(folder, monkeypatch):
    pipe = read_by_diffusers(folder)
    pipe.register_to_config(_name_or_path="someone/something")
    asked = []
    monkeypatch.setattr(
        models, "try_to_load_from_cache", lambda *args: asked.append(args) or str(folder / "riffusion_lab.json")
    )
    assert vocabulary(pipe) == SETTINGS["vocabulary"] and asked == [("someone/something", "riffusion_lab.json")]
    assert model_name(pipe) == "someone/something"


def test_torn_settings_name_the_model(own_folder):
    (own_folder / "riffusion_lab.json").write_text('{"loop": tr')
    with pytest.raises(OSError, match="riffusion_lab.json of the model 'small' is not a JSON"):
        load_pipeline(own_folder, device="cpu")


def without_name(pipe) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: read_by_diffusers(folder),
        lambda folder: read_by_diffusers(str(folder)),
        lambda folder: without_name(read_by_diffusers(folder)),
        lambda folder: without_name(load_pipeline(folder, device="cpu")),
        lambda folder: StableDiffusionPipeline.from_pipe(pipe := load_pipeline(folder, device="cpu"), vae=pipe.vae),
        lambda folder: copy.copy(load_pipeline(folder, device="cpu")),
        lambda folder: copy.deepcopy(load_pipeline(folder, device="cpu")),
    ],
    ids=["Path", "str", "components", "components of ours", "from_pipe", "copy", "deepcopy"],
)
def test_however_a_pipeline_is_made_it_keeps_its_models_settings(folder, make):
    pipe = make(folder)
    assert model_settings(pipe).vocabulary == tuple(SETTINGS["vocabulary"]) and model_name(pipe) == "small"


def test_parts_from_the_hubs_cache_have_its_name(folder, tmp_path):
    snapshot = tmp_path / "models--someone--some--thing" / "snapshots" / "0123abc"
    shutil.copytree(folder, snapshot)
    assert model_name(without_name(read_by_diffusers(snapshot))) == "someone/some--thing"


def test_a_file_that_changes_later_changes_nothing(own_folder):
    loaded, read = load_pipeline(own_folder, device="cpu"), read_by_diffusers(own_folder)
    assert model_settings(read).num_inference_steps == 3
    (own_folder / "riffusion_lab.json").write_text(json.dumps({"num_inference_steps": 7}))
    assert [model_settings(pipe).num_inference_steps for pipe in (loaded, read, without_name(loaded))] == [3, 3, 3]
    assert model_settings(load_pipeline(own_folder, device="cpu")).num_inference_steps == 7
    shutil.rmtree(own_folder)
    assert vocabulary(loaded) == SETTINGS["vocabulary"]


def test_a_compiled_unet_keeps_them_too(folder):
    pipe = load_pipeline(folder, device="cpu")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.register_to_config(_name_or_path=None)
    assert model_settings(pipe).loop is True and model_name(pipe) == "small"


def test_model_name_holds_no_path(folder):
    assert model_name(load_pipeline(folder, device="cpu")) == "small"
    assert model_name(tiny_pipeline()) == "unnamed"


def as_pickles(folder: Path) -> None:
    """Turn safetensors into the pickles of older models."""
    for path in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()


def test_pickles_load_too_and_are_the_same_weights(folder, own_folder, capfd):
    as_pickles(own_folder)
    assert not list(own_folder.rglob("*.safetensors"))
    capfd.readouterr()
    pickled, plain = load_pipeline(own_folder, device="cpu"), load_pipeline(folder, device="cpu")
    assert capfd.readouterr().err == ""
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(plain, part).state_dict()
        for name, tensor in getattr(pickled, part).state_dict().items():
            assert torch.equal(tensor, expected[name]), name


class Bomb:
    """A pickle that runs code when it is read by plain pickle."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])  # read by diffusers and by transformers
def test_pickles_never_run_code(own_folder, tmp_path, part):
    as_pickles(own_folder)
    witness = tmp_path / "bomb went off"
    torch.save({"weight": Bomb(witness)}, next((own_folder / part).glob("*.bin")))
    with pytest.raises(OSError, match="cannot load the model 'small'"):
        load_pipeline(own_folder, device="cpu")
    assert not witness.exists()
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()  # the bomb was a live one


def test_safetensors_win_over_pickles(own_folder, tmp_path):
    torch.save({"weight": Bomb(tmp_path / "bomb")}, own_folder / "unet" / "diffusion_pytorch_model.bin")
    load_pipeline(own_folder, device="cpu")
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize("model", ["nosuchmodel", "", "a/b/c", "/nowhere/at/all"])
def test_unknown_model(model):
    with pytest.raises(OSError, match=r"there is no model .*riffusion/riffusion-model-v1"):
        load_pipeline(model)


def test_model_of_another_type():
    with pytest.raises(TypeError, match="model must be a name or a folder, not 3"):
        load_pipeline(3)


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(OSError, match=f"cannot load the model '{tmp_path.name}'"):
        load_pipeline(tmp_path)


def test_folder_of_another_pipeline(own_folder):
    index = own_folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))
    with pytest.raises(OSError, match="it is a FluxPipeline, not a StableDiffusionPipeline"):
        load_pipeline(own_folder)


def remove_unet(folder):
    shutil.rmtree(folder / "unet")


def tear_unet(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tear_index(folder):
    (folder / "model_index.json").write_text('{"_class_name": ')


def remove_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize("spoil", [remove_unet, tear_unet, tear_index, remove_tokenizer])
def test_spoilt_folder(own_folder, spoil):
    spoil(own_folder)
    with pytest.raises(OSError, match="cannot load the model 'small'"):
        load_pipeline(own_folder, device="cpu")


def test_hub_name_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"cannot load the model 'someone/something' \(.*are you online\?\)"):
        load_pipeline("someone/something")


def test_hub_name_without_a_network(monkeypatch, tmp_path):
    """What the Hub's library raises then is an error of httpx or of httpx2, as its version wants."""

    def refuse(*_, **__):
        raise socket.gaierror("this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"cannot load the model 'someone/something' \(.*are you online\?\)"):
        load_pipeline("someone/something")


def test_the_hub_is_asked_without_a_token(monkeypatch):
    asked = {}

    def no(name, **options):
        asked.update(options, name=name)
        raise RuntimeError("the Hub says no")

    monkeypatch.setattr(models, "model_info", no)
    with pytest.raises(OSError, match="the Hub says no"):
        load_pipeline("someone/something")
    assert asked["name"] == "someone/something" and asked["token"] is False


@pytest.mark.parametrize("device", ["tpu9", "cuda", 3.5])
def test_bad_device(folder, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device {device!r} is"):
        load_pipeline(folder, device=device)


@pytest.mark.parametrize("dtype", ["float17", torch.int8, "nn", 16])
def test_bad_dtype(folder, dtype):
    with pytest.raises(ValueError, match="dtype must be 'float16', 'bfloat16' or 'float32'"):
        load_pipeline(folder, device="cpu", dtype=dtype)


# Prints how many of 200 MB the process keeps when tensors of 20 MB each were made and dropped again.
KEEP_OR_GIVE_BACK = """
from pathlib import Path
import torch
from riffusion_lab.models import keep_freed_memory

def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory()
before = used()
tensors = [torch.ones(5 * 2**20) for _ in range(10)]
del tensors
print((used() - before) // 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize(("value", "keeps"), [(None, True), ("1", True), ("0", False)])
def test_freed_memory_is_kept_unless_a_variable_says_no(value, keeps):
    environment = {name: text for name, text in os.environ.items() if name != models.KEEP_MEMORY_VARIABLE}
    if value is not None:
        environment[models.KEEP_MEMORY_VARIABLE] = value
    root = Path(models.__file__).parents[1]
    command = [sys.executable, "-c", KEEP_OR_GIVE_BACK]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    kept_mb = int(run.stdout)
    assert kept_mb > 150 if keeps else kept_mb < 50
