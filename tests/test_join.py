"""Clips cut, put together and mixed: lengths, levels, and seams without a jump."""

import numpy as np
import pytest

from conftest import RATE, chirp, drum_loop, tone
from riffusion_lab import stitch
from riffusion_lab.clip import Clip
from riffusion_lab.params import SpectrogramParams

pytestmark = pytest.mark.usefixtures("no_surprising_warnings")


def loop(frequency_hz, amplitude=0.5):
    """A tone of whole cycles in 5.12 s, which begins somewhere in its swing."""
    sound = np.roll(tone(round(frequency_hz * 5.12) / 5.12, amplitude=amplitude), 40)
    return Clip.from_audio(sound, RATE, loop=True)


def steps(sound):
    return np.abs(np.diff(sound))


# --- stitch -----------------------------------------------------------------------------------------------------


def test_stitched_loops_keep_their_beat_and_close():
    clips = [loop(220), Clip.from_audio(drum_loop(), RATE, loop=True), loop(330)]
    whole = stitch(clips)
    assert whole.loop and whole.waveform.shape[1] == 3 * 441 * 512
    for n, clip in enumerate(clips):  # behind the fade, each is itself, at its place
        part = whole.waveform[:, n * 441 * 512 :][:, 2_000 : 441 * 512]
        assert np.array_equal(part, clip.waveform[:, 2_000:])


@pytest.mark.parametrize(("low_hz", "high_hz"), [(220, 331), (100, 2000), (440, 441)])
def test_neither_level_nor_phase_jumps(low_hz, high_hz):
    sound = stitch([loop(low_hz), loop(high_hz)]).waveform[0]
    inside = max(2 * np.pi * f * 0.5 / RATE for f in (low_hz, high_hz))  # the steepest slope of either tone
    assert steps(np.append(sound, sound[0])).max() < 1.5 * inside
    level = np.sqrt(np.square(np.roll(sound, 441 * 10)[: 441 * 500].reshape(-1, 441 * 2)).mean(axis=1))  # each 20 ms
    assert level.min() > 0.7 * 0.5 / np.sqrt(2) and level.max() < 1.3 * 0.5 / np.sqrt(2)


def test_a_cut_would_jump():
    hard = np.concatenate([loop(220).waveform[0], np.roll(loop(331).waveform[0], 50)])
    assert steps(hard).max() > 1.5 * 2 * np.pi * 331 * 0.5 / RATE


def test_a_loop_stitched_to_itself_goes_on_as_it_was():
    clip = Clip.from_audio(drum_loop(), RATE, loop=True)
    assert np.allclose(stitch([clip, clip]).waveform, (clip * 2).waveform, atol=1e-5)


def test_clips_that_are_no_loops_overlap():
    a, b = (Clip.from_audio(chirp(200, 900, 441 * 200), RATE) for _ in range(2))
    whole = stitch([a, b], crossfade_s=0.1)
    assert not whole.loop and whole.duration_s == pytest.approx(3.9)
    assert np.array_equal(whole.waveform[:, : 441 * 190], a.waveform[:, : 441 * 190])
    assert np.array_equal(whole.waveform[:, 441 * 200 :], b.waveform[:, 441 * 10 :])


@pytest.mark.parametrize(
    ("clips", "crossfade_s", "error", "message"),
    [
        ([], 0.03, ValueError, "there is no clip"),
        ([3], 0.03, TypeError, "3 is not a Clip"),
        ([loop(220)], -1, ValueError, "crossfade_s must be between 0 and 2.56, not -1"),
        ([loop(220)], 3, ValueError, "not 3"),
        ([loop(220), Clip.from_audio(tone(220), RATE, params=SpectrogramParams(stereo=True))], 0.03, ValueError,
         "44100 Hz with 1 channel.* and 44100 Hz with 2 channel.* do not fit together"),
    ],
)  # fmt: skip
def test_what_cannot_be_stitched(clips, crossfade_s, error, message):
    with pytest.raises(error, match=message):
        stitch(clips, crossfade_s)


# --- a musician's tools ------------------------------------------------------------------------------------------


def test_cutting_in_seconds():
    clip = Clip.from_audio(chirp(200, 900), RATE, loop=True)
    assert np.array_equal(clip[1.5:3].waveform, clip.waveform[:, 66_150:132_300])
    assert clip[-1:].duration_s == 1 and clip[:1].duration_s == 1
    assert clip[:].loop and not clip[:2].loop
    for bad, message in (
        (np.s_[3:2], "from 3 to 2 s"),
        (np.s_[0:9], "goes from 0 to 5.12 s"),
        (np.s_[-9:], "cannot cut"),
    ):
        with pytest.raises(ValueError, match=message):
            clip[bad]
    with pytest.raises(TypeError, match="pass times in seconds"):
        clip[2]


def test_cut_and_put_together_is_the_same_sound():
    clip = Clip.from_audio(chirp(200, 900), RATE)
    assert np.array_equal((clip[:2] + clip[2:]).waveform, clip.waveform)


def test_repeating():
    clip = Clip.from_audio(drum_loop(), RATE, loop=True)
    assert (clip * 3).loop and np.array_equal((clip * 3).waveform, np.tile(clip.waveform, 3))
    with pytest.raises(ValueError, match="how often must be between 1"):
        clip * 0


def test_overlay_mixes_and_never_clips():
    a, b = loop(220, 0.4), loop(330, 0.4)
    mixed = a.overlay(b, gain_db=-6)
    assert mixed.loop and np.allclose(mixed.waveform, a.waveform + b.waveform * 10**-0.3, atol=1e-6)
    late = a.overlay(b, start_s=1)
    assert np.array_equal(late.waveform[:, :RATE], a.waveform[:, :RATE]) and not late.loop
    loud = loop(220, 0.9).overlay(loop(330, 0.9))
    assert np.abs(loud.waveform).max() == pytest.approx(1)
    with pytest.raises(ValueError, match="start_s must be between 0 and 5.12, not 6"):
        a.overlay(b, start_s=6)


def test_fades():
    faded = loop(220).fade(1, 2)
    envelope = np.abs(faded.waveform[0]).reshape(512, 441).max(axis=1)
    assert envelope[0] < 0.01 and envelope[50] == pytest.approx(0.25, abs=0.01)
    assert envelope[200] == pytest.approx(0.5, abs=0.01) and envelope[-100] == pytest.approx(0.25, abs=0.01)
    assert not faded.loop and loop(220).fade().loop
    with pytest.raises(ValueError, match="out_s must be between 0 and 5.12, not 6"):
        loop(220).fade(out_s=6)


def test_difference_is_what_the_other_has_not():
    both, one = loop(400).overlay(loop(3000)), loop(400)
    left = both.difference(one)
    mel = np.asarray(left.image.convert("L")).astype(int)
    rows = [511 - round(left.params.band(f)) for f in (400, 3000)]
    assert mel[rows[1]].mean() < 60 and mel[rows[0]].mean() > 150  # the high tone is left
    with pytest.raises(ValueError, match="cut them to one length"):
        both.difference(one[:2])


def test_old_clips_stay_as_they_were():
    clip = loop(220)
    before = clip.waveform.copy()
    _ = clip[:1], clip + clip, clip * 2, clip.fade(1, 1), clip.overlay(clip), stitch([clip, clip])
    assert np.array_equal(clip.waveform, before)
