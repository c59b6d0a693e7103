from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import librosa
import numpy as np
import pytest

import riffusion_lab
from riffusion_lab.params import PRESETS, SpectrogramParams, hz_to_mel, mel_to_hz

PARAMS = SpectrogramParams()


def test_defaults_are_those_of_riffusion_v1():
    assert (PARAMS.n_fft, PARAMS.win_length, PARAMS.hop_length) == (17_640, 4_410, 441)
    assert PARAMS.duration_s(512) == pytest.approx(5.12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PARAMS.stereo = True


@pytest.mark.parametrize("frequency_hz", [0.0, 440.0, 10_000.0])
def test_mel_scale_is_htks(frequency_hz):
    assert hz_to_mel(frequency_hz) == pytest.approx(librosa.hz_to_mel(frequency_hz, htk=True))
    assert mel_to_hz(hz_to_mel(frequency_hz)) == pytest.approx(frequency_hz)


def test_bands_lie_where_the_filters_do():
    # librosa's 514 corner points hold our 512 centres, and one more point at either end
    corners = librosa.mel_frequencies(514, fmin=0, fmax=10_000, htk=True)
    assert PARAMS.frequency_hz(0) == pytest.approx(corners[1])
    assert PARAMS.frequency_hz(511) == pytest.approx(corners[512])
    assert PARAMS.band(PARAMS.frequency_hz(100)) == pytest.approx(100)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"sample_rate": 0}, ValueError, "sample_rate is 0"),
        ({"sample_rate": -44_100}, ValueError, "-44100"),
        ({"power_for_image": math.nan}, ValueError, "power_for_image is nan"),
        ({"num_frequencies": "512"}, TypeError, "num_frequencies must be a number, not '512'"),
        ({"max_frequency": 30_000}, ValueError, "30000"),
        ({"min_frequency": 10_000}, ValueError, "increasing pair"),
        ({"window_duration_ms": 500}, ValueError, "window 500"),
        ({"step_size_ms": 200}, ValueError, "step 200"),
        ({"sample_rate": 10**9}, ValueError, "between 1000 and 1000000, not 1000000000"),
        ({"sample_rate": 1, "max_frequency": 0.4}, ValueError, "sample_rate must be between 1000 and 1000000, not 1"),
        ({"padded_duration_ms": 10**9}, ValueError, "padded_duration_ms is 1000000000"),
    ],
)
def test_impossible_values_are_named(values, error, words):
    with pytest.raises(error, match=words):
        SpectrogramParams(**values)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"sample_rate": np.int64(48_000)}, {"sample_rate": 48_000}),
        ({"num_frequencies": np.int16(256)}, {"num_frequencies": 256}),
        ({"max_frequency": np.float32(9_000)}, {"max_frequency": 9_000}),
        ({"sample_rate": 48_000.0, "num_frequencies": 256.0}, {"sample_rate": 48_000, "num_frequencies": 256}),
        ({"step_size_ms": np.float64(11.5)}, {"step_size_ms": 11.5}),
        ({"power_for_image": np.float32(0.5)}, {"power_for_image": 0.5}),
        ({"stereo": np.True_}, {"stereo": True}),
        ({"stereo": 1}, {"stereo": True}),
    ],
)
def test_numbers_of_every_kind_become_plain(given, plain):
    params = SpectrogramParams(**given)
    for name, value in plain.items():
        assert getattr(params, name) == value
        assert type(getattr(params, name)) is type(value)
    assert params == SpectrogramParams(**plain)
    assert repr(params) == repr(SpectrogramParams(**plain))  # no np.int64 in it


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"num_frequencies": 256.5}, ValueError, "num_frequencies is 256.5: use a whole number"),
        ({"sample_rate": 44_100.7}, ValueError, "sample_rate is 44100.7: use a whole number"),
        ({"step_size_ms": True}, TypeError, "step_size_ms must be a number, not True"),
        ({"stereo": 2}, TypeError, "stereo must be True or False, not 2"),
        ({"stereo": "yes"}, TypeError, "stereo must be True or False, not 'yes'"),
        ({"step_size_ms": None}, TypeError, "step_size_ms must be a number, not None"),
    ],
)
def test_numbers_that_cannot_be_meant_are_named(values, error, words):
    with pytest.raises(error, match=words):
        SpectrogramParams(**values)


def test_presets_hold_twice_the_sound():
    assert PRESETS["riffusion"] == PARAMS
    assert {preset.num_frequencies for preset in PRESETS.values()} == {512}  # the height that models read
    assert PRESETS["stereo, 20 kHz"].n_channels == 2 and PRESETS["stereo, 20 kHz"].max_frequency == 20_000


def test_import_is_lazy_and_names_are_there():
    code = (
        "import sys, riffusion_lab; "
        "heavy = {'torch', 'diffusers', 'transformers', 'librosa', 'matplotlib', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; riffusion_lab.SpectrogramParams(); assert 'torch' not in sys.modules; print('lazy')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "lazy\n", done.stderr


def test_package_names():
    names = {"Clip", "SpectrogramParams", "load_pipeline", "replay", "text_to_audio", "vocabulary"}
    assert names < set(riffusion_lab.__all__)
    assert names < set(dir(riffusion_lab))
    assert riffusion_lab.SpectrogramParams is SpectrogramParams
    with pytest.raises(AttributeError, match="no attribute 'clap'"):
        _ = riffusion_lab.clap


def test_numbers_of_numpy_are_numbers():
    numpy = SpectrogramParams(sample_rate=np.int64(22_050), max_frequency=np.float32(5_000), stereo=np.bool_(True))
    plain = SpectrogramParams(sample_rate=22_050, max_frequency=5_000, stereo=True)
    assert numpy == plain and json.loads(json.dumps(dataclasses.asdict(numpy))) == dataclasses.asdict(plain)
    assert type(numpy.stereo) is bool
