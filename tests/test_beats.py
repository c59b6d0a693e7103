"""Beats of a loop, where another clip may take over: named by its prompts, found in its sound, or eighths."""

import numpy as np
import pytest

from conftest import N_SAMPLES, RATE, drum_loop, tone
from riffusion_lab import Clip, Prompt
from riffusion_lab.beats import find_beats, heard_beats, named_beats
from riffusion_lab.requests import Point

CLIP_S = 5.12


def clicks(n_beats, n_samples=N_SAMPLES):
    """A loop of ticks, the first of each four louder."""
    random = np.random.default_rng(2)
    sound = np.zeros(n_samples)
    n_tick = 2_000
    for beat in range(n_beats):
        at = (round(beat * n_samples / n_beats) + np.arange(n_tick)) % n_samples
        gain = 0.2 if beat % 4 == 0 else 0.1
        sound[at] += gain * random.standard_normal(n_tick) * np.exp(-np.arange(n_tick) / 400)
    return Clip.from_audio(sound.astype(np.float32), RATE, loop=True)


def steady(n_samples=N_SAMPLES):
    return Clip.from_audio(tone(441, n_samples), RATE, loop=True)


def walk(start, end, alpha):
    return Point.between(Prompt(start), Prompt(end), alpha)


@pytest.mark.parametrize(
    ("text", "n_beats"),
    [
        ("piano, 94 bpm", 8),
        ("(techno, 105BPM:1.2)", 9),
        ("jazz, 141 bpm", 12),
        ("jazz, 100 bpm", 9),  # the model takes the nearest it knows, 105
        ("jazz, 94 bpm, 105 bpm", None),
        ("jazz", None),
        ("", None),
    ],
)
def test_a_prompt_names_its_beats(pipe, text, n_beats):
    assert named_beats(pipe, Point((Prompt(text),)), CLIP_S) == n_beats


def test_a_mix_has_beats_if_all_its_prompts_name_the_same(pipe):
    assert named_beats(pipe, walk("piano, 94 bpm", "techno, 94 bpm", 0.5), CLIP_S) == 8
    assert named_beats(pipe, walk("piano, 94 bpm", "techno, 141 bpm", 0.5), CLIP_S) is None
    assert named_beats(pipe, walk("piano, 94 bpm", "techno", 0.5), CLIP_S) is None
    assert named_beats(pipe, walk("piano, 94 bpm", "techno, 141 bpm", 1.0), CLIP_S) == 12
    assert named_beats(pipe, walk("piano, 94 bpm", "techno", 0.0), CLIP_S) == 8


def test_a_tempo_that_does_not_fit_the_loop_says_nothing(pipe, monkeypatch):
    from riffusion_lab import beats

    monkeypatch.setattr(beats, "named_tempi", lambda *_: [100.0])  # as of a model that knows no tempi
    assert named_beats(pipe, Point((Prompt("jazz, 100 bpm"),)), CLIP_S) is None  # 8.53 beats
    assert named_beats(pipe, Point((Prompt("jazz, 100 bpm"),)), 4.8) == 8


@pytest.mark.parametrize("n_beats", [6, 7, 8, 9, 10, 11, 12, 13])
def test_beats_are_found_in_the_sound(n_beats):
    assert heard_beats(clicks(n_beats)) in (n_beats, n_beats / 2, 2 * n_beats)


def test_a_drum_loop_has_its_beats_or_twice_as_many():
    assert heard_beats(Clip.from_audio(drum_loop(), RATE, loop=True)) in (8, 16)


def test_twice_as_long_a_loop_has_twice_the_beats():
    assert heard_beats(clicks(14, 2 * N_SAMPLES)) in (14, 28)


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_beats(seed):
    noise = 0.1 * np.random.default_rng(seed).standard_normal(N_SAMPLES).astype(np.float32)
    assert heard_beats(Clip.from_audio(noise, RATE, loop=True)) is None


@pytest.mark.parametrize("frequency_hz", [310.15625, 353.125, 441.015625])
def test_the_rounding_of_a_tones_picture_is_no_beat(frequency_hz):
    assert heard_beats(Clip.from_audio(tone(frequency_hz, N_SAMPLES // 2), RATE, loop=True)) is None


def test_silence_and_the_shortest_loops_have_no_beats():
    assert heard_beats(Clip.from_audio(np.zeros(N_SAMPLES, np.float32), RATE, loop=True)) is None
    assert heard_beats(clicks(2, 441 * 20)) is None  # no tempo up to 200 bpm has a whole beat in 0.2 s


def test_beats_are_places_on_columns_inside_the_clip(pipe):
    column = 441
    named = find_beats(pipe, walk("piano, 94 bpm", "piano, 94 bpm", 0.0), steady())
    assert named == tuple(64 * column * beat for beat in range(1, 8))
    odd = find_beats(pipe, walk("jazz, 105 bpm", "jazz, 105 bpm", 1.0), clicks(8))  # what is named counts
    assert len(odd) == 8 and all(place % column == 0 for place in odd)
    np.testing.assert_allclose(odd, np.arange(1, 9) * N_SAMPLES / 9, atol=column / 2)
    heard = find_beats(pipe, walk("jazz", "jazz", 0.0), clicks(7))
    np.testing.assert_allclose(heard, np.arange(1, 7) * N_SAMPLES / 7, atol=column / 2)


def test_where_no_beat_is_clear_there_are_eighths(pipe):
    point = walk("piano", "piano", 0.0)
    eighth = N_SAMPLES // 8
    assert find_beats(pipe, point, steady()) == tuple(eighth * i for i in range(1, 8))
    assert find_beats(pipe, point, steady(N_SAMPLES // 2)) == tuple(eighth // 2 * i for i in range(1, 8))
    assert find_beats(pipe, point, steady(2 * N_SAMPLES)) == tuple(eighth * i for i in range(1, 16))
