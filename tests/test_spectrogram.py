from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from conftest import chirp, tone
from riffusion_lab import spectrogram
from riffusion_lab.params import SpectrogramParams
from riffusion_lab.resampling import reflected
from riffusion_lab.spectrogram import mel_filterbank, mel_from_waveform, n_columns

PARAMS = SpectrogramParams()


@pytest.mark.parametrize(
    ("n_samples", "columns"), [(225_792, 512), (225_792 + 200, 512), (225_792 - 200, 512), (225_792 + 240, 513), (1, 1)]
)
def test_columns_are_the_nearest_whole_number_of_hops(n_samples, columns):
    assert n_columns(n_samples, PARAMS) == columns


def test_no_filter_is_empty():
    filters = mel_filterbank(PARAMS)
    assert filters.shape == (8_821, 512)
    assert (filters.sum(dim=0) > 0).all()


@pytest.mark.parametrize("frequency_hz", [110.0, 440.0, 3_000.0, 9_000.0])
def test_a_tone_lights_its_band(frequency_hz):
    mel = mel_from_waveform(torch.tensor(tone(frequency_hz, 44_100))[None], PARAMS)
    assert mel.shape == (1, 512, 100)
    # FFT bins are 2.5 Hz apart, bands 3.7 Hz or more: the peak is at most one band off
    assert abs(int(mel[0, :, 50].argmax()) - PARAMS.band(frequency_hz)) <= 1


def test_column_k_is_centred_on_sample_441_k():
    click = torch.zeros(1, 441 * 64)
    click[0, 441 * 20] = 1.0
    energy = mel_from_waveform(click, PARAMS)[0].sum(dim=0)
    assert int(energy.argmax()) == 20
    torch.testing.assert_close(energy[15:20], energy[21:26].flip(0))  # the window is symmetric about it


def test_amplitude_is_that_of_the_windowed_tone():
    # A tone's spectrum peaks at amplitude * sum(window) / 2 = 0.5 * 2205 / 2 = 551; at 9 kHz a filter's flat top is
    # narrower than the 40 Hz main lobe, so the band sums a little less than all of its 2.5 Hz bins.
    mel = mel_from_waveform(torch.tensor(tone(1_000.0, 44_100))[None], PARAMS)[0, :, 50]
    spectrum = np.abs(np.fft.rfft(tone(1_000.0, 4_410) * np.hanning(4_411)[:-1], 17_640))
    expected = spectrum @ mel_filterbank(PARAMS).numpy()
    assert mel.max() == pytest.approx(expected.max(), rel=1e-3)  # float32


def test_a_steady_loop_has_the_same_columns_everywhere():
    sound = torch.tensor(tone(400 / 5.12 * 2, 441 * 512))[None]  # whole cycles: a loop
    circular = mel_from_waveform(sound, PARAMS, loop=True)
    inside = circular[..., 256:257]
    # float32 noise lies 1e-6 below the peak
    torch.testing.assert_close(circular, inside.expand_as(circular), atol=1e-3 * float(inside.max()), rtol=0)
    torch.testing.assert_close(mel_from_waveform(sound, PARAMS)[..., 5:-5], circular[..., 5:-5])


@pytest.mark.parametrize("n_columns", [64, 300])
def test_an_open_sound_is_analysed_as_riffusion_does(n_columns):
    sound = torch.tensor(chirp(300, 3_000, 441 * n_columns))[None]
    spectrogram = torchaudio.transforms.Spectrogram(17_640, 4_410, 441, power=None, center=True, pad_mode="reflect")
    mel_scale = torchaudio.transforms.MelScale(512, 44_100, 0, 10_000, 8_821, norm=None, mel_scale="htk")
    original = mel_scale(spectrogram(sound).abs())
    assert original.shape[-1] == n_columns + 1  # the last one is centred on the end
    ours = mel_from_waveform(sound, PARAMS)
    torch.testing.assert_close(ours, original[..., :-1], atol=1e-4 * float(original.max()), rtol=1e-4)  # float32


@pytest.mark.parametrize("n_samples", [1, 2, 441, 2_000])
def test_a_sound_shorter_than_a_window_is_mirrored_again_and_again(n_samples):
    sound = torch.tensor(chirp(300, 3_000, n_samples))[None]
    index = reflected(torch.arange(-8_820, n_samples + 8_820), n_samples)
    expected = np.pad(sound.numpy(), ((0, 0), (8_820, 8_820)), mode="reflect")
    np.testing.assert_array_equal(sound[:, index].numpy(), expected)
    assert torch.isfinite(mel_from_waveform(sound, PARAMS)).all()


def test_a_rolled_loop_has_rolled_columns(music):
    sound = torch.tensor(music)
    rolled = mel_from_waveform(sound.roll(441 * 100, dims=-1), PARAMS, loop=True)
    expected = mel_from_waveform(sound, PARAMS, loop=True).roll(100, dims=-1)
    torch.testing.assert_close(rolled, expected, atol=1e-3, rtol=1e-3)


def test_long_sounds_are_analysed_in_blocks(monkeypatch):
    sound = torch.tensor(np.stack([chirp(100, 8_000, 441 * 100), tone(440, 441 * 100)]))
    whole = mel_from_waveform(sound, PARAMS)
    monkeypatch.setattr(spectrogram, "BLOCK", 33)
    torch.testing.assert_close(mel_from_waveform(sound, PARAMS), whole, atol=1e-3, rtol=1e-4)  # float32 sums
