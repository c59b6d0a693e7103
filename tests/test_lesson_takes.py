"""What lesson 00 says of 16 seeds is what its tool measures."""

import json

import numpy as np
import pytest

import lesson_takes
from riffusion_lab import load_pipeline, text_to_audio


@pytest.fixture(scope="module")
def measured():
    return json.loads(lesson_takes.OUTPUT.read_text(encoding="utf-8"))


def test_shipped_distances_bear_out_lesson_00(measured):
    """Another seed is nearer than another prompt; a fused clip is nearer to both of its prompts than they are."""
    assert measured["seeds"] == len(lesson_takes.SEEDS) == 16
    assert list(measured["other_seed"]) == list(lesson_takes.PROMPTS)
    first, second, fused, bells = lesson_takes.PROMPTS
    other = measured["other_prompt"]
    between = np.median(other[f"{first} | {second}"])
    assert max(np.median(distances) for distances in measured["other_seed"].values()) < between
    assert np.median(other[f"{first} | {fused}"]) < between
    assert np.median(other[f"{second} | {fused}"]) < between
    assert between < np.median(other[f"{first} | {bells}"])


@pytest.mark.slow
def test_shipped_distances_are_those_of_the_model(measured):
    first, second, *_ = lesson_takes.PROMPTS
    pipe = load_pipeline(lesson_takes.MODEL)
    again = lesson_takes.measure({prompt: text_to_audio(pipe, prompt, seed=[0, 1]) for prompt in (first, second)})
    for prompt in (first, second):
        assert again["other_seed"][prompt][0] == pytest.approx(measured["other_seed"][prompt][0], abs=0.3)
        assert again["seam_steps"][prompt] == pytest.approx(measured["seam_steps"][prompt][:2], abs=0.1)
    pair = f"{first} | {second}"
    assert again["other_prompt"][pair] == pytest.approx(measured["other_prompt"][pair][:2], abs=0.3)
