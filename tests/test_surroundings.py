"""What stands around a call: torch's defaults, autocast, weights that wait on another device, a GPU without float64."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import RATE, tone
from riffusion_lab import Clip, Prompt, audio_to_audio, extend, interpolate, load_pipeline, replay, stitch
from riffusion_lab import text_to_audio as make
from riffusion_lab.hashing import weights_hash
from riffusion_lab.interpolation import slerp
from riffusion_lab.phase import PhaseStream, _filters
from riffusion_lab.spectrogram import mel_filterbank, mel_from_waveform
from riffusion_lab.torch_defaults import torch_defaults


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    yield
    left = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert left == dtype


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    yield
    left = torch.get_default_device()
    torch.set_default_device(None)
    assert left == torch.device(device)


SURROUNDINGS = {
    "nothing": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def everything(folder) -> list[np.ndarray]:
    """What the public functions make, from the first one that is called; nothing is left from earlier calls."""
    mel_filterbank.cache_clear()
    _filters.cache_clear()
    pipe = load_pipeline(folder, device="cpu")
    options = {"num_inference_steps": 1}
    short = {"duration_s": 0.64, **options}
    sound = tone(440, RATE // 2)
    heard = Clip.from_audio(sound, RATE // 2)
    clip = make(pipe, "(piano:1.2)", **short)
    walk = interpolate(pipe, Prompt("piano"), Prompt("jazz", seed=1), num_clips=1, curve=lambda _: 0.5, **short)
    clips = [
        heard,
        clip,
        *walk,
        audio_to_audio(pipe, heard, "jazz", **options),
        extend(pipe, clip, "jazz", seconds=0.2, **options),
        replay(clip, pipe),
        heard.difference(heard),
    ]
    sounds = [heard.waveform, clip.waveform, stitch([heard, clip]).waveform, Clip.from_image(clip.image).waveform]
    stream = PhaseStream(clip.params)
    sounds.append(stream.push(torch.ones(1, 512, 64, dtype=torch.float32, device="cpu")).numpy())
    return [np.asarray(each.image) for each in clips] + sounds


@pytest.mark.slow
def test_the_programs_defaults_do_not_reach_us(folder):
    made = {}
    for name, surroundings in SURROUNDINGS.items():
        with surroundings():
            made[name] = everything(folder)
    expected = made.pop("nothing")
    for name, found in made.items():
        same = [np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True)]
        assert all(same), (name, same)


def test_defaults_are_put_back_after_an_error():
    with default_dtype(torch.float64), default_device("meta"), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyError), torch_defaults():
            assert torch.get_default_dtype() == torch.float32 and not torch.is_autocast_enabled("cpu")
            assert torch.zeros(1).device.type == "cpu"
            raise KeyError
        assert torch.is_autocast_enabled("cpu") and torch.get_default_device().type == "meta"


def test_threads_share_the_default_dtype_and_put_it_back_last():
    """Else the first to leave would change the other's calculations, and the last one leave float32 behind."""
    inside, leave = threading.Event(), threading.Event()

    def work():
        with torch_defaults():
            inside.set()
            leave.wait(10)

    with default_dtype(torch.float64):
        other = threading.Thread(target=work)
        with torch_defaults():
            other.start()
            inside.wait(10)
        assert torch.get_default_dtype() == torch.float32  # the other is still at work
        leave.set()
        other.join()
        assert torch.get_default_dtype() == torch.float64


# Offloaded


@pytest.fixture(scope="module")
def plain_clips(folder) -> list[np.ndarray]:
    return clips(load_pipeline(folder, device="cpu"))


def clips(pipe) -> list[np.ndarray]:
    options = {"num_inference_steps": 2}  # of which `audio_to_audio` takes one
    clip = make(pipe, "(piano:1.2)", loop=False, **options)
    made = [clip, make(pipe, "piano", duration_s=5.76, **options), audio_to_audio(pipe, clip, "jazz", **options)]
    made.append(extend(pipe, clip, "jazz", seconds=0.2, **options))
    return [np.asarray(each.image) for each in made]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "layer", "leaf_level", "block_level"])
def test_an_offloaded_pipeline_makes_the_same_clips(folder, plain_clips, how):
    """Weights wait on the CPU; the device to compute on is the CPU as well, but only the hooks say so."""
    pipe = load_pipeline(folder, device="cpu")
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif how == "layer":  # as enable_sequential_cpu_offload, which asks for a GPU
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            cpu_offload(part, torch.device("cpu"))
        assert next(pipe.unet.parameters()).is_meta
    else:
        groups = {"num_blocks_per_group": 1} if how == "block_level" else {}
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type=how, **groups)
    assert all(np.array_equal(a, b) for a, b in zip(plain_clips, clips(pipe), strict=True))
    assert weights_hash(pipe) == weights_hash(load_pipeline(folder, device="cpu"))


def test_an_offloaded_pipeline_is_asked_for_its_execution_device(folder, plain_clips, monkeypatch):
    """Its weights wait where nothing can be computed."""
    pipe = load_pipeline(folder, device="cpu")
    kind = type(pipe)
    monkeypatch.setattr(kind, "device", torch.device("meta"))
    monkeypatch.setattr(kind, "_execution_device", torch.device("cpu"))
    assert all(np.array_equal(a, b) for a, b in zip(plain_clips, clips(pipe), strict=True))
    assert make(pipe, "piano", num_inference_steps=1).recipe["device"] == "cpu"


# Without float64


class OnMps(torch.Tensor):
    """A tensor as on a Mac's GPU, which knows no float64; only `cpu` gives a plain one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        made = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(made, cls) and made.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return made

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_slerp_needs_no_float64_where_the_noise_lies():
    a, b = torch.randn(2, 4, 8, 8)
    start, end = a.as_subclass(OnMps), b.as_subclass(OnMps)
    with pytest.raises(TypeError, match="MPS has no float64"):
        start.double()
    between = slerp(start, end, 0.3)
    assert between.dtype == torch.float32 and torch.equal(between.cpu(), slerp(a, b, 0.3))


class NoFloat64(TorchDispatchMode):
    """Refuse every float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            raise TypeError(f"{function} makes a float64")
        return made


def test_nothing_else_is_calculated_in_float64(folder):
    pipe = load_pipeline(folder, device="cpu")
    with NoFloat64():
        clips(pipe)
        waveform = torch.from_numpy(tone(440, RATE // 2))[None]
        mel_from_waveform(waveform, Clip.from_audio(waveform.numpy(), RATE).params)
    with NoFloat64(), pytest.raises(TypeError, match="makes a float64"):
        torch.zeros(1).double()
