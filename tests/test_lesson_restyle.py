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


def test_strength_trades_the_recording_for_the_style(measured):
    """Averaged over the runs, notes and onsets are lost, and the style is heard more."""
    means = {
        name: np.mean([run[name] for run in measured["strengths"]], axis=0) for name in ("notes", "onsets", "heard")
    }
    assert (np.diff(means["notes"]) < 0).all() and (np.diff(means["onsets"]) < 0).all()
    assert (np.diff(means["heard"]) > 0).all()


def at_cut(measured, name):
    """Return the largest onset strength within 30 ms of the cut, for each run."""
    around = slice(measured["n_around"] - 3, measured["n_around"] + 4)
    return np.array([max(run[name][around]) for run in measured["joins"]])


def test_the_cut_is_an_onset_in_pieces_only(measured):
    assert at_cut(measured, "pieces").mean() > 1.5 * at_cut(measured, "windows").mean()
    assert (at_cut(measured, "pieces") > at_cut(measured, "windows")).mean() > 0.75


def test_style_changes_on_the_way(measured):
    runs = measured["morphs"]
    assert sum(run["heard"][0] > run["end_heard"][0] for run in runs) > 8
    assert sum(run["heard"][-1] < run["end_heard"][-1] for run in runs) > 8


@pytest.mark.slow
def test_lesson_07_is_measured_again(measured):
    """One run of each; another processor calculates a little differently, and steps add that up."""
    saved, again = measured["strengths"][0], lesson_restyle.measure_strengths(load_pipeline(), 0)
    for name, tolerance in (("notes", 0.05), ("onsets", 0.05), ("heard", 0.1), ("level_db", 0.3)):
        np.testing.assert_allclose(again[name], saved[name], atol=tolerance)
