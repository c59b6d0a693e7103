from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import chirp, tone
from riffusion_lab import spectrogram
from riffusion_lab.params import SpectrogramParams
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


def test_silence_lies_beyond_the_ends_unless_it_is_a_loop():
    sound = torch.tensor(tone(400 / 5.12 * 2, 441 * 512))[None]  # whole cycles: a loop
    padded, circular = mel_from_waveform(sound, PARAMS), mel_from_waveform(sound, PARAMS, loop=True)
    inside = circular[..., 256:257]
    # a looped steady tone has the same columns everywhere; float32 noise lies 1e-6 below the peak
    torch.testing.assert_close(circular, inside.expand_as(circular), atol=1e-3 * float(inside.max()), rtol=0)
    assert padded[..., 0].max() < 0.6 * inside.max()  # half of its window sees silence
    torch.testing.assert_close(padded[..., 5:-5], circular[..., 5:-5])


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
