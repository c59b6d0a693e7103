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


def by_strength(measured, name):
    """Return a measure of all runs [shape=(n_strengths, n_seeds)]."""
    return np.array([run[name] for run in measured["strengths"]]).T
