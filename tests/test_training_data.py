"""Data sets from folders: what is read, cut, captioned, measured, left out and split, and that nothing made is lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache as cached
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import RATE, chirp, tone
from riffusion_lab import Clip, SpectrogramParams
from riffusion_lab.audio import encode_audio
from riffusion_lab.image import Picture, save_image
from riffusion_lab.soundfiles import read_audio, read_parts
from riffusion_lab.training import (
    caption_files,
    captions,
    clip_cache,
    dataset,
    image_folder,
    sound_folder,
    sound_measures,
)
from riffusion_lab.training.clip_cache import EntryWriter, Source
from riffusion_lab.training.dataset import Dataset
from riffusion_lab.training.sound_measures import PITCH_CLASSES, find_beats, find_key, silent_share

LOW_RATE = 24_000
CLIP_S = 5.12


def noises(n_clips: float, seed: int, rate: int = LOW_RATE) -> np.ndarray:
    """Short tones of random pitch and length, one after the other: no two clips are alike."""
    rng = np.random.default_rng(seed)
    n_samples = round(n_clips * CLIP_S * rate)
    sound = np.zeros(n_samples, np.float32)
    start = 0
    while start < n_samples:
        length = int(rate * rng.uniform(0.1, 0.5))
        t = np.arange(min(length, n_samples - start)) / rate
        pitch = 100 * 2 ** rng.uniform(0, 5)
        sound[start : start + length] = rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * pitch * t) * np.exp(-4 * t)
        start += length
    return sound


def write(path: Path, sound: np.ndarray, rate: int = LOW_RATE, **tags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3", ".aiff": "AIFF"}
    path.write_bytes(encode_audio(np.atleast_2d(sound).astype(np.float32), rate, formats[path.suffix], **tags))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three files of one, two and three clips."""
    for number, name in enumerate(("flute", "harp", "rain"), start=1):
        write(tmp_path / "sounds" / f"{name}.wav", noises(number, number))
    return tmp_path / "sounds"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def entry_times(cache: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (cache / "entries").iterdir()}


