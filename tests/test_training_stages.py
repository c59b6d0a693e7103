"""The parts of training: autoencoder, text encoder, the denoiser's losses and batches, optimizer, export."""

import copy
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny, UNet2DConditionModel

from memory_dataset import MemoryDataset, composed, recorded
from riffusion_lab import files, load_pipeline
from riffusion_lab.hashing import weights_hash
from riffusion_lab.training import autoencoder, denoiser, optimizers, text
from riffusion_lab.training.captions import caption
from riffusion_lab.training.classifier import load_classifier, train_classifier
from riffusion_lab.training.config import (
    AutoencoderConfig,
    ClassifierConfig,
    DecoderConfig,
    TextEncoderConfig,
    TrainConfig,
)
from riffusion_lab.training.exporting import average, check_target, settings_for
from riffusion_lab.training.loop import generators, part_of_batch
from riffusion_lab.training.optimizers import MuonAdamW, as_matrix, cosine_schedule, optimizer_step
from riffusion_lab.training.progress import read_metrics, read_snapshots, save_snapshot
from riffusion_lab.training.targets import IGNORED
from riffusion_lab.training.vocabulary import CLASSES
from tiny import tiny_pipeline

SHORT = {"device": "cpu", "precision": "fp32", "sample_every": 0}


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer_step(Accelerator(cpu=True), optimizer, parameters, max_norm=1.0)


# Text


def test_tokenizer_spells_everything_and_merges_what_it_was_trained_on(tmp_path):
    tokenizer = text.train_tokenizer(["church bells, 117 bpm", "happy piano"] * 3)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = type(tokenizer).from_pretrained(tmp_path)
    assert tokenizer.tokenize("Church bells") == ["church</w>", "bells</w>"]
    assert tokenizer.tokenize("117 bpm")[:3] == ["1</w>", "1</w>", "7</w>"]
    tokens = text.tokenize(tokenizer, ["Zürich 日本", ""])
    assert tokens.shape == (2, text.N_TOKENS)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == "zürich 日本"
    assert (tokens[1, 1:] == tokenizer.eos_token_id).all()


def solo_facts(label="violin", **other):
    return {"kind": "solo", "label": label, "mode": "minor", "bpm": 94, "texture": "melody", "register": "high"} | other


def test_fact_targets_are_the_clips():
    facts = [solo_facts(metre=4), {"kind": "fusion", "label": "fusion", "styles": ["jazz", "techno"], "drums": True}]
    targets = text.fact_targets(facts)
    heard = [{CLASSES[i] for i in row.nonzero()[:, 0]} for row in targets["classes"]]
    assert heard == [{"violin"}, {"jazz", "techno", "drums"}]
    for name, value in (("bpm", 94), ("texture", "melody"), ("register", "high"), ("metre", 4)):
        assert text.CHOICES[name][targets[name][0]] == value
        assert targets[name][1] == IGNORED


