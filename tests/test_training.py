"""The training code on small inputs: what it composes, renders and writes in words, and that each network learns."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from external import require
from riffusion_lab.image import pixels_from_mel
from riffusion_lab.spectrogram import mel_from_waveform
from riffusion_lab.training import dataset
from riffusion_lab.training.captions import caption
from riffusion_lab.training.composer import DRUM_CHANNEL, STYLES, Composer
from riffusion_lab.training.effects import EFFECTS
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
    monkeypatch.setattr(dataset, "plan", lambda _=0: jobs)
    monkeypatch.setattr(dataset, "SHARD", 4)
    with ThreadPoolExecutor(1) as executor:
        dataset.Dataset.from_composer(tmp_path, executor)
    return tmp_path


def test_dataset_is_written_in_shards_and_taken_up_again(clips):
    files = sorted(clips.glob("[fp]*-*"))
    assert [f.name for f in files] == ["facts-0000.json", "facts-0001.json", "pixels-0000.npy", "pixels-0001.npy"]
    before = {f: f.stat().st_mtime_ns for f in files}
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"not complete: 4 of 8 clips are composed.*data --set seed=0"):
        dataset.Dataset.load(clips)
    with ThreadPoolExecutor(1) as executor:
        dataset.Dataset.from_composer(clips, executor)
    changed = {f.name for f in files if f.stat().st_mtime_ns != before[f]}
    assert changed == {"facts-0001.json", "pixels-0001.npy"}
    data = dataset.Dataset.load(clips)
    assert len(data) == 8
    assert data.picture(5).shape == (512, 512)
    assert data.picture(5).min() == 0  # the loudest spot is black
    assert data.facts[5]["label"] == list(EFFECTS)[1]


def test_another_seed_makes_other_clips(clips, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        dataset.Dataset.from_composer(tmp_path / "other", executor, seed=1)
    first, other = dataset.Dataset.load(clips), dataset.Dataset.load(tmp_path / "other")
    assert [fact["seed"] for fact in first.facts + other.facts] == list(range(16))
    assert not any((first.picture(i) == other.picture(i)).all() for i in range(8))


def test_an_unfinished_data_set_of_an_earlier_version_is_told_by_its_first_clips(clips, monkeypatch):
    """It has no plan; one that was finished by another plan is complete."""
    (clips / "plan.json").unlink()
    assert len(dataset.Dataset.load(clips)) == 8
    (clips / "facts-0001.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not complete: 4 of 8 clips are composed.*seed=0\)"):
        dataset.Dataset.load(clips)
    monkeypatch.setattr(dataset, "plan", lambda _=0: [("effect", "clock")] * 100)
    assert len(dataset.Dataset.load(clips)) == 4


def test_an_interrupted_composer_leaves_a_data_set_that_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "plan", lambda _=0: [("effect", name) for name in EFFECTS] * 2)
    monkeypatch.setattr(dataset, "SHARD", 4)
    make_shard, made = dataset.make_shard, []

    def interrupted(jobs, first_seed):
        made.append(first_seed)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make_shard(jobs, first_seed)

    monkeypatch.setattr(dataset, "make_shard", interrupted)
    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        dataset.Dataset.from_composer(tmp_path, executor, seed=3)
    with pytest.raises(FileNotFoundError, match=r"4 of 8 clips are composed.*--set seed=3.*from_composer\(.*seed=3\)"):
        dataset.Dataset.load(tmp_path)
    with ThreadPoolExecutor(1) as executor:
        assert len(dataset.Dataset.from_composer(tmp_path, executor, seed=3)) == 8
    assert made == [24, 28, 28]


def test_two_composers_in_one_folder_are_refused(clips):
    from riffusion_lab.files import locked_folder

    with locked_folder(clips, "locked"), ThreadPoolExecutor(1) as executor:
        with pytest.raises(OSError, match="another process is making the data set in .*use another folder"):
            dataset.Dataset.from_composer(clips, executor)


def test_no_dataset_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="training data"):
        dataset.Dataset.load(tmp_path)


# Fusions


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
