"""The training code on small inputs: what it composes, renders and writes in words, and that each network learns."""

import copy
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from external import require
from riffusion_lab import load_pipeline
from riffusion_lab.hashing import weights_hash
from riffusion_lab.image import pixels_from_mel
from riffusion_lab.spectrogram import mel_from_waveform
from riffusion_lab.training import autoencoder, dataset, denoiser, evaluation, text
from riffusion_lab.training.__main__ import main
from riffusion_lab.training.captions import caption
from riffusion_lab.training.composer import DRUM_CHANNEL, STYLES, Composer
from riffusion_lab.training.effects import EFFECTS
from riffusion_lab.training.export import average, export
from riffusion_lab.training.run import Muon, descend, train
from riffusion_lab.training.vocabulary import (
    BEATS_PER_LOOP,
    CLASSES,
    CLIP_SECONDS,
    INSTRUMENTS,
    STYLE_NAMES,
    TEMPO_WORDS,
    bpm_of,
)
from tiny import tiny_pipeline

RATE = 24_000


def compose(kind: str, seed: int = 0):
    composer = Composer(np.random.default_rng(seed))
    if kind == "drums":
        return composer.drum_beat()
    return composer.solo(kind) if kind in INSTRUMENTS else composer.in_style(kind)


def test_tempi_are_whole_beats_in_a_clip():
    for n_beats in (n for counts in BEATS_PER_LOOP.values() for n in counts):
        assert abs(n_beats / bpm_of(n_beats) * 60 - CLIP_SECONDS) < 0.06  # half a bpm at the slowest


@pytest.mark.parametrize("kind", [*INSTRUMENTS, *STYLE_NAMES, "drums"])
def test_pieces_keep_to_their_loop_and_range(kind):
    for seed in range(8):
        piece = compose(kind, seed)
        assert piece.notes
        for note in piece.notes:
            assert 0 <= note.start < piece.n_beats
            assert note.duration > 0
            assert 0 < note.velocity < 128
            assert note.channel in piece.programs
        if kind in INSTRUMENTS:
            pitches = [note.pitch for note in piece.notes]
            assert INSTRUMENTS[kind].low <= min(pitches)
            assert max(pitches) <= INSTRUMENTS[kind].high
        assert piece.facts["drums"] == (DRUM_CHANNEL in piece.programs)


def test_the_same_seed_composes_the_same_piece():
    assert compose("jazz", 3) == compose("jazz", 3)
    assert compose("jazz", 3) != compose("jazz", 4)


def test_every_style_has_names_and_every_class_captions():
    assert set(STYLES) == set(STYLE_NAMES)
    assert len(set(CLASSES)) == len(CLASSES)
    assert set(EFFECTS) <= set(CLASSES)


def test_captions_name_what_they_mean_and_say_no_untruth():
    rng = np.random.default_rng(0)
    facts = {
        "kind": "solo",
        "label": "violin",
        "mode": "minor",
        "bpm": 47,
        "texture": "melody",
        "register": "high",
        "metre": 4,
    }
    captions = {caption(facts, rng) for _ in range(300)}
    assert len(captions) > 60
    assert all(any(name in words for name in INSTRUMENTS["violin"].names) for words in captions)
    told = " ".join(captions)
    assert "47 bpm" in told
    assert "sad" in told
    assert not any(word in told for word in ("happy", "fast", "low notes", "waltz", "chords"))
    for words in (caption(facts, rng, full=True) for _ in range(20)):
        assert "melody" in words
        assert "high notes" in words
        assert "47 bpm" in words or any(word in words for word in TEMPO_WORDS["slow"])


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_close_and_keep_their_length(name):
    sound = EFFECTS[name](np.random.default_rng(1), RATE)
    assert len(sound) == round(CLIP_SECONDS * RATE)
    assert np.isfinite(sound).all()
    assert sound.std() > 0
    steps = np.abs(np.diff(sound))
    assert abs(sound[0] - sound[-1]) <= np.quantile(steps, 0.999)  # the seam is a step like any other