@pytest.mark.slow
def test_the_text_encoder_learns_to_predict_facts_near_its_anchors():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    facts = [solo_facts(label, bpm=bpm) for label in ("violin", "piano") for bpm in (47, 188)] * 4
    tokenizer = text.train_tokenizer([caption(fact, rng) for fact in facts])
    predictor = text.FactPredictor(text.new_text_encoder(tokenizer))
    tokens = text.trim_padding(text.tokenize(tokenizer, [f"{fact['label']}, {fact['bpm']} bpm" for fact in facts]))
    targets, optimizer, losses = text.fact_targets(facts), torch.optim.Adam(predictor.parameters(), 1e-3), []
    for _ in range(60):
        loss = text.fact_loss(predictor(tokens)[0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    predicted = predictor(tokens)[0]["bpm"].argmax(dim=1)
    assert (predicted == targets["bpm"]).float().mean() > 0.9  # what follows a comma counts, too
    anchors = text.label_embeddings(predictor.text_encoder, tokenizer)
    assert set(anchors) == {*CLASSES, ""}
    middle = text.mean_anchor(anchors, {"label": "fusion", "styles": ["jazz", "techno"]}, "jazz techno")
    torch.testing.assert_close(middle, (anchors["jazz"] + anchors["techno"]) / 2)
    torch.testing.assert_close(text.mean_anchor(anchors, facts[0], ""), anchors[""])


def test_only_padding_is_cut_off():
    tokenizer = text.train_tokenizer(["piano, slow", "jazz"])
    tokens = text.tokenize(tokenizer, ["piano, slow", "jazz"])
    short = text.trim_padding(tokens)
    assert short.shape[1] < tokens.shape[1]
    assert (tokens[:, short.shape[1] :] == tokenizer.pad_token_id).all()


def test_text_encoder_stage_with_anchors(tmp_path):
    data = composed()
    tokenizer = text.train_tokenizer(["rain", "typing", "clock", "waves"])
    anchors = {name: torch.zeros(text.WIDTH) for name in (*CLASSES, "")}
    config = TextEncoderConfig(steps=3, batch_size=4, **SHORT)
    trained = text.train_text_encoder(data, tokenizer, tmp_path, config, anchors=anchors)
    metrics = read_metrics(tmp_path)
    assert len(metrics) == 3 and all(record["anchors"] > 0 for record in metrics)
    again = text.train_text_encoder(data, tokenizer, tmp_path, config, anchors=anchors)  # complete: nothing to do
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="other data or from another model"):
        text.train_text_encoder(data, tokenizer, tmp_path, config)


# Autoencoder


def test_folding_the_whitening_changes_nothing():
    torch.manual_seed(0)
    model = autoencoder.WhitenedAutoencoder(autoencoder.new_autoencoder())
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    model.train()
    for _ in range(3):
        model(pictures, torch.zeros(4, 4, 8, 8))
    model.eval()
    with torch.no_grad():
        before = model.whiten(model.vae.encode(pictures).latents)
        after = model.folded().encode(pictures).latents
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(model.whiten(before), before, atol=1e-2) or after.std() > 0


def test_autoencoder_is_of_the_format_of_diffusers(tmp_path):
    vae = autoencoder.new_autoencoder()
    vae.save_pretrained(tmp_path)
    latents = AutoencoderTiny.from_pretrained(tmp_path).encode(torch.zeros(1, 3, 512, 512)).latents
    assert latents.shape == (1, 4, 64, 64)


def test_amplitudes_are_those_of_the_image_convention():
    assert autoencoder.amplitudes(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [1, 0.0625, 0]


def test_grain_is_what_is_finer_than_five_pixels():
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)) / 127.5  # one grey level
    slow = torch.sin(torch.linspace(0, 6, 256)).expand(1, 1, 256, 256)
    grain = autoencoder.fine_grain(4 * noise + slow)
    assert grain.shape == (1, 1, 62, 62)
    assert abs(grain.mean() - 10 * np.log10(16 * 24 / 25)) < 0.3  # a 25th of white noise is in its mean over 25 pixels
    assert autoencoder.fine_grain(torch.zeros(1, 1, 64, 64)).mean() == pytest.approx(-20)


def test_too_little_grain_counts_as_an_error():
    losses = []
    for weight in (0, 1):
        config = DecoderConfig(grain_weight=weight, batch_size=2, crop=64, **SHORT)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            task = autoencoder.DecoderTask(autoencoder.new_autoencoder(), composed(), config)
        losses.append(task.loss(task.network, task.draw_batch(*generators(0, "x", 0)))["loss"].item())
    assert losses[1] - losses[0] > 3  # dB: an untrained decoder draws smooth clouds


