"""What lesson 02 says of 16 sounds is what its tool measures."""

import json

import numpy as np
import pytest

import lesson_phases


@pytest.fixture(scope="module")
def measured():
    return json.loads(lesson_phases.OUTPUT.read_text(encoding="utf-8"))


def test_shipped_measures_bear_out_lesson_02(measured):
    """`fast` is closer than Riffusion's method, a stream closer than halves apart, and the greys cost least."""
    assert len(measured) == 16
    assert all(each["convergence"]["fast"] < each["convergence"]["riffusion"] for each in measured)
    assert all(each["cut"]["stream"] < each["cut"]["apart"] for each in measured)
    assert all(min(each["losses"], key=each["losses"].get) in ("8 bits", "10 kHz") for each in measured)
    assert max(each["losses"]["8 bits"] for each in measured) < 0.02
    plucked = [each["losses"]["10 kHz"] for each in measured if each["kind"] == "plucked"]
    generated = [each["losses"]["10 kHz"] for each in measured if each["kind"] == "generated"]
    assert min(plucked) > 10 * max(generated)


@pytest.mark.slow
def test_shipped_measures_are_those_of_the_sounds(measured):
    melody = lesson_phases.plucked_melody(0)
    mel = lesson_phases.mel_from_waveform(melody[None], lesson_phases.PARAMS)
    assert (measured[0]["kind"], measured[0]["name"]) == ("plucked", "seed 0")
    for name, error in lesson_phases.errors_around_cut(mel).items():
        assert error == pytest.approx(measured[0]["cut"][name], rel=0.05)
    losses = lesson_phases.losses(melody)
    assert [losses[name] for name in losses] == pytest.approx(list(measured[0]["losses"].values()), rel=0.05)
    assert np.isfinite(list(losses.values())).all()