# Reading


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_any_format_gives_the_picture_of_a_clip(tmp_path, cache, suffix, rate):
    sound = np.tile(chirp(200, 4_000, 441 * 512), 2)[:: 44_100 // rate if rate != 24_000 else 1]
    if rate == 24_000:
        sound = noises(2, 1)
    path = write(tmp_path / "sounds" / f"song{suffix}", np.stack([sound, 0.5 * sound]), rate)
    data = Dataset.from_folder(path.parent, cache, max_similarity=None)
    assert len(data) == 2
    waveform, _ = read_audio(path)
    clip = Clip.from_audio(waveform[:, : round(CLIP_S * rate)], rate)
    difference = np.abs(data.picture(0).astype(float) - np.asarray(clip.image.convert("L"), float))
    assert difference.mean() < 2  # grey levels; the clip is analysed at 44.1 kHz
    assert data.facts[0]["maximum"] == pytest.approx(clip.maximum, rel=0.02)


@pytest.mark.parametrize("rate", [8_000, 22_051, 96_000])
def test_odd_sample_rates(tmp_path, cache, rate):
    sound = np.concatenate([noises(1, 1, rate)[: round(CLIP_S * rate)], noises(1, 2, rate)])
    write(tmp_path / "sounds" / "a.wav", sound, rate)
    data = Dataset.from_folder(tmp_path / "sounds", cache)
    assert [fact["start_s"] for fact in data.facts] == [0, CLIP_S]
    assert bool(data.report["notes"]) == (rate == 8_000)


def test_channels_that_cancel_leave_the_first():
    sound = noises(1, 0)
    assert np.array_equal(sound_folder.mix_to_mono(np.stack([sound, 0.5 * sound]), "a"), 0.75 * sound)
    assert not sound_folder.mix_to_mono(np.zeros((2, 9), np.float32), "a").any()
    with pytest.warns(UserWarning, match=r"a\.wav: its channels cancel"):
        assert np.array_equal(sound_folder.mix_to_mono(np.stack([sound, -sound]), "a.wav"), sound)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_parts_of_a_file_are_the_whole(tmp_path, suffix):
    path = write(tmp_path / f"long{suffix}", np.stack([noises(4, 1), noises(4, 2)]))
    waveform, rate = read_audio(path)
    parts = list(read_parts(path, 3.0))
    assert [part.shape[1] for part, _ in parts[:-1]] == [3 * rate] * (len(parts) - 1)
    assert np.array_equal(np.concatenate([part for part, _ in parts], axis=1), waveform)


def test_a_torn_file_is_read_in_parts_to_where_it_ends(tmp_path):
    path = write(tmp_path / "long.flac", noises(6, 1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(OSError, match="long.flac is (damaged|truncated)"):
        list(read_parts(path, 3.0))
    with pytest.warns(UserWarning, match=r"s are left"):
        n_samples = sum(part.shape[1] for part, _ in read_parts(path, 3.0, torn="keep"))
    assert 0.5 < n_samples / (6 * CLIP_S * LOW_RATE) < 0.9


def test_unreadable_files_are_named_and_skipped(folder, cache):
    (folder / "notes.wav").write_text("no sound")
    (folder / "empty.mp3").touch()
    (folder / "cover.jpg").touch()
    (folder / ".hidden.wav").write_text("no sound")
    nan = noises(1, 5)
    nan[100] = np.nan
    import soundfile

    soundfile.write(folder / "nan.wav", nan, LOW_RATE, subtype="FLOAT")
    torn = write(folder / "torn.wav", noises(4, 6))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    data = Dataset.from_folder(folder, cache)
    assert set(data.report["skipped"]) == {"notes.wav", "empty.mp3", "nan.wav"}
    assert {fact["source"] for fact in data.facts} == {"flute.wav", "harp.wav", "rain.wav", "torn.wav"}
    summary = data.summary()
    for words in ("From 4 of 7 files", "notes.wav", "empty.mp3", "NaN", "torn.wav is truncated", "1 other files"):
        assert words in summary
    with pytest.raises(OSError, match=r"empty.mp3.*strict=False"):
        Dataset.from_folder(folder, cache.with_name("other"), strict=True)
    for name in data.report["skipped"]:
        (folder / name).unlink()
    for folder_of_cache in (cache, cache.with_name("third")):  # also if a part of it was used before
        with pytest.raises(OSError, match=r"torn.wav is truncated.*strict=False"):
            Dataset.from_folder(folder, folder_of_cache, strict=True)


@pytest.mark.parametrize(
    "files, error, words",
    [
        ([], ValueError, "no sound files.*pass a folder"),
        (["a.png"], ValueError, "from_images"),
        (["a.pdf"], ValueError, r"extensions \.pdf"),
    ],
)
def test_folders_without_sounds(tmp_path, cache, files, error, words):
    (tmp_path / "sounds").mkdir()
    for name in files:
        (tmp_path / "sounds" / name).touch()
    with pytest.raises(error, match=words):
        Dataset.from_folder(tmp_path / "sounds", cache)
    assert not cache.exists()


def test_no_folder(tmp_path, folder, cache):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Dataset.from_folder(tmp_path / "nowhere", cache)
    with pytest.raises(NotADirectoryError, match="flute.wav' is a file"):
        Dataset.from_folder(folder / "flute.wav", cache)
    with pytest.raises(NotADirectoryError, match="rain.wav' is a file"):
        Dataset.from_folder(folder, folder / "rain.wav")


def test_sub_folders_links_and_the_cache_inside(folder):
    write(folder / "a" / "b" / "Zürich 日本.wav", noises(1, 9))
    os.symlink(folder, folder / "a" / "loop", target_is_directory=True)
    data = Dataset.from_folder(folder, folder / "cache")
    assert len(data.files) == 4
    assert Dataset.from_folder(folder, folder / "cache").fingerprint() == data.fingerprint()


# Cutting


def test_cuts_go_on_over_the_sections(monkeypatch, tmp_path):
    sound = noises(12, 0)
    path = write(tmp_path / "a.wav", sound)
    monkeypatch.setattr(sound_folder, "SECTION_S", 10)
    settings = sound_folder.CutSettings(hop_s=2.0, on_beat=False, silence_db=-60)
    reason = sound_folder.make_entry(Source.of(path, tmp_path), folder=tmp_path, settings=settings, torn="error")
    assert reason is None
    entry = json.loads(next(tmp_path.glob("*.json")).read_text())
    starts = [fact["start_s"] for fact in entry["facts"]]
    assert starts == [2.0 * i for i in range(len(starts))]
    assert 12 * CLIP_S - CLIP_S - 2 < starts[-1] <= 11 * CLIP_S + 1e-3
    pictures = np.load(next(tmp_path.glob("*[0-9a-f].npy")))
    read, _ = read_audio(path)
    for i in (0, 4, 5, 9, 10):
        cut = read[:, int(starts[i] * LOW_RATE) :][:, : sound_folder.N_CLIP]
        picture, _ = sound_folder._draw(cut[0].copy(), {})
        assert np.array_equal(pictures[i], picture)


def test_cuts_after_a_section_whose_beats_end_early(monkeypatch, tmp_path):
    path = write(tmp_path / "a.wav", noises(4, 0))
    found = iter([sound_measures.Beats(60.0, np.array([0.0, 1.0, 2.0])), None])
    monkeypatch.setattr(sound_folder, "SECTION_S", 10)
    monkeypatch.setattr(sound_folder, "find_beats", lambda *_: next(found))
    settings = sound_folder.CutSettings(hop_s=CLIP_S, on_beat=True, silence_db=-60)
    sound_folder.make_entry(Source.of(path, tmp_path), folder=tmp_path, settings=settings, torn="error")
    entry = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [fact["start_s"] for fact in entry["facts"]] == [0, 10, 15.12] and not entry["dropped"]
    pictures = np.load(next(tmp_path.glob("*[0-9a-f].npy")))
    read, _ = read_audio(path)
    picture, _ = sound_folder._draw(read[0, 10 * LOW_RATE :][: sound_folder.N_CLIP].copy(), {})
    assert np.array_equal(pictures[1], picture)


@pytest.mark.slow
def test_cuts_on_the_beat(tmp_path, cache):
    beats = np.arange(0.3, 40, 60 / 96)
    write(tmp_path / "sounds" / "beat.wav", clicks(beats, 40))
    write(tmp_path / "sounds" / "free.wav", noises(4, 1))
    data = Dataset.from_folder(tmp_path / "sounds", cache, on_beat=True, max_similarity=None)
    on_beat = [fact for fact in data.facts if fact["is_on_beat"]]
    assert {fact["source"] for fact in on_beat} == {"beat.wav"}
    assert all(np.abs(beats - fact["start_s"]).min() < 0.04 for fact in on_beat)
    starts = [fact["start_s"] for fact in on_beat]
    assert len(starts) >= 5 and min(np.diff(starts)) >= CLIP_S
    assert "Cut on the beat: " in data.summary()
    assert all(fact["tempo_bpm"] == pytest.approx(96, rel=0.01) for fact in on_beat)


def test_silence_and_short_files_are_left_out(tmp_path, cache):
    sound = noises(3, 1)
    sound[sound_folder.N_CLIP * 9 // 8 : sound_folder.N_CLIP * 15 // 8] = 0
    write(tmp_path / "sounds" / "song.wav", sound)
    write(tmp_path / "sounds" / "short.wav", noises(0.9, 2))
    data = Dataset.from_folder(tmp_path / "sounds", cache)
    assert [fact["start_s"] for fact in data.facts] == [0, 2 * CLIP_S]
    assert data.report["dropped"] == {"silent": 1, "shorter than a clip": 1}
    with pytest.raises(ValueError, match=r"no clips of 2 file\(s\): 3 silent; 1 shorter than a clip|shorter.*silent"):
        Dataset.from_folder(tmp_path / "sounds", cache.with_name("loud"), silence_db=0)


def test_share_of_silence():
    sound = np.concatenate([tone(440, RATE), 1e-4 * tone(440, RATE)])
    assert silent_share(sound, RATE, -60) == 0.5
    assert silent_share(sound, RATE, -100) == 0
    ticks = np.tile(np.concatenate([tone(440, RATE // 10), np.zeros(RATE * 4 // 10)]), 10)
    assert silent_share(ticks, RATE, -60) == pytest.approx(4 / 50)


# Near-duplicates


def test_the_same_music_twice_is_one_clip(tmp_path, cache):
    sound = noises(2, 1)
    write(tmp_path / "sounds" / "a.wav", sound)
    write(tmp_path / "sounds" / "b.mp3", 0.3 * sound)
    write(tmp_path / "sounds" / "c.wav", noises(2, 2))
    data = Dataset.from_folder(tmp_path / "sounds", cache)
    assert [fact["source"] for fact in data.facts] == ["a.wav", "a.wav", "c.wav", "c.wav"]
    assert data.report["dropped"] == {"near-duplicates": 2}
    both = Dataset.from_folder(tmp_path / "sounds", cache, max_similarity=None)
    assert len(both) == 6


def test_near_duplicates_of_many_clips_are_those_of_a_plain_comparison(monkeypatch):
    monkeypatch.setattr(clip_cache, "BLOCK", 16)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((700, 1024)).astype(np.float32)
    copied = rng.integers(0, 700, 80), rng.integers(0, 700, 80)
    vectors[copied[0]] = vectors[copied[1]] + 0.1 * rng.standard_normal((80, 1024))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for i, vector in enumerate(vectors):
        kept = [j for j in range(i) if not expected[j]]
        expected.append(bool(kept) and (vectors[kept] @ vector).max() > 0.9)
    groups = np.split(vectors, [3, 10, 400, 650])
    assert 20 < sum(expected) < 80
    assert clip_cache.near_duplicates(groups, 0.9).tolist() == expected


# Tempo and key


def clicks(times: np.ndarray, duration_s: float, seed: int = 0) -> np.ndarray:
    """Kick and snare in turn."""
    rng = np.random.default_rng(seed)
    sound = np.zeros(round(duration_s * LOW_RATE), np.float32)
    for number, at in enumerate(times):
        t = np.arange(round(0.2 * LOW_RATE)) / LOW_RATE
        hit = rng.standard_normal(len(t)) if number % 2 else np.sin(2 * np.pi * 60 * t)
        start = round(at * LOW_RATE)
        end = min(len(sound), start + len(t))
        sound[start:end] += (0.3 * hit * np.exp(-30 * t))[: end - start]
    return sound


@pytest.mark.parametrize("bpm", [67, 92, 111, 128, 150, 174])
def test_tempo_up_to_octaves(bpm):
    beats = find_beats(clicks(np.arange(0.1, 29.5, 60 / bpm), 30), LOW_RATE)
    assert beats is not None
    octaves = np.log2(beats.tempo_bpm / bpm)
    assert abs(octaves - round(octaves)) < np.log2(1.01)


def test_no_tempo_where_there_is_none():
    rng = np.random.default_rng(0)
    irregular = np.cumsum(rng.exponential(0.5, 58))
    sounds = [
        0.1 * rng.standard_normal(20 * LOW_RATE),
        np.zeros(20 * LOW_RATE),
        tone(440, 20 * LOW_RATE, rate=LOW_RATE),
        clicks(irregular[irregular < 29], 30),
    ]
    assert [find_beats(sound.astype(np.float32), LOW_RATE) for sound in sounds] == [None] * 4


def cadence(tonic: int, mode: str) -> np.ndarray:
    """I IV V I V IV V I, eight seconds twice, in harmonic minor where it is minor."""
    scale = (0, 2, 4, 5, 7, 9, 11) if mode == "major" else (0, 2, 3, 5, 7, 8, 10)
    rng = np.random.default_rng(tonic)
    chords = []
    for root in (0, 3, 4, 0, 4, 3, 4, 0) * 2:
        t = np.arange(LOW_RATE) / LOW_RATE
        notes = [48 + tonic + scale[(root + step) % 7] + 12 * ((root + step) // 7) for step in (0, 2, 4)]
        if mode == "minor" and root == 4:
            notes[1] += 1  # the leading note
        notes.append(notes[0] - 12)
        waves = [
            np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * h * t + rng.random()) / h
            for note in notes
            for h in (1, 2, 3)
        ]
        chords.append(np.sum(waves, axis=0) * np.exp(-2 * t))
    return (0.05 * np.concatenate(chords)).astype(np.float32)


def test_keys_of_cadences():
    found = {}
    for mode in ("major", "minor"):
        for tonic in range(0, 12, 2 if mode == "major" else 3):
            found[f"{PITCH_CLASSES[tonic]} {mode}"] = find_key(cadence(tonic, mode), LOW_RATE)
    assert all(key in (name, None) for name, key in found.items()), found
    assert sum(key is not None for key in found.values()) >= 5


def test_no_key_where_there_is_none():
    rng = np.random.default_rng(0)
    assert find_key(0.1 * rng.standard_normal(10 * LOW_RATE).astype(np.float32), LOW_RATE) is None
    assert find_key(np.zeros(10 * LOW_RATE, np.float32), LOW_RATE) is None
    assert find_key(clicks(np.arange(0, 9, 0.5), 10), LOW_RATE) is None


def test_measures_become_words_that_do_not_contradict_the_caption():
    def facts(caption: str) -> dict:
        return {"caption": caption, "tempo_bpm": 92.3, "key": "A minor"}

    texts = ["calm harp", "techno, 140 BPM", "a waltz in F# major", ""]
    data = Dataset([], np.zeros((4, 2), int), [facts(text) for text in texts])
    rng = np.random.default_rng(0)
    full = [data.caption(i, rng, full=True) for i in range(4)]
    assert full == [
        "calm harp, 92 bpm, A minor",
        "techno, 140 BPM, A minor",
        "a waltz in F# major, 92 bpm",
        "92 bpm, A minor",
    ]
    some = {data.caption(0, rng) for _ in range(60)}
    assert some == {"calm harp", "calm harp, 92 bpm", "calm harp, A minor", "calm harp, 92 bpm, A minor"}


# Captions


def test_captions_come_from_the_first_place_that_has_one(tmp_path, cache):
    folder = tmp_path / "sounds"
    for number, name in enumerate(("listed", "beside", "tagged", "03_slow-piano_2", "deep/007")):
        tags = {"title": "Warm pad", "comment": "http://x.org"} if name != "deep/007" else {}
        if name == "03_slow-piano_2":
            tags = {"title": "Track 03", "comment": '{"seed": 1}'}
        write(folder / f"{name}.flac", noises(1, number), **tags)
    write(folder / "deep" / "rain.flac", noises(1, 9))
    (folder / "listed.txt").write_text("no")
    (folder / "beside.txt").write_text("\ufeffcalm flute,\n lullaby\n", encoding="utf-8")
    (folder / "captions.jsonl").write_text('{"file": "./listed.flac", "caption": "fast  techno", "label": "club"}\n\n')
    (folder / "deep" / "captions.jsonl").write_text('{"file": "rain.flac", "caption": "heavy rain"}')
    data = Dataset.from_folder(folder, cache)
    found = {fact["source"]: (fact["caption"], fact["caption_source"]) for fact in data.facts}
    assert found == {
        "listed.flac": ("fast techno", "captions.jsonl"),
        "beside.flac": ("calm flute, lullaby", ".txt"),
        "tagged.flac": ("Warm pad", "tags"),
        "03_slow-piano_2.flac": ("slow piano", "name"),
        "deep/007.flac": ("deep", "name"),
        "deep/rain.flac": ("heavy rain", "captions.jsonl"),
    }
    for words in ("2 from captions.jsonl", "2 from names", "1 from tags", "1 from .txt files"):
        assert words in data.summary()
    assert [data.label(i) for i in range(len(data))].count("club") == 1
    # Captions may be changed without making pictures again
    before = entry_times(cache)
    (folder / "beside.txt").write_text("loud flute")
    again = Dataset.from_folder(folder, cache, label_from_folder=True)
    assert entry_times(cache) == before
    assert {fact["caption"] for fact in again.facts} >= {"loud flute"}
    assert {again.label(i) for i in range(len(again))} == {None, "club", "deep"}


@pytest.mark.parametrize(
    "name, source, text, expected",
    [
        ("Deep_House/kick 1.wav", "name", "kick", "Deep House, kick"),
        ("a/techno/loop.wav", "name", "a", "techno, a"),
        ("techno/Techno-Kick.wav", "name", "Techno-Kick", "Techno-Kick"),
        ("hip_hop/hip-hop beat.wav", "name", "hip-hop beat", "hip-hop beat"),
        ("pop/popcorn.wav", "name", "popcorn", "pop, popcorn"),
        ("techno/001.wav", "name", "techno", "techno"),
        ("03/kick.wav", "name", "kick", "kick"),
        ("kick.wav", "name", "kick", "kick"),
        ("techno/kick.wav", "tags", "Warm pad", "Warm pad"),
        ("techno/kick.wav", ".txt", "a drum", "a drum"),
        ("techno/kick.wav", "captions.jsonl", "a drum", "a drum"),
    ],
)
def test_a_label_from_the_folder_is_a_caption_word_where_only_the_name_is_known(name, source, text, expected):
    caption = caption_files.label_by_folder(name, caption_files.Caption(text, source))
    assert caption.text == expected and caption.names_folder == (expected != text)
    assert caption.label == (name.split("/")[-2] if "/" in name else None)
    listed = caption_files.Caption(text, source, label="club")
    assert caption_files.label_by_folder(name, listed) == listed


def test_labels_in_captions_are_in_the_summary(tmp_path, cache):
    for number, name in enumerate(("techno/kick", "techno/techno beat", "harp")):
        write(tmp_path / "sounds" / f"{name}.wav", noises(1, number))
    data = Dataset.from_folder(tmp_path / "sounds", cache, label_from_folder=True)
    assert {fact["caption"] for fact in data.facts} == {"techno, kick", "techno beat", "harp"}
    assert "which is the label, was added to the captions of 1 file(s)" in data.summary()
    plain = Dataset.from_folder(tmp_path / "sounds", cache)
    assert {fact["caption"] for fact in plain.facts} == {"kick", "techno beat", "harp"}
    assert "which is the label" not in plain.summary()


@pytest.mark.parametrize(
    "name, words",
    [
        ("01 - Slow Piano.wav", "Slow Piano"),
        ("happy_drums_(2).wav", "happy drums"),
        ("80s synth-pop 3.wav", "80s synth-pop"),
        ("8-bit theme.mp3", "8-bit theme"),
        ("birds/Track 7.wav", "birds"),
        ("birds/Song nr 7.wav", "birds"),
        ("123.wav", ""),
    ],
)
def test_names_as_captions(name, words):
    assert caption_files.caption_from_name(name) == words


@pytest.mark.parametrize(
    "lines, words",
    [
        (
            ['{"file": "a.wav", "caption": "x"}', '{"file": "a.wav", "caption": "y"}'],
            "line 2: a second caption.*line 1",
        ),
        (['{"file": "a.wav"'], "line 1: not JSON"),
        (["", '["a.wav"]'], "line 2.*not a JSON object"),
        (['{"file_name": "a.wav", "text": "x"}'], 'line 1.*expected a line such as {"file"'),
    ],
)
def test_lists_of_captions_that_are_wrong(folder, cache, lines, words):
    (folder / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        Dataset.from_folder(folder, cache)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["a", "z"])
def test_two_lists_with_different_captions_of_a_file(tmp_path, cache, name):
    write(tmp_path / "sounds" / name / "x.wav", noises(2, 0))
    (tmp_path / "sounds" / "captions.jsonl").write_text(f'{{"file": "{name}/x.wav", "caption": "slow"}}')
    inner = tmp_path / "sounds" / name / "captions.jsonl"
    inner.write_text('{"file": "x.wav", "caption": "fast"}')
    with pytest.raises(ValueError, match=r"a second caption for .*captions\.jsonl has: keep one"):
        Dataset.from_folder(tmp_path / "sounds", cache)
    inner.write_text('{"file": "x.wav", "caption": "slow"}')
    assert Dataset.from_folder(tmp_path / "sounds", cache).facts[0]["caption"] == "slow"


def test_a_list_may_give_a_label_alone(folder, cache):
    (folder / "captions.jsonl").write_text('{"file": "harp.wav", "caption": "", "label": "strings"}')
    data = Dataset.from_folder(folder, cache)
    found = {fact["source"]: (fact["caption"], fact["caption_source"], fact["label"]) for fact in data.facts}
    assert found["harp.wav"] == ("harp", "name", "strings")


def test_listed_files_that_are_missing(folder, cache):
    (folder / "captions.jsonl").write_text(
        '{"file": "gone.wav", "caption": "x"}\n{"file": "harp.wav", "caption": "h"}\n' * 2
    )
    with pytest.warns(UserWarning, match=r"names 1 file\(s\) that are not there: gone.wav"):
        Dataset.from_folder(folder, cache)
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        Dataset.from_folder(folder, cache, strict=True)


# Split


def test_files_are_split_for_ever(tmp_path, cache):
    sounds = tmp_path / "sounds"
    for i in range(2):
        write(sounds / f"{i}.wav", noises(2, i))
    data = Dataset.from_folder(sounds, cache)

    def parts(data: Dataset) -> dict[str, str]:
        of = {}
        for part, indices in zip(("train", "test"), data.split(), strict=True):
            for i in indices:
                assert of.setdefault(data.facts[i]["source"], part) == part
        return of

    first = parts(data)
    assert sorted(first.values()) == ["test", "train"]
    for i in range(2, 5):
        write(sounds / f"0{i}.wav", noises(1, i))
    later = parts(Dataset.from_folder(sounds, cache))
    assert len(later) == 5 and first.items() <= later.items()


def test_split_is_that_of_names_alone_and_has_both_parts():
    names = [f"song {i}.mp3" for i in range(2_000)]
    split = clip_cache.split_files(names, {})
    assert list(split.values()).count("test") == pytest.approx(0.08 * 2_000, abs=40)
    assert clip_cache.split_files(names[::3], {}) == {name: split[name] for name in names[::3]}
    assert clip_cache.held_out_share("song.mp3") == pytest.approx(0.421728)  # must never change
    before = {name: "train" if part == "test" else "test" for name, part in list(split.items())[:50]}
    assert clip_cache.split_files(names, before) == split | before
    for start in range(0, 60, 2):
        assert set(clip_cache.split_files(names[start : start + 2], {}).values()) == {"train", "test"}


def test_a_single_file_is_split_by_time(tmp_path, cache):
    write(tmp_path / "sounds" / "a.wav", noises(6, 0))
    data = Dataset.from_folder(tmp_path / "sounds", cache, hop_s=2.56)
    training, held_out = data.split()
    end = max(data.facts[i]["start_s"] for i in training) + CLIP_S
    assert len(held_out) >= 1 and len(training) >= 5
    assert end <= min(data.facts[i]["start_s"] for i in held_out) + 1e-3
    assert "single file" in data.summary()
    # With other files each clip stays in its part; also where an earlier version made the data set
    before = parts_of_clips(data)
    for number, name in enumerate("bcd"):
        write(tmp_path / "sounds" / f"{name}.wav", noises(1, 1 + number))
        if name == "d":
            index = json.loads((cache / "clips.json").read_text())
            assert index.pop("held_out_from_s") == {"a.wav": min(data.facts[i]["start_s"] for i in held_out)}
            (cache / "clips.json").write_text(json.dumps(index))
        again = Dataset.from_folder(tmp_path / "sounds", cache, hop_s=2.56)
        assert before.items() <= parts_of_clips(again).items()
        assert "a.wav was once the only file: its last clips stay held out" in again.summary()
    # When it is alone again, too
    for name in "bcd":
        (tmp_path / "sounds" / f"{name}.wav").unlink()
    assert parts_of_clips(Dataset.from_folder(tmp_path / "sounds", cache, hop_s=2.56)) == before


def parts_of_clips(data: Dataset) -> dict[tuple[str, float], str | None]:
    """File and time of each clip → its part."""
    return {(fact["source"], fact["start_s"]): fact["split"] for fact in data.facts}


def entry(name: str, n_clips: int, hop_s: float = CLIP_S) -> clip_cache.Entry:
    return clip_cache.Entry(name, name, [{"start_s": hop_s * i} for i in range(n_clips)])


@pytest.mark.parametrize("first", ["song 0.mp3", "a.wav", "live.flac"])
def test_shares_stay_near_eight_percent_while_a_data_set_grows_from_one_file(first):
    """Files are held out by chance: of n files 8 %, give or take sqrt(0.08 * 0.92 / n), here three times that."""
    entries = [entry(first, 200)]
    split, parts = clip_cache.split_entries(entries, clip_cache.Split())
    assert parts == ["train"] * 184 + ["test"] * 16
    stays = parts
    for number in range(400):
        entries.append(entry(f"{number}.wav", 20))
        if number in (0, 1, 9, 99, 399):
            split, parts = clip_cache.split_entries(entries, split)
            assert parts[:200] == stays
            share = parts.count("test") / len(parts)
            if number >= 99:
                assert abs(share - 0.08) < 3 * np.sqrt(0.08 * 0.92 / (number + 1))


def test_a_file_that_is_left_alone_is_split_by_time_with_a_warning():
    entries = [entry("a.wav", 10), entry("b.wav", 10)]
    split, _ = clip_cache.split_entries(entries, clip_cache.Split())
    for kept in entries:
        with pytest.warns(UserWarning, match=f"{kept.name} is the only file that is left.*whatever they were before"):
            _, parts = clip_cache.split_entries([kept], split)
        assert parts == ["train"] * 9 + ["test"]


def test_a_single_file_that_grows_keeps_its_parts_and_one_that_shrinks_says_so():
    split, parts = clip_cache.split_entries([entry("a.wav", 25)], clip_cache.Split())
    assert parts == ["train"] * 23 + ["test"] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grown, parts = clip_cache.split_entries([entry("a.wav", 40)], split)
    assert parts == ["train"] * 23 + ["test"] * 17 and grown == split
    with pytest.warns(UserWarning, match="a.wav is the only file that is left of the data set, or has changed"):
        _, parts = clip_cache.split_entries([entry("a.wav", 12)], split)
    assert parts == ["train"] * 11 + ["test"]


def test_too_few_clips(tmp_path, cache):
    write(tmp_path / "sounds" / "a.wav", noises(1, 0))
    with pytest.raises(ValueError, match=r"1 clip\(s\) of a single file.*at least two"):
        Dataset.from_folder(tmp_path / "sounds", cache)
    (tmp_path / "sounds" / "b.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"of a single file.*1 other file\(s\) cannot be read, such as: .*b\.wav"):
        Dataset.from_folder(tmp_path / "sounds", cache)
    write(tmp_path / "sounds" / "b.wav", noises(2, 1))
    training, held_out = Dataset.from_folder(tmp_path / "sounds", cache).split()
    assert len(training) + len(held_out) == 3 and len(held_out) >= 1


# Taken up again


def test_taken_up_where_it_was_interrupted(folder, cache, monkeypatch):
    whole = sound_folder.cut_file

    def interrupted(source, *rest, **options):
        whole(source, *rest, **options)
        if source.name == "rain.wav":
            raise KeyboardInterrupt

    monkeypatch.setattr(sound_folder, "cut_file", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) as caught:
            Dataset.from_folder(folder, cache)
        assert "call again" in caught.value.__notes__[0]
        with pytest.raises(FileNotFoundError, match="not complete"):
            Dataset.load(cache)
        before = entry_times(cache)
        assert len(before) == 6  # of two files
    monkeypatch.setattr(sound_folder, "cut_file", whole)
    data = Dataset.from_folder(folder, cache)
    assert before.items() <= entry_times(cache).items()
    assert len(data) == 6
    assert len(Dataset.load(cache)) == 6
    assert Dataset.load(cache).fingerprint() == data.fingerprint()


def test_only_changed_files_are_made_again(folder, cache):
    first = Dataset.from_folder(folder, cache)
    before = entry_times(cache)
    write(folder / "harp.wav", noises(2, 77))
    os.utime(folder / "harp.wav", ns=(1, 1))
    (folder / "rain.wav").unlink()
    data = Dataset.from_folder(folder, cache)
    assert {fact["source"] for fact in data.facts} == {"flute.wav", "harp.wav"}
    after = entry_times(cache)
    assert len(before.keys() & after.keys()) == 6 and len(after) == 9  # that of the old harp is gone
    assert data.fingerprint() != first.fingerprint()
    assert not np.array_equal(data.picture(1), noises(1, 0))


def test_a_broken_off_entry_counts_for_nothing(folder, cache):
    source = Source.of(folder / "harp.wav", folder)
    cache.mkdir()
    with pytest.raises(RuntimeError, match="disk"), EntryWriter(cache, source) as writer:
        writer.add(np.zeros((512, 512), np.uint8), {})
        raise RuntimeError("disk")
    assert list(cache.iterdir()) == []
    with EntryWriter(cache, source) as writer:
        for level in range(12):
            writer.add(np.full((512, 512), level, np.uint8), {"level": level})
    pictures = np.load(cache / f"{source.key}.npy", mmap_mode="r")
    assert pictures.shape == (12, 512, 512)
    assert pictures[:, 0, 0].tolist() == list(range(12)) == pictures[:, -1, -1].tolist()


def test_a_cache_belongs_to_one_data_set(folder, cache, tmp_path):
    Dataset.from_folder(folder, cache)
    with pytest.raises(ValueError, match=r"hop_s=5.12, not hop_s=2.0: use another cache"):
        Dataset.from_folder(folder, cache, hop_s=2)
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(ValueError, match="made with folder="):
        Dataset.from_folder(tmp_path / "other", cache)
    with pytest.raises(ValueError, match="holds other files"):
        Dataset.from_folder(tmp_path / "other", folder)
    with pytest.raises(ValueError, match="made from files"), ThreadPoolExecutor(1) as executor:
        Dataset.from_composer(cache, executor)


def test_two_calls_at_once_in_one_cache_are_refused(folder, cache, monkeypatch):
    """Each would delete what the other is writing."""
    begun, may_end = threading.Event(), threading.Event()
    whole = sound_folder.cut_file

    def slow(*arguments, **options):
        begun.set()
        assert may_end.wait(60)
        return whole(*arguments, **options)

    monkeypatch.setattr(sound_folder, "cut_file", slow)
    with ThreadPoolExecutor(1) as executor:
        first = executor.submit(Dataset.from_folder, folder, cache)
        assert begun.wait(60)
        parts = list((cache / "entries").glob("*.part"))
        for options in ({}, {"hop_s": 2.0}):
            with pytest.raises(OSError, match="another process is making the data set in .*cache'.*another folder"):
                Dataset.from_folder(folder, cache, **options)
        with pytest.raises((OSError, ValueError), match="another process is making|made from files"):
            Dataset.from_composer(cache, executor)
        assert list((cache / "entries").glob("*.part")) == parts and len(parts) == 1
        may_end.set()
        assert len(first.result()) == 6
    assert len(Dataset.from_folder(folder, cache)) == 6  # the lock is gone


@pytest.mark.slow
def test_two_processes_in_one_cache_are_refused_and_a_killed_one_locks_nothing(folder, cache):
    code = "import sys, time; from pathlib import Path; from riffusion_lab.training import clip_cache\n"
    code += "with clip_cache.open_cache(Path(sys.argv[1]), {}):\n    print('open', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(OSError, match="another process is making the data set"):
            Dataset.from_folder(folder, cache)
        process.kill()
    (cache / "settings.json").unlink()  # killed before it was written
    assert len(Dataset.from_folder(folder, cache)) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"hop_s": 0},
        {"hop_s": "1"},
        {"hop_s": np.inf},
        {"hop_s": True},
        {"silence_db": 3},
        {"silence_db": -np.inf},
        {"max_similarity": 2},
        {"max_similarity": np.nan},
        {"on_beat": "no"},
        {"label_from_folder": "no"},
        {"strict": "no"},
        {"strict": 1},
        {"executor": 4},
    ],
)
def test_options_out_of_range(folder, cache, options):
    name, value = next(iter(options.items()))
    with pytest.raises((ValueError, TypeError), match=f"{name} must be .*{value}"):
        Dataset.from_folder(folder, cache, **options)
    if name in ("max_similarity", "strict", "executor"):
        with pytest.raises((ValueError, TypeError), match=f"{name} must be .*{value}"):
            Dataset.from_images(folder, cache, **options)
    assert not cache.exists()  # before any work


def test_flags_of_numpy_are_flags(folder, cache):
    Dataset.from_folder(folder, cache, on_beat=np.False_, strict=np.True_)
    assert json.loads((cache / "settings.json").read_text())["on_beat"] is False


@pytest.mark.parametrize("seed", [-1, "0", 1.5])
def test_a_wrong_seed_of_the_composer_is_named(tmp_path, seed):
    with pytest.raises((ValueError, TypeError), match=f"seed must be .*{seed}"), ThreadPoolExecutor(1) as executor:
        Dataset.from_composer(tmp_path / "clips", executor, seed=seed)
    assert not (tmp_path / "clips").exists()


def test_the_cache_cannot_be_the_folder_itself(folder):
    with pytest.raises(ValueError, match="is the folder that is read"):
        Dataset.from_folder(folder, folder)


# Executors


@pytest.mark.slow
def test_threads_make_the_same(folder, cache):
    alone = Dataset.from_folder(folder, cache)
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(2) as executor:
        data = Dataset.from_folder(folder, cache.with_name("other"), executor=executor)
    assert torch.get_num_threads() == n_threads
    assert [fact["source"] for fact in data.facts] == [fact["source"] for fact in alone.facts]
    assert all(np.array_equal(data.picture(i), alone.picture(i)) for i in range(len(data)))


def die_at_once(source: Source, name: str) -> str | None:
    """A job that kills its process at one of the files."""
    if source.name == name:
        time.sleep(1)
        os._exit(1)
    with EntryWriter(Path(source.path).parent.parent / "cache" / "entries", source) as writer:
        writer.add(np.zeros((512, 512), np.uint8), {})
    return None


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(folder, cache):
    (cache / "entries").mkdir(parents=True)
    sources = [Source.of(path, folder) for path in sorted(folder.iterdir())]
    job = partial(die_at_once, name="rain.wav")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        with pytest.raises(RuntimeError, match="was killed.*call again"):
            clip_cache.make_entries(job, sources, cache, executor=executor, strict=False)
        with pytest.raises(RuntimeError, match="was killed"):
            clip_cache.make_entries(job, sources, cache, executor=executor, strict=False)
    assert len(clip_cache.read_entries(sources, cache)) == 2


@pytest.mark.slow
def test_dask_makes_the_same(folder, cache):
    import distributed  # it takes a second

    alone = Dataset.from_folder(folder, cache)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        data = Dataset.from_folder(folder, cache.with_name("other"), executor=executor)
    assert all(np.array_equal(data.picture(i), alone.picture(i)) for i in range(len(alone)))


# Pictures in the layout of 🤗 datasets


@pytest.mark.slow
def test_pictures_of_a_data_set_come_back(folder, cache, tmp_path):
    write(folder / "more.wav", noises(2, 12))
    (folder / "harp.txt").write_text("harp, “glissando”")
    data = Dataset.from_folder(folder, cache)
    data.save_images(tmp_path / "images")
    line = json.loads((tmp_path / "images" / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(line) == {"file_name", "text"}
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"train", "test"}
    back = Dataset.from_images(tmp_path / "images", tmp_path / "images-cache")

    def content(data: Dataset, part: int) -> list[tuple]:
        rng = np.random.default_rng(0)
        rows = [(data.picture(i).tobytes(), data.caption(i, rng, full=True)) for i in data.split()[part]]
        return sorted(rows)

    assert [content(back, part) for part in (0, 1)] == [content(data, part) for part in (0, 1)]
    maxima = [sorted(fact["maximum"] for fact in d.facts) for d in (data, back)]
    assert maxima[0] == pytest.approx(maxima[1], rel=1e-6)
    with pytest.raises(ValueError, match="not an empty folder"):
        data.save_images(tmp_path / "images")
    clip = Clip.from_image(tmp_path / "images" / "train" / line["file_name"])
    assert clip.maximum in [pytest.approx(maximum, rel=1e-6) for maximum in maxima[0]]
    assert not clip.loop


def test_pictures_of_other_sizes_and_params(tmp_path, cache):
    images = tmp_path / "images"
    images.mkdir()
    wide = Clip.from_audio(noises(2.5, 1), LOW_RATE)
    wide.save(images / "wide.png")
    Clip.from_audio(noises(1, 2), LOW_RATE).save(images / "one.png")
    stereo = Clip.from_audio(np.stack([noises(1, 3)] * 2), LOW_RATE, params=SpectrogramParams(stereo=True))
    stereo.save(images / "stereo.png")
    Image.new("L", (300, 512), 200).save(images / "narrow.png")
    Image.new("L", (512, 256), 200).save(images / "low.png")
    Image.new("L", (512, 512), 255).save(images / "white.png")
    (images / "torn.png").write_bytes((images / "one.png").read_bytes()[:5_000])
    other = SpectrogramParams(max_frequency=8_000)
    save_image(images / "other.png", Picture(Image.new("RGB", (512, 512), "grey"), other))
    (images / "one.txt").write_text("a flute")
    data = Dataset.from_images(images, cache)
    assert [fact["source"] for fact in data.facts] == ["one.png", "stereo.png", "wide.png", "wide.png"]
    assert data.facts[0]["caption"] == "a flute" and data.facts[2]["caption"] == "wide"
    assert data.report["dropped"] == {"silent": 1}
    reasons = data.report["skipped"]
    assert set(reasons) == {"low.png", "narrow.png", "other.png", "torn.png"}
    assert "300 × 512" in reasons["narrow.png"] and "max_frequency is 8000, not 10000" in reasons["other.png"]
    assert np.array_equal(data.picture(0), np.asarray(Image.open(images / "one.png").convert("L")))
    assert all(data.picture(i).min() == 0 for i in range(4))
    with pytest.raises((OSError, ValueError), match="strict=False"):
        Dataset.from_images(images, cache.with_name("strict"), strict=True)
    mono = Clip.from_audio(noises(1, 3), LOW_RATE)
    assert np.abs(data.picture(1).astype(int) - np.asarray(mono.image.convert("L")).astype(int)).mean() < 2


def test_image_folders_that_are_none(tmp_path, folder, cache):
    with pytest.raises(ValueError, match="from_folder"):
        Dataset.from_images(folder, cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        Dataset.from_images(tmp_path / "empty", cache)
    assert image_folder.part_of("a/Train/b.png") == "train"
    assert image_folder.part_of("validation/b.png") == "test"
    assert image_folder.part_of("train.png") is None


@pytest.mark.slow
def test_hugging_face_reads_what_is_saved(folder, cache, tmp_path):
    import datasets  # it takes seconds

    data = Dataset.from_folder(folder, cache)
    data.save_images(tmp_path / "images")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "hf"))
    assert {name: len(part) for name, part in loaded.items()} == dict(
        zip(("train", "test"), map(len, data.split()), strict=True)
    )
    row = loaded["train"][0]
    assert row["text"] and row["image"].size == (512, 512)


# The interface to training


def test_clips_of_a_folder_are_no_loops_and_travel_to_other_processes(folder, cache):
    data = Dataset.from_folder(folder, cache)
    assert data.columns_per_bar(0) is None and data.label(0) is None
    batch = data.pictures(np.array([3, 0]))
    assert batch.shape == (2, 1, 512, 512) and batch.dtype == torch.float32
    assert batch.min() == -1 and batch.max() <= 1
    small = pickle.dumps(data)
    assert len(small) < 10_000
    assert np.array_equal(pickle.loads(small).picture(3), data.picture(3))


def test_composed_clips_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    made, alive = [], []

    def make_shard(jobs, _first_seed):
        pictures = np.zeros((len(jobs), 512, 512), np.uint8)
        made.append(weakref.ref(pictures))
        return pictures, [{"kind": "effect", "label": "rain"}] * len(jobs)

    class AtOnce(ThreadPoolExecutor):
        """Makes a shard when its result is asked for, and keeps it as a future does."""

        def submit(self, function, *arguments):
            return SimpleNamespace(result=cached(lambda: function(*arguments)), cancel=lambda: None)

    monkeypatch.setattr(dataset, "plan", lambda _=0: [("effect", "rain")] * 4)
    monkeypatch.setattr(dataset, "SHARD", 1)
    monkeypatch.setattr(dataset, "make_shard", make_shard)
    monkeypatch.setattr(clip_cache, "save_array", lambda *_: alive.append(sum(ref() is not None for ref in made)))
    with AtOnce(1) as executor:
        Dataset.from_composer(tmp_path, executor)
    assert len(alive) == 4 and max(alive) <= 2


def test_the_composer_keeps_its_captions_split_and_bars(tmp_path, monkeypatch):
    facts = [
        {"kind": "effect", "label": "rain"},
        {"kind": "solo", "label": "piano", "bpm": 94, "metre": 4, "mode": "minor"},
        {"kind": "solo", "label": "harp", "bpm": 70, "metre": 3},
    ]
    monkeypatch.setattr(dataset, "plan", lambda _=0: [("effect", "rain")] * 3)
    monkeypatch.setattr(
        dataset,
        "make_shard",
        lambda *_: (np.arange(3, dtype=np.uint8)[:, None, None].repeat(512, 1).repeat(512, 2), facts),
    )
    with ThreadPoolExecutor(1) as executor:
        data = Dataset.from_composer(tmp_path, executor)
    assert data.facts == facts and len(data) == 3
    clip_cache.write_whole(tmp_path / "facts-0000.json", json.dumps([{**facts[0], "seed": 0}, *facts[1:]]).encode())
    with ThreadPoolExecutor(1) as executor:
        assert len(Dataset.from_composer(tmp_path, executor)) == 3
        with pytest.raises(ValueError, match="composed with another seed"):
            Dataset.from_composer(tmp_path, executor, seed=1)
    assert data.picture(2)[0, 0] == 2
    assert [data.columns_per_bar(i) for i in range(3)] == [1, 32, 32]
    assert data.label(1) == "piano"
    same = (np.random.default_rng(7), np.random.default_rng(7))
    assert data.caption(1, same[0], full=True) == captions.caption(facts[1], same[1], full=True)
    many = Dataset([], np.zeros((1_000, 2), int), facts[:1] * 1_000)
    held_out = np.random.default_rng(1).random(1_000) < 0.08  # as the model that ships was judged
    assert np.array_equal(many.split()[1], np.flatnonzero(held_out))