@pytest.mark.slow
def test_the_autoencoder_learns_and_is_measured(tmp_path):
    config = AutoencoderConfig(steps=12, batch_size=4, crop=64, width=8, device="cpu", precision="fp32", sample_every=6)
    autoencoder.train_autoencoder(composed(), tmp_path, config)
    losses = [record["loss"] for record in read_metrics(tmp_path)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    snapshots = read_snapshots(tmp_path)
    assert [snapshot["step"] for snapshot in snapshots] == [0, 6, 12]
    assert all({"psnr", "convergence"} <= snapshot["numbers"].keys() for snapshot in snapshots)
    assert (tmp_path / "samples" / "0000012" / "1.mp3").stat().st_size > 1000
    AutoencoderTiny.from_pretrained(tmp_path / "vae")


@pytest.mark.slow
@pytest.mark.parametrize("trained", [{"decoder"}, {"decoder", "encoder"}], ids=["decoder", "both halves"])
def test_the_decoder_is_trained_on_alone_or_with_the_encoder(tmp_path, trained):
    data, vae = composed(), load_pipeline(device="cpu").vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    picture = data.pictures(data.split()[1][:1])
    shipped = autoencoder.fidelity([autoencoder.reconstruct(vae, picture)], [picture])
    assert shipped["psnr"] > 22 and shipped["convergence"] < 0.6
    config = DecoderConfig(steps=2, batch_size=2, crop=64, both_halves="encoder" in trained, **SHORT)
    autoencoder.finetune_decoder(vae, data, tmp_path, config)
    after = AutoencoderTiny.from_pretrained(tmp_path / "vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())  # a copy was trained
    loud = {name: torch.zeros_like(value) if "decoder" in name else value for name, value in before.items()}
    vae.load_state_dict(loud)  # -1 everywhere: as loud as can be
    worse = autoencoder.fidelity([autoencoder.reconstruct(vae, picture)], [picture])
    assert worse["psnr"] < shipped["psnr"] and worse["convergence"] > shipped["convergence"]


def test_a_trained_autoencoder_and_classifier_appear_whole(tmp_path, monkeypatch):
    def torn(*_, **__):
        raise OSError("the disk is full")

    vae, judge = autoencoder.new_autoencoder(8), load_classifier()
    autoencoder._save(vae, tmp_path)
    judge.save(tmp_path / "classifier.safetensors")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(before) == 3
    save_config = AutoencoderTiny.save_config

    def save_half(self, folder, **options):
        save_config(self, folder, **options)
        (autoencoder.Path(folder) / "diffusion_pytorch_model.safetensors").write_bytes(b"half of the weights")
        raise OSError("the disk is full")

    monkeypatch.setattr(AutoencoderTiny, "save_config", save_half)
    monkeypatch.setattr(files.os, "replace", torn)
    with pytest.raises(OSError, match="disk is full"):
        autoencoder._save(vae, tmp_path)
    with pytest.raises(OSError, match="disk is full"):
        judge.save(tmp_path / "classifier.safetensors")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_is_measured_is_said(tmp_path):
    vae = load_pipeline(device="cpu").vae
    for n_held_out, measured_on in ((2, "2 held-out clips"), (1, "1 held-out clip")):
        assert autoencoder.measured_indices(composed(n_held_out), 16)[1] == measured_on
        assert set(autoencoder.measured_indices(composed(n_held_out), 16)[0]) == set(range(n_held_out))
    snapshot = autoencoder.autoencoder_snapshot(vae, composed(n_held_out=0))
    assert snapshot.measured_on == "8 clips to train on, since none is held out"
    save_snapshot(tmp_path, 3, snapshot)
    assert read_snapshots(tmp_path)[0]["measured_on"] == snapshot.measured_on


def test_loops_are_encoded_as_loops_and_other_clips_as_they_are(tmp_path):
    pictures, facts = composed().array, composed().facts
    mixed = MemoryDataset(pictures[:2], [facts[0], {"caption": "rain"}])
    vae = load_pipeline(device="cpu").vae
    before = copy.deepcopy(vae.state_dict())
    latents = autoencoder.encode_dataset(vae, mixed, tmp_path / "latents.npy")
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    with torch.no_grad():
        plain = vae.encode(mixed.pictures([0, 1]).expand(-1, 3, -1, -1)).latents
        with autoencoder.circular_time(vae):
            circular = vae.encode(mixed.pictures([0, 1]).expand(-1, 3, -1, -1)).latents
    seam = float((plain[0] - circular[0]).abs()[..., 0].mean())

    def distance(ours: np.ndarray, theirs: torch.Tensor) -> float:
        return float((torch.from_numpy(ours.astype("f4")) - theirs).abs()[..., 0].mean())

    assert distance(latents[0], circular[0]) < 0.2 * seam  # the rest is float16 and, on some processors, bfloat16
    assert distance(latents[1], plain[1]) < 0.2 * seam


@pytest.mark.slow
def test_latents_are_kept_only_for_the_same_autoencoder_and_clips(tmp_path):
    data, file = composed(), tmp_path / "latents.npy"
    vae = load_pipeline(device="cpu").vae
    autoencoder.encode_dataset(vae, data, file)
    written = file.stat().st_mtime_ns
    autoencoder.encode_dataset(vae, data, file)
    assert file.stat().st_mtime_ns == written
    with torch.no_grad():
        vae.encoder.layers[0].weight.add_(0.1)
    autoencoder.encode_dataset(vae, data, file)
    assert file.stat().st_mtime_ns != written
    written = file.stat().st_mtime_ns
    other = MemoryDataset(data.array, [{**fact, "seed": fact["seed"] + 9} for fact in data.facts])
    autoencoder.encode_dataset(vae, other, file)  # composed with another seed
    assert file.stat().st_mtime_ns != written


def test_a_full_disk_stops_encoding_with_an_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # like a disk with 100 kB left
    try:
        with pytest.raises(OSError, match="File too large"):
            autoencoder.encode_dataset(load_pipeline(device="cpu").vae, composed(), tmp_path / "latents.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


# Denoiser: its losses and batches


@pytest.mark.slow
def test_the_unet_is_trained_to_represent_where_in_frequency_it_is():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 16, 16),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=4,
        cross_attention_dim=8,
    )
    network = denoiser.TextDenoiser(unet, lambda _: SimpleNamespace(last_hidden_state=torch.zeros(4, 1, 8)))
    probe = denoiser.PositionProbe(network)
    optimizer = torch.optim.Adam(probe.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        noise = torch.randn(4, 4, 16, 16)
        v, error = probe(noise, torch.full((4,), 500), torch.zeros(4, 77))
        assert v.shape == noise.shape
        descend(optimizer, error)
        errors.append(error.item())
    assert errors[0] > 0.4
    assert errors[-1] < 0.3, errors
    probe.remove_hooks()
    network(noise, torch.full((4,), 500), torch.zeros(4, 77))
    assert len(probe.features) == 3  # those of before


def test_half_cosines_tell_rows_apart():
    waves = denoiser.half_cosines(64)[..., 0]
    assert waves.shape == (16, 64)
    assert torch.allclose(waves.square().mean(dim=1), torch.tensor(0.5), atol=1e-5)
    apart = torch.cdist(waves.T, waves.T) + 10 * torch.eye(64)
    assert apart.min() > 1


def test_what_noise_hides_counts_less():
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(64)
    power = 1 / (1e-3 + frequency[:, None] ** 2 + frequency**2)  # like the latents': slow waves are the strong ones
    white = torch.randn(64, 4, 64, 64, generator=generator)
    latents = torch.fft.ifft2(torch.fft.fft2(white) * (power / power.mean()).sqrt()).real
    error = denoiser.VisibleError(latents)
    little, much = torch.tensor([0.01]), torch.tensor([10.0])
    assert (error.weights(little) - 1).abs().max() < 0.02
    weights = error.weights(much)[0, 0]
    assert weights[0, 1] > 2 and weights[32, 32] < 0.6

    def wave(n: int) -> torch.Tensor:
        return torch.cos(2 * torch.pi * n * torch.arange(64) / 64).expand(1, 4, 64, 64)

    nothing = torch.zeros(1, 4, 64, 64)
    assert error(wave(1), nothing, little) == pytest.approx(0.5, rel=0.02)  # the plain mean square of a cosine
    assert error(wave(1), nothing, much) > 3 * error(wave(30), nothing, much)
    # of the best linear guess, which leaves its own share of each wave unknown, the error stays the same on the whole
    seen = error.power / (error.power + much**2)
    noisy = torch.fft.fft2(latents + much * torch.randn(latents.shape, generator=generator))
    guess = torch.fft.ifft2(seen * noisy).real
    assert error(guess, latents, much.expand(64)) == pytest.approx(float((guess - latents).square().mean()), rel=0.05)
    plain = denoiser.VisibleError(latents, 0.0)
    assert plain(wave(30), nothing, much) == pytest.approx(0.5, rel=0.02)


def test_the_error_of_a_single_clip_is_a_number():
    error = denoiser.VisibleError(torch.randn(1, 4, 64, 64).expand(5, -1, -1, -1))
    assert torch.isfinite(error(torch.randn(2, 4, 64, 64), torch.zeros(2, 4, 64, 64), torch.tensor([0.05, 40.0])))


class Captions:
    """Stands for a tokenizer, and keeps the captions."""

    def __init__(self):
        self.seen = []

    def __call__(self, captions, **_options):
        self.seen += captions
        return SimpleNamespace(input_ids=torch.zeros(len(captions), 77, dtype=torch.int64))


def sampler(data, captions=None, **settings):
    latents = np.zeros((len(data), 4, 64, 64), np.float16)
    latents[...] = np.arange(64)  # the columns' numbers: 0, where a clip was not rolled
    latents[:, 0, 0, 0] = 0
    latents[:, 1, :, :] = np.arange(len(data))[:, None, None]  # and the clip's number
    return denoiser.ClipSampler(latents, data, captions or Captions(), TrainConfig(**settings))


def test_classes_are_drawn_by_their_weights_and_captions_dropped():
    data = MemoryDataset(
        np.zeros((12, 1, 1)), [{"kind": "effect", "label": name} for name in ["rain"] * 9 + ["waves"] * 3]
    )
    data.n_held_out = 0
    captions = Captions()
    latents, _ = sampler(data, captions).draw(2000, np.random.default_rng(0))
    is_waves = latents[:, 1, 0, 0] >= 9
    assert is_waves.float().mean() == pytest.approx(0.5, abs=0.05)  # as often as rain, of which there is more
    assert captions.seen.count("") / 2000 == pytest.approx(0.1, abs=0.03)
    latents, _ = sampler(data, favoured=("waves",), caption_dropout=0.0).draw(2000, np.random.default_rng(0))
    assert (latents[:, 1, 0, 0] >= 9).float().mean() == pytest.approx(0.75, abs=0.05)


def test_loops_are_rolled_by_whole_bars_and_other_clips_not_at_all():
    facts = [{"kind": "effect", "label": "rain", "columns": 16}, {"caption": "a song"}]
    data = MemoryDataset(np.zeros((2, 1, 1)), facts, n_held_out=0)
    drawn = sampler(data)
    latents, _ = drawn.draw(200, np.random.default_rng(0))
    turns = {number: set() for number in (0, 1)}
    for clip in latents:
        turns[int(clip[1, 0, 0])].add(int(clip[2, 0, 0]))
    assert turns == {0: {0, 16, 32, 48}, 1: {0}}
    latents, _ = drawn.draw(50, np.random.default_rng(0), loops_only=True)
    assert (latents[:, 1, 0, 0] == 0).all()
    assert not sampler(MemoryDataset(np.zeros((1, 1, 1)), facts[1:], n_held_out=0)).has_loops


def test_no_clip_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no clips to train on, of 8 in all"):
        sampler(composed(n_held_out=8))
    with pytest.raises(ValueError, match="kind_weights leave no clip to draw"):
        sampler(composed(), kind_weights={"effect": 0.0})


def test_the_model_that_ships_takes_the_steps_of_the_training_code():
    """Small ones at the end: a last step as wide as the others gives the mean of all plausible details."""
    pipe = load_pipeline(device="cpu")
    made = denoiser.assemble(SimpleNamespace(unet=pipe.unet, text_encoder=pipe.text_encoder), pipe.tokenizer, pipe.vae)
    noise_left = []
    for scheduler in (pipe.scheduler, made.scheduler):
        scheduler.set_timesteps(12)
        noise_left.append(scheduler.sigmas.tolist())
    assert noise_left[0] == noise_left[1]
    assert noise_left[0][0] > 30 and noise_left[0][-2] < 0.06


# Optimizer


def test_muon_steps_alike_in_all_directions_and_else_as_adamw():
    torch.manual_seed(0)
    shapes = [(8, 6, 3, 3), (16, 8), (8,), (8, 3, 3, 3), (30, 8)]  # two matrices; bias, first layer, embedding table
    gradients = [torch.randn(shape) for shape in shapes]

    def stepped(kind: type) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        groups = [{"params": parameters[:4]}, {"params": parameters[4:], "orthogonal": False}]
        optimizer = kind(groups, lr=1e-2)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        return [parameter.detach() for parameter in parameters]

    ours, theirs = stepped(MuonAdamW), stepped(torch.optim.AdamW)
    for matrix, gradient in zip(ours[:2], gradients, strict=False):
        directions = torch.linalg.svdvals(matrix.flatten(1))
        assert directions.max() / directions.min() < 2 < torch.linalg.cond(gradient.flatten(1))
        assert matrix.square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.3)
        assert (matrix * gradient).sum() < 0
    for parameter, other in zip(ours[2:], theirs[2:], strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_is_torchs_own_for_matrices_and_kernels(memory_format, monkeypatch):
    """torch's takes matrices: a kernel's rows are its output channels. It always multiplies in bfloat16."""
    monkeypatch.setattr(optimizers, "fastest_dtype", lambda _: torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(8, 6, 3, 3, generator=generator)
    gradients = [torch.randn(8, 6, 3, 3, generator=generator) for _ in range(3)]
    ours = torch.nn.Parameter(kernel.clone().to(memory_format=memory_format))
    theirs = torch.nn.Parameter(kernel.flatten(1).clone())
    optimizer = MuonAdamW([ours], lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.flatten(1).clone()
        optimizer.step()
        reference.step()
    moved = (ours.detach() - kernel).flatten(1)
    assert (ours.detach().flatten(1) - theirs.detach()).norm() < 0.02 * moved.norm()  # bfloat16 has 8 bits: 0.4 %
    assert torch.equal(as_matrix(ours.detach()).sum(dim=1), as_matrix(ours.detach().clone()).sum(dim=1))


def test_muon_resumes():
    def descended(*, breaks: bool, remembers: bool = True) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8, bias=False)
        optimizer = MuonAdamW(layer.parameters(), lr=1e-2)
        for i in range(6):
            if breaks and i == 3:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = MuonAdamW(layer.parameters(), lr=1e-2)
                if remembers:
                    optimizer.load_state_dict(state)
            descend(optimizer, layer(torch.randn(4, 8)).square().mean())
        return layer.weight.detach()

    without = descended(breaks=False)
    assert torch.equal(descended(breaks=True), without)
    assert not torch.equal(descended(breaks=True, remembers=False), without)


def test_the_learning_rate_rises_and_falls():
    rates = [cosine_schedule(k / 100) for k in range(101)]
    assert rates[0] == 0.01 and max(rates) == rates[2] == 1 and rates[-1] == pytest.approx(0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert cosine_schedule(0.0, warmup=0.0) == 1


# Classifier, export


@pytest.mark.slow
def test_classifier_stage_writes_what_can_be_loaded(tmp_path):
    config = ClassifierConfig(steps=2, batch_size=4, **SHORT)
    model = train_classifier(composed(), tmp_path, config)
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    for ours, theirs in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-3, atol=1e-4)


def test_the_mean_of_two_models():
    pipe, other = tiny_pipeline(0), tiny_pipeline(1)
    before = [p.clone() for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters()]
    average(pipe, other)
    theirs = [p for part in (other.unet, other.text_encoder, other.vae) for p in part.parameters()]
    ours = [p for part in (pipe.unet, pipe.text_encoder, pipe.vae) for p in part.parameters()]
    assert any(not torch.equal(p, q) for p, q in zip(before, theirs, strict=True))
    for p, q, mean in zip(before, theirs, ours, strict=True):
        assert torch.allclose(mean, (p + q) / 2, atol=1e-6)


def test_no_mean_of_models_that_are_built_otherwise():
    pipe, other, others_words = tiny_pipeline(), tiny_pipeline(), tiny_pipeline()
    other.vae = autoencoder.new_autoencoder()
    others_words.tokenizer.add_tokens("theremin")
    before = weights_hash(pipe)
    with pytest.raises(ValueError, match="whose vae is built otherwise"):
        average(pipe, other)
    with pytest.raises(ValueError, match="different tokenizers"):
        average(pipe, others_words)
    assert weights_hash(pipe) == before


def test_nothing_is_written_into_the_installed_package(tmp_path):
    package = autoencoder.Path(autoencoder.__file__).parents[1]
    for inside in (package, package / "weights" / "riffling", package / "training" / ".." / "weights"):
        with pytest.raises(ValueError, match="lies within the installed package"):
            check_target(inside)
    (tmp_path / "link").symlink_to(package / "weights")
    with pytest.raises(ValueError, match="lies within the installed package"):
        check_target(tmp_path / "link" / "riffling")
    check_target(tmp_path)


def test_a_models_settings_are_those_of_its_clips():
    ours, theirs = settings_for(composed()), settings_for(recorded())
    assert ours.loop and 117 in ours.tempi_bpm and "rain" in ours.vocabulary
    assert not theirs.loop and theirs.tempi_bpm == () and {"my", "lake"} <= set(theirs.vocabulary)


def test_a_batch_of_each_stage_can_be_divided():
    data = composed()
    tasks = [
        autoencoder.AutoencoderTask(
            autoencoder.new_autoencoder(8), data, AutoencoderConfig(batch_size=4, crop=64, **SHORT)
        ),
        autoencoder.DecoderTask(autoencoder.new_autoencoder(8), data, DecoderConfig(batch_size=4, crop=64, **SHORT)),
    ]
    for task in tasks:
        batch = task.draw_batch(*generators(0, task.name, 0))
        half = part_of_batch(batch, 1, 2)
        assert torch.equal(half["noise"], batch["noise"][2:])
        again = task.draw_batch(*generators(0, task.name, 0))
        assert all(torch.equal(batch[name], again[name]) for name in batch)
