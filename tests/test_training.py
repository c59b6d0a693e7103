"""The training code on small inputs: what it composes, renders and writes in words, and that each network learns."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from external import require
from riffusion_lab import load_pipeline
from riffusion_lab.image import pixels_from_mel
from riffusion_lab.spectrogram import mel_from_waveform
from riffusion_lab.training import dataset, evaluation
from riffusion_lab.training.captions import caption
from riffusion_lab.training.composer import DRUM_CHANNEL, STYLES, Composer
from riffusion_lab.training.effects import EFFECTS
from riffusion_lab.training.targets import IGNORED
from riffusion_lab.training.vocabulary import (
    BEATS_PER_LOOP,
    CLASSES,
    CLIP_SECONDS,
    INSTRUMENTS,
    STYLE_NAMES,
    TEMPO_WORDS,
    bpm_of,
)

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
    assert right["texture"].tolist() == [IGNORED, 1]
    assert right["mode"].tolist() == [IGNORED, 1]


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
