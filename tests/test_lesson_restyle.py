"""What lesson 07 shows of 16 seeds is what was measured, and bears out what the lesson says."""

import json

import numpy as np
import pytest

import lesson_restyle
from riffusion_lab import load_pipeline
from riffusion_lab.training.lesson import DATA


@pytest.fixture(scope="module")
def measured():
    return json.loads((DATA / "lesson_07.json").read_text(encoding="utf-8"))


def test_every_run_is_there(measured):
    for name in lesson_restyle.MEASURES:
        pairs = [(run["source"], run["style"]) for run in measured[name]]
        assert pairs == lesson_restyle.RUNS and len(pairs) == 16


def at_cut(measured, name):
    """Return the largest onset strength within 30 ms of the cut, for each run."""
    around = slice(measured["n_around"] - 3, measured["n_around"] + 4)
    return np.array([max(run[name][around]) for run in measured["joins"]])


def test_the_cut_is_an_onset_in_pieces_only(measured):
    recording, pieces, windows = (at_cut(measured, name) for name in ("recording", "pieces", "windows"))
    assert (pieces > recording).all() and (pieces > windows).all()
    assert round(pieces.mean()) == 11 and round(recording.mean()) == 3 and round(windows.mean(), 1) == 1.6
    assert (windows > recording).sum() == 6


def test_style_changes_on_the_way(measured):
    runs = measured["morphs"]
    assert sum(run["heard"][0] > run["end_heard"][0] for run in runs) == 14
    assert sum(run["heard"][-1] > run["end_heard"][-1] for run in runs) == 0
    first, second = (np.mean([run[name] for run in runs], axis=0) for name in ("heard", "end_heard"))
    crossing = np.flatnonzero(first < second)[0]  # of nine parts; the middle of the fifth is that of the clip
    assert crossing == 4 and max(first[crossing], second[crossing]) < 0.3
    assert max(run["heard"][0] for run in runs if run["style"] == "techno") < 0.2


@pytest.mark.slow
def test_joins_are_measured_again(measured):
    """One run; another processor calculates a little differently, and steps add that up."""
    again = lesson_restyle.measure_joins(load_pipeline(), 0)
    for name in ("recording", "pieces", "windows"):
        np.testing.assert_allclose(again[name], measured["joins"][0][name], atol=1)
