"""Distillation: paths of the teacher, the student's targets, schedulers and starts, and `distill` as a whole."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, UniPCMultistepScheduler

from riffusion_lab import audio_to_audio, load_pipeline, text_to_audio
from riffusion_lab.hashing import weights_hash
from riffusion_lab.latents import decode
from riffusion_lab.models import ModelSettings, keep_settings, model_settings
from riffusion_lab.sampling import CIRCULAR_SHARE
from riffusion_lab.training import distillation
from riffusion_lab.training.__main__ import main
from riffusion_lab.training.config import DistillConfig
from riffusion_lab.training.dataset import composed_captions
from riffusion_lab.training.exporting import export
from riffusion_lab.training.progress import read_metrics, read_snapshots
from tiny import tiny_pipeline

PROMPTS = ["a b", "c"]
KARRAS = {"use_karras_sigmas": True, "sigma_max": 40.0, "sigma_min": 0.05}
CONFIG = DistillConfig(
    steps=3, batch_size=4, n_paths=64, precision="fp32", device="cpu", sample_every=0, num_inference_steps=3
)


def tiny_teacher():
    """A random model with the settings of riffling, and six steps."""
    pipe = tiny_pipeline()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **KARRAS)
    pipe.set_progress_bar_config(disable=True)
    settings = ModelSettings(num_inference_steps=6, guidance_scale=1.5, steady_noise_gain=1.25, loop=True)
    keep_settings(pipe, "tiny", settings)
    return pipe


@pytest.fixture(scope="module")
def teacher():
    return tiny_teacher()


@pytest.fixture(scope="module")
def paths(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "paths"
    return distillation.cache_paths(teacher, distillation.path_prompts(CONFIG, PROMPTS), folder, seed=0)


@pytest.fixture(scope="module")
def whole(teacher, paths):
    """A run without a break, and its folder; the paths are there already."""
    folder = paths.files[0].parents[1]
    return distillation.distill(teacher, folder, CONFIG, prompts=PROMPTS), folder


@pytest.mark.parametrize("n_steps", [2, 3, 4, 6])
def test_the_students_steps_are_parts_of_rifflings(n_steps):
    riffling = load_pipeline(device="cpu")
    scheduler = distillation.few_step_scheduler(riffling, n_steps)
    scheduler.set_timesteps(n_steps)
    theirs = distillation.teacher_sigmas(riffling)[:: 12 // n_steps]
    torch.testing.assert_close(scheduler.sigmas, theirs, rtol=1e-4, atol=0)
    assert len(scheduler.timesteps) == n_steps
    unipc = copy.deepcopy(riffling.scheduler)
    unipc.set_timesteps(12)
    rounding = (scheduler.timesteps - unipc.timesteps[:: 12 // n_steps]).abs().max()
    assert rounding <= 0.5  # UniPC rounds its time steps
    assert float(scheduler.init_noise_sigma) == pytest.approx((40.0**2 + 1) ** 0.5)  # scaled down again: the noise


@pytest.mark.parametrize("n_steps", [1, 4, 5, 6, 12])
def test_steps_that_do_not_divide_the_teachers_are_refused(teacher, n_steps):
    with pytest.raises(ValueError, match=rf"divisor of the teacher's 6 steps \(2, 3\), not {n_steps}"):
        distillation.few_step_scheduler(teacher, n_steps)


def test_other_spacings_and_schedulers_are_refused(teacher):
    other = copy.copy(teacher)
    other.scheduler = UniPCMultistepScheduler.from_config(tiny_pipeline().scheduler.config)
    with pytest.raises(ValueError, match="are not spaced as EulerDiscreteScheduler's"):
        distillation.few_step_scheduler(other, 3)
    other.scheduler = DDIMScheduler.from_config(teacher.scheduler.config)
    with pytest.raises(ValueError, match="DDIMScheduler has no noise levels"):
        distillation.few_step_scheduler(other, 3)


@pytest.mark.slow
def test_a_step_of_the_scheduler_by_the_target_lands_where_the_path_does(teacher, paths):
    """From every point of a path, also from those between the student's steps; and from noise to the end in three."""
    scheduler = distillation.few_step_scheduler(teacher, 3)
    sigmas = distillation.teacher_sigmas(teacher)
    path = paths.latents(5, range(7))
    for step in range(6):
        end = (step // 2 + 1) * 2
        scheduler.set_timesteps(sigmas=[float(sigmas[step]), float(sigmas[end])])
        v = distillation.velocity_between(path[step], path[end], sigmas[step], sigmas[end])
        scaled = path[step] * (1 + sigmas[step] ** 2).sqrt()  # Euler's latents are x₀ + σ ε
        model_input = scheduler.scale_model_input(scaled, scheduler.timesteps[0])
        torch.testing.assert_close(model_input, path[step], rtol=1e-5, atol=1e-5)
        result = scheduler.step(v, scheduler.timesteps[0], scaled).prev_sample
        torch.testing.assert_close(result / (1 + sigmas[end] ** 2).sqrt(), path[end], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_path_is_what_the_teacher_generates(teacher, paths):
    generator = distillation.generators(0, "noise of the paths", 0)[1]
    clips = text_to_audio(teacher, paths.prompts[:8], generator=[generator] * 8, batch_size=8)
    for i in (0, 7):
        ours = decode(teacher, paths.latents(i, [6]), loop=True)
        difference = np.asarray(ours, dtype=float) - np.asarray(clips[i].image, dtype=float)
        assert np.abs(difference).max() <= 2  # paths are kept in half precision


@pytest.mark.slow
def test_two_thirds_of_the_paths_are_loops(paths):
    is_open = [paths.is_open(i) for i in range(64)]
    assert is_open[:24] == [False] * 16 + [True] * 8
    assert len(paths) == 64 and sum(is_open) == 16


@pytest.mark.slow
def test_only_missing_paths_are_computed_and_they_are_the_same(teacher, tmp_path, monkeypatch):
    prompts = ["a b"] * 16
    first = distillation.cache_paths(teacher, prompts, tmp_path, seed=3)
    before = [np.load(file) for file in first.files]
    first.files[1].unlink()
    computed = []
    path_of = distillation.teacher_path
    monkeypatch.setattr(
        distillation, "teacher_path", lambda *args, **options: computed.append(args[2]) or path_of(*args, **options)
    )
    again = distillation.cache_paths(teacher, prompts, tmp_path, seed=3)
    assert computed == [[3, 1]]
    assert all(np.array_equal(np.load(file), array) for file, array in zip(again.files, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name"),
    [({"prompts": ["c"] * 16}, "prompts"), ({"seed": 1}, "seed"), ({"teacher": tiny_pipeline(1)}, "teacher")],
)
def test_paths_of_something_else_are_refused_and_kept(teacher, tmp_path, change, name):
    arguments = {"teacher": teacher, "prompts": ["a b"] * 16, "folder": tmp_path, "seed": 0}
    files = distillation.cache_paths(**arguments).files
    before = [file.read_bytes() for file in files]
    if "teacher" in change:
        change["teacher"].scheduler = teacher.scheduler
        keep_settings(change["teacher"], "other", model_settings(teacher))
    with pytest.raises(ValueError, match=f"holds paths that differ in {name}"):
        distillation.cache_paths(**arguments | change)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_batches_are_all_early_or_late_loops_or_late_open_paths(teacher, paths):
    task = distillation.DistillationTask(teacher, paths, CONFIG)
    kinds = set()
    for step in range(60):
        batch = task.draw_batch(*distillation.generators(0, "test", step))
        steps = [int((task.timesteps - timestep).abs().argmin()) for timestep in batch["timestep"]]
        late = {task.is_late(each) for each in steps}
        assert len(late) == 1 and not (batch["is_circular"] and late == {False})
        kinds.add((late.pop(), batch["is_circular"]))
    assert kinds == {(False, False), (True, True), (True, False)}
    assert [task.is_late(step) for step in range(6)] == [False] * 4 + [True] * 2
    assert not set(task.loops) & set(task.open)
    assert max([*task.loops, *task.open]) < len(paths) - distillation.HELD_OUT


@pytest.mark.slow
def test_distillation_lowers_the_error_on_held_out_paths(teacher, paths):
    """Of a student whose last layer is zero, which predicts nothing; the tiny teacher itself follows its paths well."""
    mute = copy.copy(teacher)
    mute.unet = copy.deepcopy(teacher.unet)
    torch.nn.init.zeros_(mute.unet.conv_out.weight)
    torch.nn.init.zeros_(mute.unet.conv_out.bias)
    task = distillation.DistillationTask(mute, paths, CONFIG)
    before = task.held_out_errors()
    for group in task.optimizer.param_groups:
        group["lr"] = 3e-3
    for step in range(40):
        batch = task.draw_batch(*distillation.generators(0, "test", step))
        task.loss(task.network, batch)["loss"].backward()
        task.optimizer.step()
        task.optimizer.zero_grad()
    after = task.held_out_errors()
    middle = list(before)[2:5]  # forty steps are enough where v has most of its variance
    assert all(after[timestep] < 0.5 * before[timestep] for timestep in middle), (before, after)


@pytest.mark.slow
def test_distill_gives_a_model_of_one_pass_a_step(whole, monkeypatch):
    pipe, folder = whole
    settings = model_settings(pipe)
    assert (settings.num_inference_steps, settings.guidance_scale, settings.pag_applied_layers) == (3, 1.0, ())
    assert settings.steady_noise_gain == 1.25 and settings.loop and len(settings.start_sigmas) == 6
    batches = []
    forward = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet,
        "forward",
        lambda sample, *args, **options: batches.append(len(sample)) or forward(sample, *args, **options),
    )
    text_to_audio(pipe, "a b", seed=1)
    assert batches == [1, 1, 1]
    batches.clear()
    text_to_audio(pipe, "a b", negative_prompt="c", guidance_scale=2, seed=1)
    assert batches == [2, 2, 2]
    assert len(read_metrics(folder)) == 3
    about = json.loads((folder / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert about["_class_name"] == "EulerDiscreteScheduler"


@pytest.mark.slow
def test_broken_off_and_resumed_the_student_is_the_same(teacher, whole, tmp_path, monkeypatch):
    draw = distillation.DistillationTask.draw_batch
    n_drawn = 0

    def failing(self, rng, generator):
        nonlocal n_drawn
        n_drawn += 1
        if n_drawn == 3:
            raise MemoryError("broken off")
        return draw(self, rng, generator)

    config = CONFIG.override(["save_every_s=0"])
    shutil.copytree(whole[1] / "paths", tmp_path / "paths")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(distillation.DistillationTask, "draw_batch", failing)
        distillation.distill(teacher, tmp_path, config, prompts=PROMPTS)
    resumed = distillation.distill(teacher, tmp_path, config.override(["sample_every=3"]), prompts=PROMPTS)
    assert weights_hash(resumed) == weights_hash(whole[0])
    *_, snapshot = read_snapshots(tmp_path)
    assert len(snapshot["clips"]) == 4 and len(snapshot["noise_loss"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strength", "n_passes"), [(0.1, 0), (0.2, 1), (0.3, 1), (0.4, 1), (0.5, 2), (0.7, 2), (1.0, 3)]
)
def test_a_clip_is_noised_as_by_the_teacher_and_denoised_in_few_steps(whole, monkeypatch, strength, n_passes):
    """Six levels to start from; what is left of the student's own steps follows."""
    pipe = whole[0]
    timesteps = []
    forward = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet,
        "forward",
        lambda sample, t, *args, **options: timesteps.append(float(t)) or forward(sample, t, *args, **options),
    )
    clip = text_to_audio(pipe, "a b", seed=1)
    timesteps.clear()
    audio_to_audio(pipe, clip, "c", strength=strength, seed=2)
    assert len(timesteps) == n_passes
    if n_passes:
        scheduler = copy.deepcopy(pipe.scheduler)
        levels = distillation.timesteps_of(scheduler, torch.tensor([*model_settings(pipe).start_sigmas, 0.0]))
        scheduler.set_timesteps(3)
        n_taken = int(6 * strength + 1e-6)
        assert timesteps[0] == pytest.approx(float(levels[6 - n_taken]), abs=1e-2)
        own = scheduler.timesteps[3 - n_passes + 1 :].tolist()
        assert timesteps[1:] == pytest.approx(own, abs=1e-2)


def test_the_composers_captions_are_made_without_rendering():
    captions = composed_captions(50, seed=1)
    assert len(captions) == 50 and len(set(captions)) > 40
    assert captions == composed_captions(50, seed=1) != composed_captions(50, seed=2)


def test_what_cannot_be_distilled_is_refused(teacher, tmp_path):
    other = copy.copy(teacher)
    other.scheduler = PNDMScheduler()
    with pytest.raises(ValueError, match="predicts 'epsilon'"):
        distillation.distill(other, tmp_path, CONFIG)
    with pytest.raises(ValueError, match="prompts is empty"):
        distillation.distill(teacher, tmp_path, CONFIG, prompts=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_distills_and_exports(teacher, tmp_path, capsys):
    export(teacher, tmp_path / "teacher", dtype=torch.float32)
    settings = ["steps=1", "batch_size=2", "n_paths=64", "precision=fp32", "sample_every=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    start = ["--folder", str(tmp_path / "run"), "--start-from", str(tmp_path / "teacher")]
    main(["distill", *start, *options])
    assert "the prompts are captions of the composer" in capsys.readouterr().out
    main(["export", "--model", str(tmp_path / "run" / "distill" / "model"), "--to", str(tmp_path / "student")])
    student = load_pipeline(tmp_path / "student", device="cpu")
    assert model_settings(student).num_inference_steps == 3
    assert student.scheduler.config.sigma_min == pytest.approx(float(distillation.teacher_sigmas(teacher)[4]), rel=1e-4)


def test_too_few_steps_to_close_loops_are_refused():
    with pytest.raises(ValueError, match="num_inference_steps must be at least 3, not 2"):
        DistillConfig(num_inference_steps=2)


@pytest.mark.parametrize("n_steps", [3, 4, 6])
def test_what_is_circular_in_training_is_circular_in_generation(n_steps):
    """Of the starts within one step of the student all are circular, or none, as when clips are generated."""
    task = object.__new__(distillation.DistillationTask)
    task.sigmas, task.part = torch.zeros(13), 12 // n_steps
    late = [task.is_late(step) for step in range(12)]
    n_late = int(CIRCULAR_SHARE * n_steps)
    assert late == [False] * (12 - n_late * task.part) + [True] * n_late * task.part


@pytest.mark.slow
def test_prompts_of_any_length_share_a_batch(teacher, paths):
    long = replace(paths, prompts=["a b", " ".join(["c"] * 100), *paths.prompts[2:]])
    task = distillation.DistillationTask(teacher, long, CONFIG)
    embeds = task._batch([(0, 0), (1, 0)], is_circular=False)["prompt_embeds"]
    assert embeds.shape == (2, 2 * 77, 16)
