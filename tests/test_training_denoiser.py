"""`train` as a whole: any data set to a model that loads, the same weights after a break, and what it refuses."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

import riffusion_lab.training
from memory_dataset import MemoryDataset, composed, recorded
from riffusion_lab import load_pipeline, text_to_audio, vocabulary
from riffusion_lab.models import model_settings
from riffusion_lab.training import denoiser, exporting, text
from riffusion_lab.training.config import TrainConfig
from riffusion_lab.training.exporting import export
from riffusion_lab.training.loop import only_run_in
from riffusion_lab.training.optimizers import averaged_weights
from riffusion_lab.training.progress import read_metrics, read_snapshots
from tiny import tiny_pipeline

CONFIG = TrainConfig(
    steps=4,
    batch_size=4,
    widths=(16, 16, 48, 48),
    text_steps=2,
    device="cpu",
    precision="fp32",
    sample_every=0,
    circular_share=0.5,
)


def weights(pipe: StableDiffusionPipeline) -> list[torch.Tensor]:
    return [p.detach().clone() for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps on the composer's clips without a break, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return denoiser.train(composed(), folder, CONFIG), folder


@pytest.mark.slow
def test_the_composers_clips_give_a_model_with_a_text_encoder_of_its_own(whole):
    pipe, folder = whole
    fresh = denoiser.TextDenoiser(denoiser.new_unet(CONFIG.widths), text.new_text_encoder(pipe.tokenizer))
    for part in ("unet", "text_encoder"):
        ours, theirs = getattr(pipe, part).state_dict(), getattr(fresh, part).state_dict()
        assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(read_metrics(folder)) == 4 and len(read_metrics(folder / "text_encoder")) == 2
    assert model_settings(pipe).loop and "rain" in vocabulary(pipe)
    again = load_pipeline(folder / "model", device="cpu")
    assert all(torch.equal(p, q) for p, q in zip(weights(pipe), weights(again), strict=True))
    assert text_to_audio(again, "rain", seed=1, num_inference_steps=1).waveform.shape == (1, 225_792)
    riffling = load_pipeline(device="cpu").vae.state_dict()
    assert all(torch.equal(riffling[name], value) for name, value in again.vae.state_dict().items())  # it was frozen


@pytest.mark.slow
def test_a_model_exported_in_half_precision_loads_anywhere_without_warnings(whole, tmp_path):
    pipe = load_pipeline(whole[1] / "model", device="cpu")
    export(pipe, tmp_path, settings=model_settings(pipe))
    about = json.loads((tmp_path / "riffusion_lab.json").read_text())
    assert {"rain", "clock"} <= set(about["vocabulary"])
    assert 117 in about["tempi_bpm"]
    assert (about["num_inference_steps"], about["guidance_scale"], about["steady_noise_gain"]) == (12, 1.5, 1.25)
    assert (about["pag_applied_layers"], about["loop"]) == (["up_blocks.0"], True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert {part.dtype for part in (again.unet, again.vae, again.text_encoder)} == {torch.float32}
    picture = again("rain", num_inference_steps=1, output_type="np").images[0]
    assert picture.shape == (512, 512, 3)
    sizes = [sum(f.stat().st_size for f in at.rglob("unet/*.safetensors")) for at in (tmp_path, whole[1] / "model")]
    assert sizes[0] < 0.55 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["text encoder", "denoiser"])
def test_broken_off_in_any_stage_and_resumed_the_weights_are_the_same(whole, tmp_path, monkeypatch, at):
    kind = {"text encoder": text.TextEncoderTask, "denoiser": denoiser.DenoiserTask}[at]
    draw, break_at = kind.draw_batch, {"text encoder": 1, "denoiser": 3}[at]
    n_drawn = 0

    def failing(self, rng, generator):
        nonlocal n_drawn
        n_drawn += 1
        if n_drawn == break_at + 1:
            raise MemoryError("broken off")
        return draw(self, rng, generator)

    config = CONFIG.override(["save_every_s=0"])
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(kind, "draw_batch", failing)
        denoiser.train(composed(), tmp_path, config)
    resumed = denoiser.train(composed(), tmp_path, config.override(["sample_every=4", 'sample_prompts=["rain"]']))
    assert all(torch.equal(p, q) for p, q in zip(weights(whole[0]), weights(resumed), strict=True))
    losses = [[record["loss"] for record in read_metrics(folder)] for folder in (whole[1], tmp_path)]
    assert losses[0] == losses[1]
    *_, snapshot = read_snapshots(tmp_path)  # made with the running average, of which training knew nothing
    assert [clip["title"] for clip in snapshot["clips"]] == ["rain"]
    assert set(map(int, snapshot["noise_loss"])) == set(denoiser.NOISE_LEVELS)
    assert all(value > 0 for value in snapshot["noise_loss"].values())


@pytest.mark.slow
def test_recordings_with_captions_of_their_own_train_rifflings_text_encoder_on(tmp_path):
    pipe = riffusion_lab.training.train(recorded(), tmp_path, CONFIG)
    riffling = load_pipeline(device="cpu")
    assert pipe.tokenizer.get_vocab() == riffling.tokenizer.get_vocab()
    before, after = riffling.text_encoder.state_dict(), pipe.text_encoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all((before[name] - after[name]).abs().max() < 0.01 for name in before)  # trained on, not anew
    assert not model_settings(pipe).loop and "lake" in vocabulary(pipe)
    assert not (tmp_path / "text_encoder").exists()


@pytest.mark.slow
def test_training_starts_from_a_model_and_leaves_it_as_it_was(tmp_path):
    pipe = load_pipeline(device="cpu")
    before = weights(pipe)
    config = TrainConfig(steps=0, device="cpu", precision="fp32", sample_every=0)
    trained = denoiser.train(composed(), tmp_path / "0", config, start_from=pipe)
    assert trained.tokenizer.get_vocab() == pipe.tokenizer.get_vocab()
    assert all(torch.equal(p, q) for p, q in zip(weights(trained), before, strict=True))
    trained = denoiser.train(composed(), tmp_path / "1", config.override(["steps=1", "batch_size=2"]), start_from=pipe)
    assert not all(torch.equal(p, q) for p, q in zip(weights(trained), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(weights(pipe), before, strict=True))


def content(folder) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused_before_anything_is_overwritten(whole):
    _, folder = whole
    before = content(folder)
    assert any(name.endswith("latents.npy") for name in before)
    loops = composed()
    other = MemoryDataset(loops.array, [{**fact, "seed": fact["seed"] + 9} for fact in loops.facts])
    for dataset, changed, message in (
        (recorded(), [], "was trained on other data"),
        (other, [], "was trained on other data"),
        (composed(n_held_out=2), ["text_steps=3"], "text_steps is 3 but was 2"),
        (composed(n_held_out=2), ["learning_rate=0.5"], "learning_rate is 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser.train(dataset, folder, CONFIG.override(changed))
        assert content(folder) == before
    vae = load_pipeline(device="cpu").vae
    with torch.no_grad():
        vae.encoder.layers[0].weight.add_(0.1)
    with pytest.raises(ValueError, match="was trained on other data or from another model"):
        denoiser.train(loops, folder, CONFIG, vae=vae)
    assert content(folder) == before


@pytest.mark.slow
def test_latents_of_a_run_that_goes_on_elsewhere_are_not_overwritten(tmp_path):
    """Even before its first checkpoint."""
    (tmp_path / "latents.npy").write_bytes(b"of the other run")
    with only_run_in(tmp_path), pytest.raises(OSError, match="another process is training in"):
        denoiser.train(recorded(), tmp_path, CONFIG)
    assert (tmp_path / "latents.npy").read_bytes() == b"of the other run"


def task(data=None, **settings) -> denoiser.DenoiserTask:
    config = CONFIG.override([f"{name}={value}" for name, value in settings.items()])
    pipe = load_pipeline(device="cpu")
    data = data or composed()
    latents = np.random.default_rng(0).standard_normal((len(data), 4, 64, 64)).astype(np.float16)
    network = denoiser.TextDenoiser(denoiser.new_unet(config.widths), pipe.text_encoder)
    return denoiser.DenoiserTask(network, pipe.tokenizer, data, config, vae=pipe.vae, latents=latents)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_loops_are_closed_in_training_as_in_generation(share):
    trained, seen = task(circular_share=share, batch_size=8), []

    def note(unet, arguments):
        seen.append(("_conv_forward" in vars(unet.conv_in), int(arguments[1].min()), int(arguments[1].max())))

    trained.denoiser.unet.register_forward_pre_hook(note)
    for step in range(3):
        batch = trained.draw_batch(*denoiser.generators(0, "denoiser", step))
        terms = trained.loss(trained.network, batch)
        assert terms["loss"] > 0 and terms["position"] > 0
    circular, clearest, noisiest = zip(*seen, strict=True)
    assert set(circular) == {bool(share)}
    assert (max(noisiest) < 334) == bool(share)
    if not share:  # every batch has its clear and its noisy ones: one in each eighth of a draw from their density
        assert max(clearest) <= 1000 * (1 / 8) ** trained.config.timestep_power
        assert min(noisiest) >= 999 * (7 / 8) ** trained.config.timestep_power
    assert "_conv_forward" not in vars(trained.denoiser.unet.conv_in)


def test_recordings_are_never_closed_to_loops():
    trained = task(recorded(), circular_share=1.0)
    assert not trained.draw_batch(*denoiser.generators(0, "denoiser", 0))["is_circular"]


def test_snapshots_keep_no_features_of_the_network():
    trained = task(steps=1)
    with torch.no_grad(), averaged_weights(trained.average, trained.denoiser):
        for _ in range(2):
            trained.denoiser(torch.zeros(1, 4, 64, 64), torch.tensor([9]), torch.zeros(1, 77, dtype=torch.int64))
    assert not trained.network.features
    batch = trained.draw_batch(*denoiser.generators(0, "denoiser", 0))
    assert torch.isfinite(trained.loss(trained.network, batch)["position"])


@pytest.mark.parametrize(
    ("n_held_out", "measured_on"), [(2, "2 held-out clips"), (0, "8 clips to train on, since none is held out")]
)
def test_a_snapshot_says_what_was_measured(monkeypatch, n_held_out, measured_on):
    monkeypatch.setattr(denoiser.DenoiserTask, "_clips", lambda _: [])
    monkeypatch.setattr(denoiser, "NOISE_LEVELS", (500,))
    snapshot = task(composed(n_held_out)).snapshot()
    assert snapshot.measured_on == measured_on and snapshot.noise_loss[500] > 0


def test_prompts_of_the_snapshots_are_of_different_labels():
    prompts = denoiser.held_out_prompts(composed(n_held_out=8))
    assert len(prompts) == len(set(prompts)) == 4
    assert denoiser.held_out_prompts(recorded()) == denoiser.held_out_prompts(recorded())
    songs = recorded()  # two clips of each of four songs: most data sets of one's own have captions, but no labels
    songs.n_held_out = 8
    for i, facts in enumerate(songs.facts):
        facts["caption"] = f"song {i // 2}"
    assert sorted(denoiser.held_out_prompts(songs)) == ["song 0", "song 1", "song 2", "song 3"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_the_network_without_hooks(tmp_path, monkeypatch):
    made = []

    def nan_latents(_vae, data, _file):
        return np.full((len(data), 4, 64, 64), np.nan, np.float16)

    def new_probe(network):
        made.append(network.unet)
        return denoiser_probe(network)

    denoiser_probe = denoiser.PositionProbe
    monkeypatch.setattr(denoiser, "encode_dataset", nan_latents)
    monkeypatch.setattr(denoiser, "PositionProbe", new_probe)
    with pytest.raises(FloatingPointError, match="at step 0; there is no checkpoint yet"):
        denoiser.train(recorded(), tmp_path, CONFIG)
    assert not any(module._forward_hooks for module in made[0].modules())
    assert not (tmp_path / "model").exists()


def test_models_that_do_not_fit_are_refused(tmp_path):
    other = tiny_pipeline()
    other.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="start_from predicts 'epsilon', not 'v_prediction'"):
        denoiser.train(composed(), tmp_path, CONFIG, start_from=other)
    other = tiny_pipeline()
    other.vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ValueError, match="start_from has an AutoencoderKL, not an AutoencoderTiny"):
        denoiser.train(composed(), tmp_path, CONFIG, start_from=other)
    riffling = load_pipeline(device="cpu")
    with pytest.raises(ValueError, match=r"widths \(16, 16, 48, 48\) differ from those of start_from, \(48, 96"):
        denoiser.train(composed(), tmp_path, CONFIG, start_from=riffling)
    with pytest.raises(ValueError, match="new_text_encoder needs the facts of the composer"):
        denoiser.train(recorded(), tmp_path, CONFIG.override(["new_text_encoder=true"]))
    with pytest.raises(ValueError, match="lies within the installed package"):
        denoiser.train(composed(), denoiser.Path(denoiser.__file__).parent, CONFIG)


def test_paths_and_dictionaries_are_not_what_train_takes(tmp_path):
    with pytest.raises(TypeError, match=r"dataset is the path 'data': pass Dataset\.load\('data'\)"):
        denoiser.train("data", tmp_path, CONFIG)
    with pytest.raises(TypeError, match=r"pass load_pipeline\('riffling'\)"):
        denoiser.train(composed(), tmp_path, CONFIG, start_from="riffling")
    with pytest.raises(TypeError, match="config must be a TrainConfig, not {'steps': 3}"):
        denoiser.train(composed(), tmp_path, {"steps": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_exported_with_its_own_settings_and_left_as_it_is(pipe, tmp_path):
    export(pipe, tmp_path / "small")  # the fixture checks that nothing is changed
    small = load_pipeline(tmp_path / "small", device="cpu")
    assert model_settings(small) == model_settings(pipe) and small.dtype == pipe.dtype == torch.float32
    name = "conv_in.weight"
    assert torch.equal(small.unet.state_dict()[name], pipe.unet.state_dict()[name].half().float())


def test_a_folder_that_is_not_empty_is_kept(pipe, tmp_path):
    (tmp_path / "tune.wav").write_bytes(b"a tune")
    export(pipe, tmp_path / "model")
    before = content(tmp_path)
    for folder, overwrite, message in (
        (tmp_path, False, "holds other files: choose a new or an empty folder"),
        (tmp_path, True, "holds other files"),
        (tmp_path / "model", False, "model holds a model: choose another folder, or set overwrite=true"),
    ):
        with pytest.raises(ValueError, match=message):
            export(pipe, folder, overwrite=overwrite)
    with pytest.raises(NotADirectoryError, match="tune.wav is a file"):
        export(pipe, tmp_path / "tune.wav")
    with pytest.raises(TypeError, match="overwrite must be True or False, not 'no'"):
        export(pipe, tmp_path / "model", overwrite="no")
    assert content(tmp_path) == before


def test_a_model_is_replaced_when_asked_with_what_lies_beside_it_kept(pipe, tmp_path):
    folder = tmp_path / "model"
    export(pipe, folder, dtype=torch.float32)
    (folder / "README.md").write_text("about")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"of another training")
    size = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    export(pipe, folder, overwrite=True)
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 0.6 * size
    assert not (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert (folder / "README.md").read_text() == "about"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_export_that_breaks_off_leaves_what_was_there(pipe, tmp_path, monkeypatch, is_there):
    if is_there:
        export(pipe, tmp_path / "model")
    before = content(tmp_path)

    def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(exporting, "_without_defaults", broken)  # when all weights are written
    with pytest.raises(OSError, match="disk is full"):
        export(pipe, tmp_path / "model", overwrite=True)
    assert content(tmp_path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"] * is_there


def test_an_empty_folder_and_a_link_to_one_take_a_model(pipe, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export(pipe, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_pipeline(tmp_path / "empty", device="cpu").dtype == torch.float32


def test_the_package_offers_its_names_lazily():
    names = riffusion_lab.training.__all__
    assert {"Dataset", "DistillConfig", "TrainConfig", "distill", "evaluate", "export", "train"} == set(names)
    assert all(callable(getattr(riffusion_lab.training, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'finetuned'; it has .*train"):
        _ = riffusion_lab.training.finetuned
