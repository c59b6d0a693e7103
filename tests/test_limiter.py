from __future__ import annotations

import numpy as np
import pytest

from conftest import RATE, drum_loop, tone
from riffusion_lab.audio import rms_dbfs
from riffusion_lab.limiter import limit


def test_what_stays_under_the_ceiling_is_returned_as_it_is():
    sound = tone(441, amplitude=1.0)[None]
    assert limit(sound, RATE) is sound


@pytest.mark.parametrize("ceiling", [1.0, 0.89])
@pytest.mark.parametrize("loop", [False, True])
def test_peaks_come_under_the_ceiling_and_the_level_stays(ceiling, loop):
    sound = drum_loop()[None]
    sound = sound / np.abs(sound).max() * 1.3
    limited = limit(sound, RATE, ceiling=ceiling, loop=loop)
    assert limited.dtype == np.float32 and limited.shape == sound.shape
    assert np.abs(limited).max() <= np.float32(ceiling)
    assert abs(rms_dbfs(limited) - rms_dbfs(sound)) < 0.1
    assert abs(rms_dbfs(sound / np.abs(sound).max() * ceiling) - rms_dbfs(sound)) > 2  # turned down as a whole


def test_the_gain_falls_before_a_peak_and_is_one_for_both_channels():
    sound = np.stack([tone(441, RATE, amplitude=0.2), tone(660, RATE, amplitude=0.2)])
    sound[0, 20_000] = 4.0
    limited = limit(sound, RATE)
    gain = limited[1] / np.where(sound[1] == 0, 1, sound[1])
    far, near = gain[10_001], gain[20_001]
    assert near == pytest.approx(0.25 * far, rel=0.05)
    assert abs(np.diff(gain[np.abs(sound[1]) > 0.02])).max() < 0.2  # it glides, within 1 ms


def test_a_loops_gain_goes_round():
    sound = tone(441, RATE, amplitude=0.2)[None]
    sound[0, 0] = 4.0
    end = limit(sound, RATE, loop=True)[0, -20:] / limit(sound, RATE, loop=False)[0, -20:]
    assert np.abs(end).max() < 0.5
