"""Seed clips and their masks."""

import numpy as np
import pytest

from riffusion_lab.audio import peak_dbfs
from riffusion_lab.seed_clips import SEED_CLIPS, seed_clip, seed_masks


@pytest.mark.parametrize("name", SEED_CLIPS)
def test_a_seed_clip_is_a_loop_that_closes(name):
    clip = seed_clip(name)
    assert clip.loop and clip.duration_s == 5.12 and clip.image.size == (512, 512)
    assert -20 < peak_dbfs(clip.waveform) < 0
    jumps = np.abs(np.diff(clip.waveform[0]))
    assert abs(clip.waveform[0, 0] - clip.waveform[0, -1]) < np.quantile(jumps, 0.999) + 0.02


def test_seed_clips_begin_on_the_beat():
    columns = np.asarray(seed_clip("beat").image.convert("L"), float)
    rise = (np.roll(columns, 1, axis=1) - columns).clip(min=0).sum(axis=0)  # dark is loud
    assert all(rise[beat * 64 - 5 : beat * 64 + 6].max() > 3 * np.median(rise) for beat in range(1, 8))
    assert max(rise[:5].max(), rise[-5:].max()) > 3 * np.median(rise)


@pytest.mark.parametrize("name", SEED_CLIPS)
def test_masks_mark_what_they_say(name):
    masks = seed_masks(name)
    assert all(mask.shape == (512, 512) and mask.dtype == bool for mask in masks.values())
    between = masks["between the beats"]
    assert not between[:, :12].any() and between[:, 12:64].all() and not between[:, 64:76].any()
    assert masks["second bar"][0].nonzero()[0].tolist() == list(range(256, 512))
    assert masks["last beat"][0].nonzero()[0].tolist() == list(range(448, 512))
    assert masks["highs"][0].all() and not masks["highs"][-1].any()
    assert masks["lows"][-1].all() and not masks["lows"][0].any()


def test_there_are_six():
    with pytest.raises(ValueError, match="no seed clip 'piano': take one of beat, groove, arpeggio"):
        seed_clip("piano")
    with pytest.raises(ValueError, match="no seed clip"):
        seed_masks("piano")
