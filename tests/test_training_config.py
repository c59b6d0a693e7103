"""Settings and the command line: what is wrong is named before anything is made."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from memory_dataset import composed
from riffusion_lab import models
from riffusion_lab.training import __main__ as command
from riffusion_lab.training import dataset, denoiser, evaluation
from riffusion_lab.training.config import (
    AutoencoderConfig,
    ClassifierConfig,
    DecoderConfig,
    LoopConfig,
    TextEncoderConfig,
    TrainConfig,
)

CONFIGS = (LoopConfig, AutoencoderConfig, DecoderConfig, TextEncoderConfig, ClassifierConfig, TrainConfig)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_settings_survive_json(tmp_path, config_class):
    config = config_class(steps=17, minutes=2.5)
    config.to_json(tmp_path / "config.json")
    assert config_class.from_json(tmp_path / "config.json") == config
    assert config_class.from_dict({}) == config_class()


def test_lists_of_json_are_tuples_and_missing_settings_have_their_defaults(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"widths": [16, 32, 48, 48], "favoured": ["jazz"]}')
    config = TrainConfig.from_json(file)
    assert config == TrainConfig(widths=(16, 32, 48, 48), favoured=("jazz",))


def test_settings_are_changed_by_name_and_value():
    config = TrainConfig().override(
        ["steps=7", "learning_rate=1e-3", "minutes=null", "precision=bf16", "widths=[16,32,48,48]", "favoured=[]"]
    )
    expected = TrainConfig(steps=7, learning_rate=1e-3, precision="bf16", widths=(16, 32, 48, 48))
    assert config == expected
    assert TrainConfig(minutes=3.0).override(["minutes=null"]) == TrainConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 7}, "there is no setting step; TrainConfig has steps, minutes, .*caption_dropout"),
        ({"steps": 7.5}, "steps must be int, not 7.5"),
        ({"steps": True}, "steps must be int, not True"),
        ({"steps": -1}, "steps must be at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"learning_rate": "fast"}, "learning_rate must be float, not 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, not nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, not inf"),
        ({"minutes": float("inf")}, "minutes must be finite, not inf"),
        ({"minutes": 10**400}, "minutes must be finite, not 1000"),
        ({"weight_decay": float("-inf")}, "weight_decay must be finite, not -inf"),
        ({"kind_weights": {"solo": float("inf")}}, "kind_weights must be finite, not {'solo': inf}"),
        ({"seed": 2**63}, "seed must be at most 9223372036854775807, not 9223372036854775808"),
        ({"minutes": 0}, "minutes must be positive, not 0"),
        ({"precision": "int8"}, "precision must be one of fastest, fp32, bf16, fp16, not 'int8'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, not 'tpu'"),
        ({"caption_dropout": 1.5}, r"caption_dropout is a share and must be in \[0, 1\], not 1.5"),
        ({"widths": [16, 32, 48]}, "widths must be four multiples of 16, the last two multiples of 48"),
        ({"widths": [16, 32, 64, 64]}, "widths must be four multiples of 16, the last two multiples of 48"),
        ({"timestep_power": 0}, "timestep_power must be positive"),
        ({"kind_weights": {"solo": -1.0}}, "kind_weights must not be negative: {'solo': -1.0}"),
        ({"max_grad_norm": 0}, "max_grad_norm must be positive"),
        ({"favoured": "jazz"}, "favoured must be .*tuple.*, not 'jazz'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(settings)


def test_no_setting_of_any_stage_may_be_infinite():
    config_classes = (*CONFIGS, command.CutConfig, command.EvaluateConfig)
    n_settings = 0
    for config_class in config_classes:
        for each in dataclasses.fields(config_class):
            if isinstance(each.default, float):
                n_settings += 1
                with pytest.raises(ValueError, match=f"{each.name} must be finite, not inf"):
                    config_class().override([f"{each.name}=Infinity"])
    assert n_settings > 50


def test_a_wrong_crop_is_named():
    for config_class in (AutoencoderConfig, DecoderConfig):
        with pytest.raises(ValueError, match=r"crop must be a multiple of 8 in \[64, 512\], not 100"):
            config_class(crop=100)


def test_a_file_that_holds_no_settings_is_named(tmp_path):
    file = tmp_path / "config.json"
    for content in ("[1, 2]", "{'steps': 1}"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"config.json: "):
            LoopConfig.from_json(file)


# Command line


def run(*arguments: str) -> None:
    command.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["denoiser", "--set", "stepps=3"], "ValueError: there is no setting stepps; TrainConfig has steps"),
        (["autoencoder", "--set", "caption_dropout=0"], "there is no setting caption_dropout; AutoencoderConfig has"),
        (["data", "--set", "seed=-1"], "seed must be at least 0, not -1"),
        (["data", "--from", "x", "--set", "on_beat=no"], "on_beat must be bool, not 'no'"),
        (["data", "--set", "hop_s=2"], "there is no setting hop_s; ComposeConfig has seed"),
        (["denoiser", "--set", "steps"], "'steps' does not set anything: write name=value"),
        (["denoiser", "--config", "nowhere.json"], "FileNotFoundError.*nowhere.json"),
        (["denoiser"], "FileNotFoundError: no training clips in .*training data"),
        (["export"], "the stage export needs --to FOLDER"),
        (["denoiser", "--to", "x"], "--to is not for the stage denoiser, but for export"),
        (["autoencoder", "--from", "x"], "--from is not for the stage autoencoder, but for data"),
        (["export", "--to", str(Path(dataset.__file__).parents[1] / "weights" / "riffling")], "within the installed"),
        (["export", "--to", "elsewhere"], "OSError: there is no model .*denoiser"),
        (["decoder"], "no training clips"),
        (["denoiser", "--start-from", "nowhere"], "no training clips"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    text = str(exit_.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_stage_can_be_listed(capsys):
    run("denoiser", "--list", "--set", "steps=5")
    assert json.loads(capsys.readouterr().out) == TrainConfig(steps=5).to_dict()


def test_the_decoder_needs_an_autoencoder(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.Dataset, "load", lambda _: composed())
    with pytest.raises(SystemExit, match="there is no autoencoder in .*run the stage autoencoder first"):
        run("decoder", "--folder", tmp_path)


def test_a_classifier_is_not_measured_where_no_clip_is_held_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset.Dataset, "load", lambda _: composed(n_held_out=0))
    run("classifier", "--folder", tmp_path, "--set", "steps=0", "--set", "sample_every=0")
    assert "classifier: not measured, since no clip is held out" in capsys.readouterr().out


def test_the_export_stage_replaces_a_model_only_when_asked(tmp_path, folder):
    run_folder = tmp_path / "data"
    shutil.copytree(folder, run_folder / "denoiser" / "model")
    (run_folder / "classifier").mkdir()
    (run_folder / "classifier" / "classifier.safetensors").write_bytes(b"the judge")
    to = tmp_path / "my-model"
    run("export", "--folder", run_folder, "--to", to)
    assert (to / "model_index.json").exists() and (to / "classifier.safetensors").read_bytes() == b"the judge"
    before = {file: file.stat().st_mtime_ns for file in to.rglob("*")}
    with pytest.raises(SystemExit, match=r"my-model holds a model: .* overwrite=true"):
        run("export", "--folder", run_folder, "--to", to)
    assert {file: file.stat().st_mtime_ns for file in to.rglob("*")} == before
    run("export", "--folder", run_folder, "--to", to, "--set", "overwrite=true")
    assert (to / "model_index.json").stat().st_mtime_ns != before[to / "model_index.json"]


def test_the_denoiser_stage_trains_with_the_settings_of_file_and_options(tmp_path, monkeypatch):
    passed = {}
    monkeypatch.setattr(dataset.Dataset, "load", lambda _: "clips")
    monkeypatch.setattr(denoiser, "train", lambda *positional, **options: passed.update(a=positional, o=options))
    (tmp_path / "settings.json").write_text('{"steps": 5, "seed": 3}')
    run("denoiser", "--folder", tmp_path, "--config", tmp_path / "settings.json", "--set", "steps=6")
    assert passed["a"] == ("clips", tmp_path / "denoiser", TrainConfig(steps=6, seed=3))
    assert passed["o"] == {"vae": None, "start_from": None}


def test_an_interrupt_and_a_diverging_run_end_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt("stopped and saved after step 3 of 9")

    def interrupted_by_python(*_, **__):
        raise KeyboardInterrupt

    def diverging(*_, **__):
        raise FloatingPointError("the loss is nan at step 3")

    monkeypatch.setattr(dataset.Dataset, "load", lambda _: "clips")
    monkeypatch.setattr(denoiser, "train", interrupted)
    with pytest.raises(SystemExit) as exit_:
        run("denoiser", "--folder", tmp_path)
    assert exit_.value.code == 130
    assert "stopped and saved after step 3" in capsys.readouterr().err
    monkeypatch.setattr(denoiser, "train", interrupted_by_python)
    with pytest.raises(SystemExit):
        run("denoiser", "--folder", tmp_path)
    assert "run the same command again to go on" in capsys.readouterr().err
    monkeypatch.setattr(denoiser, "train", diverging)
    with pytest.raises(SystemExit, match="FloatingPointError: the loss is nan at step 3"):
        run("denoiser", "--folder", tmp_path)


def test_a_killed_worker_ends_without_a_traceback(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise BrokenExecutor("a worker process was killed")

    monkeypatch.setattr(dataset.Dataset, "from_folder", killed)
    with pytest.raises(SystemExit, match="a worker process was killed"):
        run("data", "--from", tmp_path, "--folder", tmp_path / "to")


def test_help_needs_no_torch():
    code = "import sys; sys.argv[1:] = ['--help']; from riffusion_lab.training import __main__ as m\n"
    code += "try:\n    m.main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
    assert "resumes if it was interrupted" in output


def evaluate_with(settings: str, monkeypatch) -> dict:
    """What `python -m riffusion_lab.training evaluate --override SETTINGS` evaluates with."""
    asked = {}

    class Asked(Exception):
        pass

    def evaluate(pipe, _reference, **options):
        asked.update(options, scheduler=pipe.scheduler)
        raise Asked

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(dataset.Dataset, "load", lambda _: None)
    with pytest.raises(Asked):
        run("evaluate", "--model", "riffling", "--override", settings, "--set", "n_clips=96")
    return asked


def test_other_settings_can_be_evaluated(monkeypatch):
    asked = evaluate_with('{"guidance_scale": 1.3, "sigma_max": 80}', monkeypatch)
    assert asked["guidance_scale"] == 1.3 and asked["n_clips"] == 96
    assert type(asked["scheduler"]).__name__ == "UniPCMultistepScheduler"
    asked["scheduler"].set_timesteps(12)
    assert asked["scheduler"].sigmas[0] == pytest.approx(80)
    assert "num_inference_steps" not in asked


def test_a_model_is_evaluated_on_cuda_where_there_is_one(monkeypatch):
    devices = []

    def load(_model, *, device):
        devices.append(device)
        raise OSError("no model")

    monkeypatch.setattr(models, "load_pipeline", load)
    for has_cuda, setting in ((False, "auto"), (True, "auto"), (True, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_cuda=has_cuda: has_cuda)
        with pytest.raises(SystemExit, match="no model"):
            run("evaluate", "--model", "riffling", "--set", f"device={setting}")
    assert devices == ["cpu", "cuda", "cpu"]
    with pytest.raises(SystemExit, match="device must be one of auto, cpu, cuda, not 'tpu'"):
        run("evaluate", "--set", "device=tpu")


def test_an_interrupted_evaluate_stage_goes_on(tmp_path, folder, monkeypatch, capsys):
    """With the files of the stage itself: the same command takes the kept clips up."""
    settings = ("--set", "n_clips=2", "--set", "batch_size=1", "--override", '{"num_inference_steps": 1}')
    arguments = ("evaluate", "--folder", tmp_path, "--model", folder, "--to", tmp_path / "judged", *settings)
    generate, seeds = evaluation.text_to_audio, []

    def interrupted(pipe, prompts, *, seed, **options):
        seeds.extend(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return generate(pipe, prompts, seed=seed, **options)

    monkeypatch.setattr(evaluation, "text_to_audio", interrupted)
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "run the same command again to go on" in capsys.readouterr().err
    assert len(list((tmp_path / "judged" / "evaluation_clips").iterdir())) == 1
    run(*arguments)
    assert seeds == [0, 1, 1]
    assert {file.name for file in (tmp_path / "judged").iterdir()} == {"evaluation.html", "evaluation.json"}


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_processes_the_first_one_prints(tmp_path, monkeypatch, capsys, rank):
    def trained(*_, **__):
        print("riffling on cpu")
        warnings.warn("Grad strides do not match bucket view strides. This may …", stacklevel=1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt("stopped and saved after step 3 of 9")

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dataset.Dataset, "load", lambda _: "clips")
    monkeypatch.setattr(denoiser, "train", trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("denoiser", "--folder", tmp_path)
    printed = capsys.readouterr().out
    assert [text in printed for text in ("riffling on cpu", "the model is in")] == [rank == 0] * 2
    monkeypatch.setattr(denoiser, "train", interrupted)
    with pytest.raises(SystemExit):
        run("denoiser", "--folder", tmp_path)
    assert ("stopped and saved" in capsys.readouterr().err) == (rank == 0)
    with pytest.raises(SystemExit, match="the stage export runs in one process, not in 2: start it with python -m"):
        run("export", "--to", tmp_path / "model")


def test_another_solver_can_be_evaluated(monkeypatch):
    settings = {"scheduler": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "sigma_max": 60}
    scheduler = evaluate_with(json.dumps(settings), monkeypatch)["scheduler"]
    assert (type(scheduler).__name__, scheduler.config.algorithm_type) == (settings["scheduler"], "sde-dpmsolver++")
    scheduler.set_timesteps(12)
    assert scheduler.sigmas[0] == pytest.approx(60)  # it has no such argument, but reads it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"sigmamax": 80}', "UniPCMultistepScheduler has no setting sigmamax; it has .*sigma_max"),
        ('{"scheduler": "BestScheduler"}', "diffusers has no scheduler 'BestScheduler'"),
        ("sigma_max=80", "--override 'sigma_max=80' is not JSON"),
        ("80", "--override '80' is not a JSON object"),
    ],
)
def test_a_wrong_override_is_named(settings, message):
    with pytest.raises(SystemExit, match=message):
        run("evaluate", "--model", "riffling", "--override", settings)