def test_rendered_pieces_are_loops():
    require("fluidsynth")
    from riffusion_lab.training.render import Renderer

    renderer = Renderer(RATE)
    for kind in ("church bells", "ambient", "techno"):
        sound = renderer.render(compose(kind))
        assert sound.shape == (round(CLIP_SECONDS * RATE),)
        assert sound.std() > 1e-3
        # What rings over the end is in the beginning: a first pass, from silence, would begin with nothing.
        assert np.abs(sound[:24]).max() > 0
        steps = np.abs(np.diff(sound))
        assert abs(sound[0] - sound[-1]) <= 4 * np.quantile(steps, 0.99)
    pictures = []
    for piece in (compose("techno"), compose("techno"), compose("techno", seed=1)):
        mel = mel_from_waveform(torch.from_numpy(renderer.render(piece))[None], dataset.RENDER_PARAMS, loop=True)
        pictures.append(pixels_from_mel(mel, dataset.RENDER_PARAMS)[0].astype(float))
    first, again, other = pictures
    assert np.abs(first - again).mean() < 0.5 * np.abs(first - other).mean()


def test_a_missing_soundfont_is_named(tmp_path):
    from riffusion_lab.training.render import find_soundfont

    with pytest.raises(FileNotFoundError, match="nowhere.sf2.*install"):
        find_soundfont(tmp_path / "nowhere.sf2")


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Eight clips that need no synthesizer."""
    jobs = [("effect", name) for name in EFFECTS] * 2
    monkeypatch.setattr(dataset, "plan", lambda _: jobs)
    monkeypatch.setattr(dataset, "SHARD", 4)
    with ThreadPoolExecutor(1) as executor:
        dataset.make_dataset(tmp_path, executor)
    return tmp_path


def test_dataset_is_written_in_shards_and_taken_up_again(clips):
    files = sorted(clips.glob("*"))
    assert [f.name for f in files] == ["facts-0000.json", "facts-0001.json", "pixels-0000.npy", "pixels-0001.npy"]
    before = {f: f.stat().st_mtime_ns for f in files}
    files[1].unlink()
    with ThreadPoolExecutor(1) as executor:
        dataset.make_dataset(clips, executor)
    changed = {f.name for f in files if f.stat().st_mtime_ns != before[f]}
    assert changed == {"facts-0001.json", "pixels-0001.npy"}
    data = dataset.load_dataset(clips)
    assert len(data) == 8
    assert data.picture(5).shape == (512, 512)
    assert data.picture(5).min() == 0  # the loudest spot is black
    assert data.facts[5]["label"] == list(EFFECTS)[1]


def test_another_seed_makes_other_clips(clips, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        dataset.make_dataset(tmp_path / "other", executor, seed=1)
    first, other = dataset.load_dataset(clips), dataset.load_dataset(tmp_path / "other")
    assert [fact["seed"] for fact in first.facts + other.facts] == list(range(16))
    assert not any((first.picture(i) == other.picture(i)).all() for i in range(8))


def test_no_dataset_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="training data"):
        dataset.load_dataset(tmp_path)


def test_tokenizer_spells_everything_and_merges_what_it_was_taught(tmp_path):
    tokenizer = text.train_tokenizer(["church bells, 117 bpm", "happy piano"] * 3)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = type(tokenizer).from_pretrained(tmp_path)
    assert tokenizer.tokenize("Church bells") == ["church</w>", "bells</w>"]
    assert tokenizer.tokenize("117 bpm")[:3] == ["1</w>", "1</w>", "7</w>"]
    tokens = text.tokenize(tokenizer, ["Zürich 日本", ""])
    assert tokens.shape == (2, text.N_TOKENS)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == "zürich 日本"
    assert (tokens[1, 1:] == tokenizer.eos_token_id).all()


def test_folding_the_whitening_changes_nothing():
    torch.manual_seed(0)
    model = autoencoder.LatentAutoencoder(autoencoder.new_autoencoder())
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    model.train()
    for _ in range(3):
        model(pictures)
    model.eval()
    with torch.no_grad():
        before = model.whiten(model.vae.encode(pictures).latents)
        after = model.folded().encode(pictures).latents
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(model.whiten(before), before, atol=1e-2) or after.std() > 0


class Counter:
    """Something with a state."""

    def __init__(self):
        self.n = 0

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_training_is_taken_up_where_it_was_broken_off(tmp_path):
    counter, seen = Counter(), []

    def step(progress):
        counter.n += 1
        seen.append(progress)
        if len(seen) == 40:
            raise KeyboardInterrupt
        torch.zeros(1).add_(1)
        import time

        time.sleep(0.01)
        return torch.tensor(1.0)

    with pytest.raises(KeyboardInterrupt):
        train(step, {"counter": counter}, tmp_path / "run.pt", minutes=1 / 60, save_every_s=0.1)
    fresh = Counter()
    train(lambda p: seen.append(p) or torch.tensor(0.5), {"counter": fresh}, tmp_path / "run.pt", minutes=1 / 60)
    assert 5 <= fresh.n <= 40
    assert seen[40] > 0.05  # the time spent before the break counts
    assert seen[-1] < 1


def test_training_stops_at_a_loss_that_is_no_number(tmp_path):
    with pytest.raises(FloatingPointError, match="NaN at step 0"):
        train(lambda _: torch.tensor(float("nan")), {}, tmp_path / "run.pt", minutes=1)


@pytest.mark.slow
def test_denoiser_learns_from_both_latents_and_words(clips, tmp_path):
    data = dataset.load_dataset(clips)
    latents = np.random.default_rng(0).standard_normal((8, 4, 64, 64)).astype(np.float16)
    budget = {"minutes": 0.05, "text_minutes": 0.02}
    network, tokenizer = denoiser.train_denoiser(latents, data, tmp_path, **budget, compile_network=False)
    saved = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert saved["n_steps"] >= 1
    fresh = denoiser.TextDenoiser(denoiser.new_unet(), text.new_text_encoder(tokenizer))
    changed = [
        n
        for (n, p), (_, q) in zip(saved["network"].items(), fresh.state_dict().items(), strict=True)
        if not torch.equal(p, q)
    ]
    assert any(name.startswith("text_encoder") for name in changed)
    assert any(name.startswith("unet") for name in changed)
    _check_export(denoiser.assemble(network, tokenizer, autoencoder.new_autoencoder()), data, tmp_path / "model")


@pytest.mark.slow
def test_denoiser_starts_from_a_model(clips, tmp_path):
    latents, pipe = np.zeros((8, 4, 64, 64), np.float16), load_pipeline(device="cpu")
    before = [p.clone() for part in (pipe.unet, pipe.text_encoder) for p in part.parameters()]
    data = dataset.load_dataset(clips)
    network, tokenizer = denoiser.train_denoiser(
        latents, data, tmp_path, start_from=pipe, minutes=0, compile_network=False
    )
    assert tokenizer is pipe.tokenizer
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_the_model_that_ships_takes_the_steps_of_the_training_code():
    """Small ones at the end: out of a last step as wide as the others comes a mean of all details that could be."""
    pipe = load_pipeline(device="cpu")
    made = denoiser.assemble(SimpleNamespace(unet=pipe.unet, text_encoder=pipe.text_encoder), pipe.tokenizer, pipe.vae)
    noise_left = []
    for scheduler in (pipe.scheduler, made.scheduler):
        scheduler.set_timesteps(12)
        noise_left.append(scheduler.sigmas.tolist())
    assert noise_left[0] == noise_left[1]
    assert noise_left[0][0] > 30 and noise_left[0][-2] < 0.06


@pytest.mark.slow
def test_denoiser_is_taught_to_close_loops_as_it_does_in_generation(clips, tmp_path, monkeypatch):
    latents = np.random.default_rng(0).standard_normal((8, 4, 64, 64)).astype(np.float16)
    pipe, seen = load_pipeline(device="cpu"), []

    def note(unet, arguments):
        seen.append(("_conv_forward" in vars(unet.conv_in), int(arguments[1].min()), int(arguments[1].max())))

    pipe.unet.register_forward_pre_hook(note)
    for share in (1.0, 0.0):
        monkeypatch.setattr(denoiser, "CLOSING", share)
        budget = {"minutes": 0.02, "compile_network": False}
        denoiser.train_denoiser(latents, dataset.load_dataset(clips), tmp_path / str(share), start_from=pipe, **budget)
        circular, clearest, noisiest = zip(*seen, strict=True)
        assert set(circular) == {bool(share)}
        assert (max(noisiest) < 334) == bool(share)
        if not share:  # every batch has its clear and its noisy ones: one in each eighth of a draw from their density
            assert max(clearest) <= 1000 * (1 / 8) ** denoiser.NOISY
            assert min(noisiest) >= 999 * (7 / 8) ** denoiser.NOISY
        seen.clear()
    assert "_conv_forward" not in vars(pipe.unet.conv_in)


@pytest.mark.slow
def test_a_denoiser_that_fails_leaves_its_network_without_hooks(clips, tmp_path):
    latents, pipe = np.full((8, 4, 64, 64), np.nan, np.float16), load_pipeline(device="cpu")
    with pytest.raises(FloatingPointError, match="NaN at step 0"):
        denoiser.train_denoiser(
            latents, dataset.load_dataset(clips), tmp_path, start_from=pipe, minutes=1, compile_network=False
        )
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_the_unet_is_taught_where_in_frequency_it_is():
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
    reader = denoiser.PlaceReader(network)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        noise = torch.randn(4, 4, 16, 16)
        v, error = reader(noise, torch.full((4,), 500), torch.zeros(4, 77))
        assert v.shape == noise.shape
        descend(optimizer, error)
        errors.append(error.item())
    assert errors[0] > 0.4
    assert errors[-1] < 0.3, errors
    reader.remove_hooks()
    network(noise, torch.full((4,), 500), torch.zeros(4, 77))
    assert len(reader.features) == 3  # those of before


def test_half_cosines_tell_rows_apart():
    waves = denoiser.half_cosines(64)[..., 0]
    assert waves.shape == (16, 64)
    assert torch.allclose(waves.square().mean(dim=1), torch.tensor(0.5), atol=1e-5)
    apart = torch.cdist(waves.T, waves.T) + 10 * torch.eye(64)
    assert apart.min() > 1


def _check_export(pipe, data, folder):
    export(pipe, data, folder)
    about = json.loads((folder / "riffusion_lab.json").read_text())
    assert {"rain", "clock"} <= set(about["vocabulary"])
    assert 117 in about["tempi_bpm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert {part.dtype for part in (again.unet, again.vae, again.text_encoder)} == {torch.float32}
    picture = again("rain", num_inference_steps=1, output_type="np").images[0]
    assert picture.shape == (512, 512, 3)
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) < 40e6


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


def test_turns_are_whole_bars():
    assert denoiser._columns_per_bar({"bpm": 188, "metre": 4}) == 16
    assert denoiser._columns_per_bar({"bpm": 141, "metre": 4}) == 64  # three bars are no whole number of columns
    assert denoiser._columns_per_bar({"bpm": 141, "metre": 3}) == 16
    assert denoiser._columns_per_bar({"bpm": 129, "metre": 4}) == 64
    assert denoiser._columns_per_bar({}) == 1


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20_000, 4))
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # Moved by 3 along one axis and twice as wide along another: 3² + (2 − 1)².
    b = rng.standard_normal((20_000, 4)) * [1, 2, 1, 1] + [3, 0, 0, 0]
    assert evaluation.frechet_distance(a, b) == pytest.approx(10, rel=0.02)


def test_classifier_passes_over_what_has_no_answer():
    right = evaluation.targets([{"label": "rain"}, {"label": "piano", "texture": "chords", "mode": "minor"}])
    assert right["class"].tolist() == [CLASSES.index("rain"), CLASSES.index("piano")]
    assert right["texture"].tolist() == [evaluation.UNKNOWN, 1]
    assert right["mode"].tolist() == [evaluation.UNKNOWN, 1]


def test_autoencoder_is_of_the_format_of_diffusers(tmp_path):
    vae = autoencoder.new_autoencoder()
    vae.save_pretrained(tmp_path)
    latents = AutoencoderTiny.from_pretrained(tmp_path).encode(torch.zeros(1, 3, 512, 512)).latents
    assert latents.shape == (1, 4, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [{"decoder"}, {"decoder", "encoder"}], ids=["decoder", "both halves"])
def test_the_decoder_is_trained_on_alone_or_with_the_encoder(clips, tmp_path, monkeypatch, trained):
    monkeypatch.setattr(dataset, "HELD_OUT", 0.5)
    data, vae = dataset.load_dataset(clips), load_pipeline(device="cpu").vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    picture = data.pictures(data.split()[1][:1])
    known = autoencoder.fidelity([autoencoder.there_and_back(vae, picture)], [picture])
    assert known["psnr"] > 22 and known["convergence"] < 0.6
    both_halves = "encoder" in trained
    autoencoder.train_for_the_ear(vae, data, tmp_path, both_halves=both_halves, minutes=0.05)
    after = AutoencoderTiny.from_pretrained(tmp_path / "vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained
    silent = {name: torch.zeros_like(value) if "decoder" in name else value for name, value in before.items()}
    vae.load_state_dict(silent)  # -1 everywhere: as loud as can be
    worse = autoencoder.fidelity([autoencoder.there_and_back(vae, picture)], [picture])
    assert worse["psnr"] < known["psnr"] and worse["convergence"] > known["convergence"]


def test_grain_is_what_is_finer_than_five_pixels():
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)) / 127.5  # one grey level
    slow = torch.sin(torch.linspace(0, 6, 256)).expand(1, 1, 256, 256)
    grain = autoencoder.grain(4 * noise + slow)
    assert grain.shape == (1, 1, 62, 62)
    assert abs(grain.mean() - 10 * np.log10(16 * 24 / 25)) < 0.3  # a 25th of white noise is in its mean over 25 pixels
    assert autoencoder.grain(torch.zeros(1, 1, 64, 64)).mean() == pytest.approx(-20)


def test_too_little_grain_counts_as_an_error(clips, tmp_path, monkeypatch):
    data, losses = dataset.load_dataset(clips), []
    monkeypatch.setattr(np.random, "default_rng", lambda *_: np.random.Generator(np.random.PCG64(0)))  # one batch
    monkeypatch.setattr(autoencoder, "train", lambda step, *_, **__: losses.append(step(0.5)))
    for weight in (0, 1):
        monkeypatch.setattr(autoencoder, "GRAIN", weight)
        torch.manual_seed(0)
        autoencoder.train_for_the_ear(autoencoder.new_autoencoder(), data, tmp_path)
    assert losses[1] - losses[0] > 3  # dB: an untrained decoder paints smooth clouds


def test_amplitudes_are_those_of_the_image_convention():
    assert autoencoder.amplitudes(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [1, 0.0625, 0]


# Fusions, the text encoder's own lesson, tempo and diversity


def test_a_fusion_has_the_beat_of_one_style_and_the_tune_of_another():
    rng = np.random.default_rng(0)
    for seed in range(30):
        piece = Composer(np.random.default_rng(seed)).fusion()
        beat, tune = piece.facts["styles"]
        assert beat != tune
        assert DRUM_CHANNEL in piece.programs
        assert piece.n_beats in STYLES[beat].beats
        assert all(0 <= note.start < piece.n_beats and note.channel in piece.programs for note in piece.notes)
        words = caption(piece.facts, rng)
        assert any(name in words for name in STYLE_NAMES[beat]), words
        assert any(name in words for name in STYLE_NAMES[tune]), words


def solo_facts(label="violin", **other):
    return {"kind": "solo", "label": label, "mode": "minor", "bpm": 94, "texture": "melody", "register": "high"} | other


def test_facts_to_tell_are_the_clips():
    facts = [solo_facts(metre=4), {"kind": "fusion", "label": "fusion", "styles": ["jazz", "techno"], "drums": True}]
    right = text.facts_to_tell(facts)
    heard = [{CLASSES[i] for i in row.nonzero()[:, 0]} for row in right["heard"]]
    assert heard == [{"violin"}, {"jazz", "techno", "drums"}]
    for name, value in (("bpm", 94), ("texture", "melody"), ("register", "high"), ("metre", 4)):
        assert text.CHOICES[name][right[name][0]] == value
        assert right[name][1] == text.UNKNOWN


@pytest.mark.slow
def test_the_text_encoder_learns_to_tell_facts_near_its_anchors():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    facts = [solo_facts(label, bpm=bpm) for label in ("violin", "piano") for bpm in (47, 188)] * 4
    tokenizer = text.train_tokenizer([caption(fact, rng) for fact in facts])
    reader = text.CaptionReader(text.new_text_encoder(tokenizer))
    tokens = text.shortened(text.tokenize(tokenizer, [f"{fact['label']}, {fact['bpm']} bpm" for fact in facts]))
    right, optimizer, losses = text.facts_to_tell(facts), torch.optim.Adam(reader.parameters(), 1e-3), []
    for _ in range(60):
        loss = text.reading_loss(reader(tokens)[0], right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    told = reader(tokens)[0]["bpm"].argmax(dim=1)
    assert (told == right["bpm"]).float().mean() > 0.9  # what follows a comma is heard too
    anchors = text.anchors_of(reader.text_encoder, tokenizer)
    assert set(anchors) == {*CLASSES, ""}
    middle = text._anchor(anchors, {"label": "fusion", "styles": ["jazz", "techno"]}, "jazz techno")
    torch.testing.assert_close(middle, (anchors["jazz"] + anchors["techno"]) / 2)
    torch.testing.assert_close(text._anchor(anchors, facts[0], ""), anchors[""])


def test_only_padding_is_cut_off():
    tokenizer = text.train_tokenizer(["piano, slow", "jazz"])
    tokens = text.tokenize(tokenizer, ["piano, slow", "jazz"])
    short = text.shortened(tokens)
    assert short.shape[1] < tokens.shape[1]
    assert (tokens[:, short.shape[1] :] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("n_beats", [8, 11, 12, 16])
def test_tempo_is_read_from_a_picture(n_beats):
    loudness = np.zeros(512)
    for beat in range(n_beats):
        loudness[(round(beat * 512 / n_beats) + np.arange(8)) % 512] = np.linspace(1, 0, 8)
    picture = torch.from_numpy(np.broadcast_to(1 - 2 * loudness, (1, 1, 512, 512)).copy()).float()
    bpm = 60 * n_beats / CLIP_SECONDS
    assert evaluation.keeps_tempo(picture, bpm)
    assert evaluation.keeps_tempo(picture, 2 * bpm)  # an octave
    assert not evaluation.keeps_tempo(picture, 1.1 * bpm)


def test_diversity_is_the_spread_within_labels():
    embedding = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
    assert evaluation.diversity(embedding, ["a", "a", "b", "b", "alone"]) == pytest.approx(2.5)


def test_what_a_prompt_tells():
    fact = solo_facts(texture="bass line")
    told = {
        name: evaluation.is_told(fact, name, "gloomy violin bass line, 94 bpm") for name in ("texture", "mode", "bpm")
    }
    assert told == {"texture": True, "mode": True, "bpm": True}
    for name in told:
        assert not evaluation.is_told(fact, name, "happy violin melody, 194 beats")
    assert not evaluation.is_told({"label": "rain"}, "texture", "rain")


def test_a_step_over_the_seam_is_seen():
    wave = torch.sin(2 * torch.pi * torch.arange(512) / 512).expand(1, 1, 512, 512)
    assert evaluation.steps(wave)[0] == pytest.approx(2 * np.pi / 512, rel=0.01)  # it is steepest there
    assert evaluation.steps(wave.roll(128, dims=-1))[0] < 0.0002
    assert evaluation.steps(torch.linspace(-1, 1, 512).expand(1, 1, 512, 512))[0] == pytest.approx(2)


def test_likest_of_the_taught_is_found_however_it_is_turned():
    pictures = torch.rand(6, 1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    small = evaluation.thumbnails(pictures)
    assert small.shape == (6, 64, 64)
    again = evaluation.thumbnails([0.5 * pictures[4].roll(8 * 13, dims=-1) + 0.2])
    assert evaluation.likeness(again, small).tolist() == pytest.approx([1], abs=1e-4)
    assert evaluation.likeness(small[:2], small[2:]).max() < 0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")  # of the groups that are not there
def test_a_model_that_plays_the_held_out_clips_themselves_is_perfect(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "HELD_OUT", 0.5)
    monkeypatch.setattr(dataset, "plan", lambda _: [("effect", name) for name in ("rain", "waves")] * 8)
    with ThreadPoolExecutor(1) as executor:
        dataset.make_dataset(tmp_path, executor)
    data = dataset.load_dataset(tmp_path)
    ours = sorted(evaluation.held_out_halves(data)[0])

    def text_to_audio(_pipe, _prompts, seed, **_options):
        return [SimpleNamespace(image=Image.fromarray(data.picture(ours[i]))) for i in seed]

    monkeypatch.setattr(evaluation, "text_to_audio", text_to_audio)
    options = {"guidance_scale": 1.2}
    report = evaluation.evaluate(load_pipeline(device="cpu"), data, evaluation.load_classifier(), **options)
    assert (report["settings"]["guidance_scale"], report["settings"]["pag_applied_layers"]) == (1.2, ["up_blocks.0"])
    effects = report["groups"]["effects"]
    assert (effects["n"], effects["adherence"]) == (len(ours), 1)
    assert report["frechet"] == pytest.approx(0, abs=0.01)
    assert [report[name] for name in ("frechet_means", "diversity", "seam", "steps")] == [0, 1, 1, 1]
    alone = report["autoencoder"]
    assert alone["psnr"] > 22 and 0 < alone["convergence"] < 0.6
    assert alone["frechet"] > alone["frechet_means"] > 0 and alone["steps"] != 1
    assert report["likest_taught"]["generated"] < 0.98
    ours = sorted(evaluation.held_out_halves(data)[1])
    options = {"also_taught": [data], "other_half": True}
    report = evaluation.evaluate(load_pipeline(device="cpu"), data, evaluation.load_classifier(), **options)
    assert report["frechet"] == pytest.approx(0, abs=0.01)
    assert report["likest_taught"]["generated"] == pytest.approx(1)  # among all clips of the folder, itself


def evaluate_with(settings: str, monkeypatch) -> dict:
    """What `python -m riffusion_lab.training evaluate --instead SETTINGS` evaluates with."""
    asked = {}

    class Asked(Exception):
        pass

    def evaluate(pipe, _dataset, _classifier, **options):
        asked.update(options, scheduler=pipe.scheduler)
        raise Asked

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(dataset, "load_dataset", lambda _: None)
    monkeypatch.setattr("sys.argv", ["training", "evaluate", "--instead", settings])
    with pytest.raises(Asked):
        main()
    return asked


def test_other_settings_can_be_evaluated(monkeypatch):
    asked = evaluate_with('{"guidance_scale": 1.3, "sigma_max": 80}', monkeypatch)
    assert asked["guidance_scale"] == 1.3
    assert type(asked["scheduler"]).__name__ == "UniPCMultistepScheduler"
    asked["scheduler"].set_timesteps(12)
    assert asked["scheduler"].sigmas[0] == pytest.approx(80)
    assert "num_inference_steps" not in asked


def test_another_solver_can_be_evaluated(monkeypatch):
    given = {"scheduler": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "sigma_max": 60}
    scheduler = evaluate_with(json.dumps(given), monkeypatch)["scheduler"]
    assert (type(scheduler).__name__, scheduler.config.algorithm_type) == (given["scheduler"], "sde-dpmsolver++")
    scheduler.set_timesteps(12)
    assert scheduler.sigmas[0] == pytest.approx(60)  # it has no such argument, but reads it


def test_a_misspelt_setting_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "evaluate", "--instead", '{"sigmamax": 80}'])
    with pytest.raises(SystemExit, match="UniPCMultistepScheduler has no setting sigmamax; it has .*sigma_max"):
        main()


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


def test_muon_steps_alike_in_all_directions_and_else_as_adamw():
    torch.manual_seed(0)
    shapes = [(8, 6, 3, 3), (16, 8), (8,), (8, 3, 3, 3), (30, 8)]  # two matrices; bias, first layer, table of words
    gradients = [torch.randn(shape) for shape in shapes]

    def stepped(kind: type) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        groups = [{"params": parameters[:4]}, {"params": parameters[4:], "orthogonal": False}]
        optimizer = kind(groups, lr=1e-2)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        return [parameter.detach() for parameter in parameters]

    ours, theirs = stepped(Muon), stepped(torch.optim.AdamW)
    for matrix, gradient in zip(ours[:2], gradients, strict=False):
        directions = torch.linalg.svdvals(matrix.flatten(1))
        assert directions.max() / directions.min() < 2 < torch.linalg.cond(gradient.flatten(1))
        assert matrix.square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.3)
        assert (matrix * gradient).sum() < 0
    for parameter, other in zip(ours[2:], theirs[2:], strict=True):
        assert torch.equal(parameter, other)


def test_muon_goes_on_after_a_break():
    def descended(*, breaks: bool, remembers: bool = True) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8, bias=False)
        optimizer = Muon(layer.parameters(), lr=1e-2)
        for i in range(6):
            if breaks and i == 3:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = Muon(layer.parameters(), lr=1e-2)
                if remembers:
                    optimizer.load_state_dict(state)
            descend(optimizer, layer(torch.randn(4, 8)).square().mean())
        return layer.weight.detach()

    without = descended(breaks=False)
    assert torch.equal(descended(breaks=True), without)
    assert not torch.equal(descended(breaks=True, remembers=False), without)
