"""The engine of endless music: the way it takes, what it drops, that it waits, fails, goes on, and can be repeated."""

import contextlib
import errno
import json
import math
import os
import threading
import time

import numpy as np
import pytest
import soundfile

from conftest import N_SAMPLES, RATE, tone
from riffusion_lab import Clip, Prompt, live_recipe, stitch
from riffusion_lab import live as live_module
from riffusion_lab.join import crossfade
from riffusion_lab.live import LONGEST_QUEUE, Session, replay_session

WAIT_S = 60
CLIP_S = 5.12


def fake_clip(point):
    """A tone for each place, made at once."""
    frequency_hz = 100 + 7 * point.end.seed + 50 * point.alpha + 10 * len(point.end.text)
    return Clip.from_audio(tone(round(frequency_hz * 5.12) / 5.12), RATE, loop=True)


@pytest.fixture
def made(monkeypatch):
    """Make tones instead of clips, and keep the points they were made for."""
    points = []

    def generate_point(_pipe, point, _options):
        points.append(point)
        return fake_clip(point)

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    monkeypatch.setattr(live_recipe, "generate_point", generate_point)  # for a replay
    return points


@pytest.fixture
def begin(pipe):
    """Begin sessions; they end with the test."""
    begun = []

    def begin(prompt="piano", **options):
        begun.append(Session(pipe, prompt, **options))
        return begun[-1]

    yield begin
    for each in begun:
        each.stop()
        if each._thread.ident:
            each._thread.join(WAIT_S)
            assert not each._thread.is_alive()


def hear(live, n_clips):
    for _ in range(n_clips):
        live.next(WAIT_S)
    return [(point.label, point.start.seed, point.end.seed) for point, _ in live.heard[-n_clips:]]


def wait_until(live, condition):
    with live.changed:
        assert live.changed.wait_for(condition, WAIT_S)


def test_seeds_wander_while_no_prompt_waits(begin, made):
    live = begin(clips_per_seed=2)
    assert hear(live, 4) == [("piano", 0, 0), ("piano", 0, 1), ("piano", 0, 1), ("piano", 1, 2)]
    assert [point.alpha for point in made[:5]] == [0, 0.5, 1, 0.5, 1]


def test_after_the_last_seed_comes_the_first(begin, made):
    live = begin(Prompt("piano", seed=2**32 - 1), clips_per_seed=1)
    assert hear(live, 3) == [("piano", 2**32 - 1, 2**32 - 1), ("piano", 2**32 - 1, 0), ("piano", 0, 1)]
    assert made


@pytest.mark.usefixtures("made")
def test_an_empty_prompt_is_played_and_named(begin):
    live = begin("")
    hear(live, 1)
    live.add("techno")
    live.add(" ")
    labels = [label for label, *_ in hear(live, 4)]
    assert labels == ["(no words) → techno (50%)", "techno", "techno → (no words) (50%)", "(no words)"]
    assert live.status["queue"] == [] and live.status["hints"] == []


@pytest.mark.usefixtures("made")
def test_numbers_of_numpy_are_numbers(begin):
    live = begin(Prompt(np.str_("piano"), np.int64(3)), clips_per_seed=np.int64(2), ahead=np.uint8(1))
    live.add(Prompt("techno", seed=np.uint8(7), guidance_scale=np.float32(2.5)))
    live.change(strength=np.float32(0.5))
    hear(live, 3)
    recipe = json.loads(json.dumps(live.recipe))
    assert recipe["heard"][-1]["end"] == {
        "text": "techno", "seed": 7, "negative_prompt": None, "guidance_scale": 2.5, "strength": 0.5
    }  # fmt: skip


@pytest.mark.usefixtures("made")
def test_notation_of_other_tools_is_remarked(begin):
    live = begin("piano --no drums")
    assert any(remark.startswith("'--no drums' says in Midjourney") for remark in live.status["hints"])
    live.add("piano")
    assert live.status["hints"] == []


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("n_before", [1, 2, 3, 6])
def test_new_prompt_is_heard_next_though_clips_were_made_ahead(begin, n_before):
    live = begin()
    hear(live, n_before)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    live.add("techno")
    first, second = hear(live, 2)
    assert first[0] == "piano → techno (50%)"
    assert second[0] == "techno"
    assert first[1] == first[2]  # the seed stays


@pytest.mark.usefixtures("made")
def test_prompts_that_wait_are_heard_in_turn(begin):
    live = begin()
    hear(live, 1)
    for prompt in ("techno", Prompt("jazz", seed=7), "slow"):
        live.add(prompt)
    labels = [label for label, *_ in hear(live, 7)]
    assert labels[:6] == ["piano → techno (50%)", "techno", "techno → jazz (50%)", "jazz", "jazz → slow (50%)", "slow"]
    assert labels[6] == "slow"
    assert live.heard[4][0].end.seed == 7


@pytest.mark.usefixtures("made")
def test_a_prompt_on_its_way_is_not_dropped_for_the_next(begin):
    live = begin(clips_per_prompt=1)
    hear(live, 1)
    live.add("techno")
    wait_until(live, lambda: live.ready and live.ready[-1].asked.changes_only_seed)  # techno is made, and more
    live.add("jazz")
    assert [label for label, *_ in hear(live, 2)] == ["techno", "jazz"]


def test_what_is_in_the_making_is_given_up_for_a_new_prompt(begin, monkeypatch):
    given_up = threading.Event()

    def generate_point(pipe, point, options):
        if point.alpha == 0 or point.end.text == "techno":
            return fake_clip(point)
        try:
            for step in range(100_000):  # until the callback says no
                time.sleep(0.001)
                options.callback(pipe, step % 12, None, {})
        except live_module._NotWanted:
            given_up.set()
            raise
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    live = begin(clips_per_prompt=1)
    hear(live, 1)
    wait_until(live, lambda: live.plan.making)
    live.add("techno")
    assert hear(live, 1)[0][0] == "techno"
    assert given_up.is_set()


def test_a_sound_that_is_not_wanted_any_more_is_not_computed(begin, monkeypatch):
    live, sounds = begin(clips_per_prompt=1), []

    class Unwanted:
        @property
        def waveform(self):
            sounds.append(self)

    def generate_point(_pipe, point, _options):
        if point.alpha == 0 or point.end.text == "techno":
            return fake_clip(point)
        live.add("techno")  # while the picture is made
        return Unwanted()

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    assert [label for label, *_ in hear(live, 2)] == ["piano", "techno"]
    assert sounds == []


@pytest.mark.usefixtures("made")
def test_a_prompt_that_is_heard_halfway_gives_way_to_the_next(begin):
    live = begin()
    hear(live, 1)
    live.add("techno")
    assert hear(live, 1)[0][0] == "piano → techno (50%)"
    live.add("jazz")
    assert [label for label, *_ in hear(live, 2)] == ["techno → jazz (50%)", "jazz"]
    live.add("slow")
    live.add("funk")  # slow is not heard yet: it comes first
    labels = ["jazz → slow (50%)", "slow", "slow → funk (50%)", "funk"]
    assert [label for label, *_ in hear(live, 4)] == labels


def first_ready(live):
    """The next clip, once it is made."""
    live.take()  # which starts the session
    wait_until(live, lambda: live.ready)
    return live.ready[0]


@pytest.mark.usefixtures("made")
def test_the_first_clip_of_a_new_prompt_begins_at_a_beat_and_no_other(begin):
    live = begin()
    live.add("piano")  # nothing is heard yet that could be cut
    assert not first_ready(live).at_beat and not live.status["awaited"]
    hear(live, 3)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    assert not any(made.at_beat for made in live.ready)
    live.add("techno")
    live.add("jazz")
    wait_until(live, lambda: len(live.ready) == live.ahead)
    assert [made.at_beat for made in live.ready] == [True, False]
    hear(live, 2)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    assert [made.point.end.text for made in live.ready] == ["jazz", "jazz"]
    assert not any(made.at_beat for made in live.ready)  # it has waited in the queue


@pytest.mark.usefixtures("made")
def test_a_prompt_behind_a_clip_that_is_still_wanted_begins_at_its_end(begin):
    live = begin(clips_per_prompt=1)
    hear(live, 1)
    live.add("techno")
    wait_until(live, lambda: len(live.ready) == 2)  # techno, and on to the next seed
    live.add("jazz")
    wait_until(live, lambda: len(live.ready) == 2)
    assert [(made.point.label, made.at_beat) for made in live.ready] == [("techno", True), ("jazz", False)]


@pytest.mark.usefixtures("made")
def test_new_settings_begin_at_a_beat(begin):
    live = begin()
    live.change(guidance_scale=2.0)
    assert not first_ready(live).at_beat
    hear(live, 1)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    live.change(guidance_scale=9.0)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    assert [made.at_beat for made in live.ready] == [True, False]
    live.change(guidance_scale=3.0)  # before that one was heard
    wait_until(live, lambda: len(live.ready) == live.ahead)
    assert [(made.point.guidance_scale, made.at_beat) for made in live.ready] == [(3.0, True), (3.0, False)]


def test_a_clip_that_failed_is_awaited_again(begin, monkeypatch):
    failing = threading.Event()

    def generate_point(_pipe, point, _options):
        if failing.is_set():
            raise RuntimeError("out of memory")
        return fake_clip(point)

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    live = begin()
    hear(live, 1)
    failing.set()
    live.add("techno")
    wait_until(live, lambda: live.error)
    assert not live.status["awaited"]  # nobody makes it
    failing.clear()
    live.retry()
    assert first_ready(live).at_beat


@pytest.mark.usefixtures("made")
def test_clips_say_where_their_beats_are(begin):
    live = begin("piano, 94 bpm")
    assert first_ready(live).beats == tuple(N_SAMPLES // 8 * beat for beat in range(1, 8))


@pytest.mark.usefixtures("made")
def test_a_clip_that_was_cut_counts_for_what_was_heard(begin):
    live = begin("piano, 94 bpm")
    hear(live, 1)
    live.begin(1)  # round again, up to the third beat
    second = first_ready(live)
    live.begin(second.number, cut_s=3 * CLIP_S / 8)
    assert [times for _, times in live.heard] == [1.375, 1]
    live.begin(second.number, cut_s=0.5)  # itself
    live.begin(second.number)
    assert [times for _, times in live.heard] == [1.375, 50 / 512, 2]
    assert [facts["times"] for facts in json.loads(json.dumps(live.recipe))["heard"]] == [1.375, 50 / 512, 2]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("cut_s", [-0.1, 5.2, math.nan, math.inf, "much", True])
def test_a_cut_that_cannot_be_is_refused_and_changes_nothing(begin, cut_s):
    live = begin()
    number = first_begun(live)
    before = live.recipe
    with pytest.raises((TypeError, ValueError), match="cut_s"):
        live.begin(number + 1, cut_s=cut_s)
    assert live.recipe == before


def first_begun(live):
    """The number of the first clip, which has begun, and the next one is ready."""
    hear(live, 1)
    first_ready(live)
    return 1


@pytest.mark.usefixtures("made")
def test_before_the_first_clip_nothing_can_be_cut(begin):
    live = begin()
    live.take()
    first = first_ready(live)
    with pytest.raises(ValueError, match="no clip has begun yet"):
        live.begin(first.number, cut_s=1.0)
    assert live.heard == []


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_recording_holds_the_part_of_a_clip_that_was_heard(begin, tmp_path, suffix):
    live = begin("piano, 94 bpm")
    hear(live, 1)
    live.record(tmp_path / f"take{suffix}")
    hear(live, 1)
    second = live.heard[-1][0]
    live.begin(2)  # round again, and then cut
    live.begin(first_ready(live).number, cut_s=3 * CLIP_S / 8)
    third = live.heard[-1][0]
    live.begin(first_ready(live).number, cut_s=CLIP_S / 8)
    fourth = live.heard[-1][0]
    path = live.stop_recording(heard_s=1.0)
    sound, _ = soundfile.read(path)
    beat, fade = N_SAMPLES // 8, round(0.03 * RATE)
    a, b, c = (fake_clip(point).waveform for point in (second, third, fourth))
    parts = [a, a[:, : 3 * beat], crossfade(a[:, 3 * beat :], b, fade)[:, :beat], crossfade(b[:, beat:], c, fade)]
    wanted = np.concatenate(parts, axis=1)[0, : N_SAMPLES + 4 * beat + RATE]
    assert len(sound) == len(wanted)
    np.testing.assert_allclose(sound, wanted, atol=1 / 32_767)


@pytest.mark.usefixtures("made")
def test_a_recording_goes_on_if_more_was_heard_of_a_clip_than_it_has(begin, tmp_path):
    live = begin()
    live.record(tmp_path / "take.wav")
    hear(live, 1)
    with pytest.raises(ValueError, match="heard_s must be at most the 5.12 s of the clip, not 6"):
        live.stop_recording(heard_s=6)
    assert live.stop_recording() == tmp_path / "take.wav"
    assert soundfile.info(tmp_path / "take.wav").frames == N_SAMPLES


@pytest.mark.usefixtures("made")
def test_what_was_cut_is_replayed_as_it_was_heard(begin, tmp_path):
    live = begin("piano, 94 bpm")
    live.record(tmp_path / "take.wav")
    hear(live, 1)
    live.begin(first_ready(live).number, cut_s=5 * CLIP_S / 8)
    live.begin(first_ready(live).number, cut_s=CLIP_S - 0.01)  # the fade reaches over the end
    recipe = json.loads(json.dumps(live.recipe))
    sound, _ = soundfile.read(live.stop_recording())
    again = list(replay_session(recipe, live.pipe))
    assert [clip.loop for clip in again] == [False, False, True]
    np.testing.assert_allclose(stitch(again).waveform[0], sound, atol=1 / 32_767)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("times", [-1, math.nan, "two"])
def test_a_recipe_with_a_wrong_number_of_times_is_refused(begin, times):
    live = begin()
    hear(live, 1)
    recipe = live.recipe
    recipe["heard"][0]["times"] = times
    with pytest.raises((TypeError, ValueError), match="times must be"):
        replay_session(recipe, live.pipe)


@pytest.mark.usefixtures("made")
def test_guidance_and_strength_change_from_the_next_clip_on(begin):
    live = begin(clips_per_seed=4)
    hear(live, 1)
    wait_until(live, lambda: len(live.ready) == live.ahead)
    live.change(guidance_scale=9.0, strength=0.25)
    live.next(WAIT_S)
    point, _ = live.heard[-1]
    assert (point.alpha, point.start.guidance_scale, point.end.strength) == (0.25, 9.0, 0.25)
    live.add(Prompt("techno", guidance_scale=2.0))
    hear(live, 2)
    assert live.heard[-1][0].end.guidance_scale == 2.0  # a prompt's own stays


def test_it_is_never_further_ahead_than_asked(begin, made):
    live = begin(ahead=2)
    live.take()
    wait_until(live, lambda: len(live.ready) == 2)
    time.sleep(0.2)  # it would go on now, if it did
    assert live.n_made == len(made) == 2
    assert [clip.number for clip in live.take()] == [1, 2]
    assert [clip.number for clip in live.take(have=1)] == [2]
    live.begin(1)
    wait_until(live, lambda: live.n_made == 3)
    for number in range(1, 40):
        wait_until(live, lambda n=number: live.n_made >= n)
        live.begin(number)
    assert len(live.recent) <= live.ahead + live_module.RECENT


@pytest.mark.usefixtures("made")
def test_the_last_clip_goes_round_and_is_counted(begin):
    live = begin()
    live.take()
    wait_until(live, lambda: live.ready)
    for _ in range(3):
        live.begin(1)
    assert [(point.alpha, times) for point, times in live.heard] == [(0, 3)]


def test_an_error_is_told_once_and_the_clip_is_tried_again(begin, monkeypatch):
    tried = []

    def generate_point(_pipe, point, _options):
        tried.append(point.alpha)
        if tried.count(0.25) == 1 and point.alpha == 0.25:
            raise RuntimeError("out of memory")
        return fake_clip(point)

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    live = begin()
    hear(live, 1)
    wait_until(live, lambda: live.error)
    assert live.status["error"] == "RuntimeError: out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        live.next(WAIT_S)
    assert live.status["error"] == ""
    hear(live, 1)
    assert live.heard[-1][0].alpha == 0.25


def test_an_error_of_the_sound_is_told_as_one_of_the_picture(begin, monkeypatch):
    class Broken:
        @property
        def waveform(self):
            raise MemoryError("no room for the sound")

    monkeypatch.setattr(live_module, "generate_point", lambda *_: Broken())
    live = begin()
    with pytest.raises(RuntimeError, match="no room for the sound"):
        live.next(WAIT_S)
    assert live.ready == []


def test_waiting_has_an_end(begin, monkeypatch):
    monkeypatch.setattr(live_module, "generate_point", lambda *_: time.sleep(1))
    live = begin()
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        live.next(0.01)
    live.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        live.next(WAIT_S)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_recording_is_what_is_heard(begin, tmp_path, suffix):
    live = begin()
    hear(live, 1)
    live.record(tmp_path / f"take{suffix}")
    hear(live, 1)
    live.begin(live.n_made - len(live.ready))  # round again
    hear(live, 1)
    path = live.stop_recording()
    assert path == tmp_path / f"take{suffix}"
    assert live.stop_recording() is None
    sound, rate = soundfile.read(path)
    assert (rate, len(sound)) == (RATE, 3 * N_SAMPLES)
    a, b = (fake_clip(point) for point, _ in live.heard[-2:])
    wanted = stitch([a, a, b]).waveform[0]
    if suffix == ".ogg":
        assert np.corrcoef(sound, wanted)[0, 1] > 0.95
    else:  # stitch closes a loop, a recording does not: the first fade is its own
        fade = round(0.03 * RATE)
        np.testing.assert_allclose(sound[fade:], wanted[fade:], atol=1 / 32_767)


FORMATS_BYTES = {".wav": 700_000, ".aiff": 700_000, ".caf": 700_000, ".flac": 500_000, ".ogg": 60_000, ".mp3": 60_000}


@contextlib.contextmanager
def room_for(n_bytes):
    """Let no file of this process grow beyond `n_bytes`: as on a full disk, what is more is not written."""
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(monkeypatch):
    """From the second clip on, the disk takes no more bytes and says so."""
    write = soundfile.SoundFile.write
    written = []

    def write_once(file, sound):
        written.append(len(sound))
        if sum(written) > N_SAMPLES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, sound)

    monkeypatch.setattr(soundfile.SoundFile, "write", write_once)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("suffix", FORMATS_BYTES)
def test_a_recording_on_a_full_disk_is_whole_up_to_there(begin, tmp_path, suffix):
    live = begin()
    path = tmp_path / f"take{suffix}"
    live.record(path)
    clips = []
    with room_for(FORMATS_BYTES[suffix]), pytest.warns(UserWarning, match=f"{path.name} .*is the disk full") as told:
        while not live.recording_error:
            clips.append(live.next(WAIT_S))
            n_over = len(clips) - 1  # the last one has only begun
            assert n_over < 40, "the file never grew too large"
        live.next(WAIT_S)  # the music goes on
    assert len(told) == 1
    clips = clips[:n_over]
    assert live.status["recording"] == "" and live.status["recording_error"] == live.recording_error
    assert live.stop_recording() is None
    sound, rate = soundfile.read(path)
    assert rate == RATE
    # Of what was heard it lacks at most the block whose writing failed, the frame that an encoder still held, and the
    # pages of Ogg that were not full: less than three seconds of each clip's 5.12
    wanted = stitch(clips).waveform[0]
    assert len(wanted) - N_SAMPLES - 3 * RATE < len(sound) <= len(wanted)
    fade = round(0.03 * RATE)
    part = slice(fade, min(len(sound), len(wanted)) - RATE)  # codecs end somewhat off
    if suffix in (".ogg", ".mp3"):
        assert np.corrcoef(sound[part], wanted[part])[0, 1] > 0.95
    else:
        np.testing.assert_allclose(sound[part], wanted[part], atol=1 / 32_767)


@pytest.mark.usefixtures("made", "full_disk")
def test_an_error_of_the_disk_ends_the_recording_and_nothing_else(begin, tmp_path):
    live = begin()
    live.record(tmp_path / "take.wav")
    live.next(WAIT_S)
    live.next(WAIT_S)
    with pytest.warns(UserWarning, match=os.strerror(errno.ENOSPC)):
        live.next(WAIT_S)  # the second is over
    assert "take.wav" in live.status["recording_error"]
    assert soundfile.info(tmp_path / "take.wav").frames == N_SAMPLES  # the first clip, whole
    wait_until(live, lambda: live.ready)
    live.begin(live.ready[0].number)
    assert len(live.heard) == 4


@pytest.mark.usefixtures("made")
def test_after_a_recording_that_failed_another_begins(begin, tmp_path, monkeypatch):
    live = begin()
    live.record(tmp_path / "take.wav")
    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "write", failing_write)
        live.next(WAIT_S)
        with pytest.warns(UserWarning, match=r"take\.wav"):
            live.next(WAIT_S)
    live.record(tmp_path / "again.wav")
    assert live.status["recording_error"] == ""
    live.next(WAIT_S)
    assert live.stop_recording() == tmp_path / "again.wav"
    assert soundfile.info(tmp_path / "again.wav").frames == N_SAMPLES


def failing_write(*_):
    raise soundfile.LibsndfileError(2)


@pytest.mark.usefixtures("made")
def test_a_recording_that_cannot_be_finished_is_told_and_the_session_ends(begin, tmp_path, monkeypatch):
    live = begin()
    hear(live, 1)
    live.record(tmp_path / "take.wav")
    hear(live, 1)
    close = soundfile.SoundFile.close

    def close_and_fail(file):
        if not file.closed:
            close(file)
            raise soundfile.LibsndfileError(2)

    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "close", close_and_fail)
        with pytest.raises(OSError, match=r"the end of .*take\.wav could not be written"):
            live.stop()
    assert live.stop_recording() is None
    assert not live._thread.is_alive()


@pytest.mark.usefixtures("made")
def test_a_recording_that_cannot_begin_is_refused_and_the_last_one_goes_on(begin, tmp_path):
    live = begin()
    live.record(tmp_path / "take.wav")
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    with pytest.raises(OSError, match=r"folder\.wav cannot be recorded .*that can be written to"):
        live.record(folder)
    hear(live, 1)
    assert live.stop_recording() == tmp_path / "take.wav"
    assert soundfile.info(tmp_path / "take.wav").frames == N_SAMPLES


@pytest.mark.slow
def test_the_recipe_plays_the_same_again(begin):
    live = begin(num_inference_steps=2)
    clips = [live.next(WAIT_S)]
    live.add("techno")
    live.change(guidance_scale=3.0)
    clips += [live.next(WAIT_S) for _ in range(3)]
    recipe = json.loads(json.dumps(live.recipe))
    live.stop()
    again = list(replay_session(recipe, live.pipe))
    for clip, other in zip(clips, again, strict=True):
        np.testing.assert_array_equal(np.asarray(clip.image), np.asarray(other.image))
        np.testing.assert_array_equal(clip.waveform, other.waveform)


def test_old_recipes_with_seeds_of_more_than_32_bits_play_the_same(begin):
    live = begin(Prompt("piano", 5), num_inference_steps=1)
    clip = live.next(WAIT_S)
    recipe = json.loads(json.dumps(live.recipe))
    live.stop()
    recipe["heard"][0]["start"]["seed"] = recipe["heard"][0]["end"]["seed"] = 2**40 + 5
    (again,) = replay_session(recipe, live.pipe)
    np.testing.assert_array_equal(np.asarray(clip.image), np.asarray(again.image))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.5, -0.1, math.nan])
def test_a_recipe_with_a_point_outside_of_its_walk_is_refused(begin, alpha):
    live = begin(num_inference_steps=1)
    live.next(WAIT_S)
    recipe = json.loads(json.dumps(live.recipe))
    live.stop()
    recipe["heard"][0]["alpha"] = alpha
    with pytest.raises(ValueError, match="alpha must be"):
        replay_session(recipe, live.pipe)


@pytest.mark.slow
def test_a_seed_clip_is_needed_again(begin, music):
    seed_clip = Clip.from_audio(music, RATE, loop=True)
    live = begin(seed_clip=seed_clip, num_inference_steps=2)
    clip = live.next(WAIT_S)
    recipe = live.recipe
    live.stop()
    with pytest.raises(ValueError, match="seed clip"):
        replay_session(recipe, live.pipe)
    (again,) = replay_session(recipe, live.pipe, seed_clip=seed_clip)
    np.testing.assert_array_equal(clip.waveform, again.waveform)
    assert clip.maximum == seed_clip.maximum


@pytest.mark.usefixtures("made")
def test_bad_input_is_refused_and_changes_nothing(begin, tmp_path):
    live = begin()
    hear(live, 1)
    before = live.status["queue"], live.recipe
    for prompt, words in (("x" * 10_000, "10,000"), (None, "str"), (3, "str"), (Prompt("a", 2**32), "4294967295")):
        with pytest.raises((TypeError, ValueError), match=words):
            live.add(prompt)
    for change in ({"guidance_scale": -1}, {"strength": 2}, {"guidance_scale": float("nan")}, {"strength": "much"}):
        with pytest.raises((TypeError, ValueError)):
            live.change(**change)
    with pytest.raises(ValueError, match="99"):
        live.begin(99)
    with pytest.raises(ValueError, match="format"):
        live.record(tmp_path / "take.xyz")
    with pytest.raises(FileNotFoundError, match="missing"):
        live.record(tmp_path / "missing" / "take.wav")
    assert (live.status["queue"], live.recipe) == before
    with pytest.raises(ValueError, match="not a session's recipe"):
        replay_session({"kind": "text_to_audio"}, live.pipe)


def test_bad_beginnings_are_refused(begin, music):
    for options in ({"ahead": 0}, {"clips_per_prompt": 0}, {"clips_per_seed": 1.5}, {"num_inference_steps": 0}):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            begin(**options)
    with pytest.raises(ValueError, match="must last a multiple of 5.12 s"):
        begin(seed_clip=Clip.from_audio(music, RATE)[:3])


def test_ten_quick_prompts_fill_the_queue_and_no_more(begin, monkeypatch):
    monkeypatch.setattr(live_module, "generate_point", lambda *_: time.sleep(0.05) or fake_clip(_[1]))
    live = begin()
    refused = 0
    for _ in range(LONGEST_QUEUE + 2):
        try:
            live.add("techno")
        except ValueError as error:
            assert "are already waiting" in str(error)
            refused += 1
    assert refused == 2
    assert len(live.status["queue"]) == LONGEST_QUEUE
    assert hear(live, 3)[-1][0] == "techno"


@pytest.mark.slow
def test_cells_may_make_clips_while_it_plays(begin, pipe):
    from riffusion_lab import text_to_audio

    alone = text_to_audio(pipe, "jazz", seed=3, loop=False)
    live = begin(num_inference_steps=2)
    live.take()
    beside = [text_to_audio(pipe, "jazz", seed=3, loop=False) for _ in range(3)]
    for clip in beside:
        np.testing.assert_array_equal(np.asarray(clip.image), np.asarray(alone.image))
    live.next(WAIT_S)


# Prompts that wait: taken out, moved, listed


def wait_polling(condition, timeout_s=10):
    """Wait for what no listener is told, such as that a clip is begun."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def queued(live):
    return [(each.prompt.text, each.state) for each in live.waiting]


@pytest.fixture
def slow(monkeypatch):
    """Tones that are made when the test lets them: `slow.release()` for each, `slow.points` that were begun."""

    class Slow:
        points = []

        def release(self, n=1):
            for _ in range(n):
                self.gate.release()

    slow = Slow()
    slow.points, slow.gate = [], threading.Semaphore(0)

    def generate_point(pipe, point, options):
        slow.points.append(point)
        while not slow.gate.acquire(timeout=0.005):
            options.callback(pipe, 0, None, {})
        return fake_clip(point)

    monkeypatch.setattr(live_module, "generate_point", generate_point)
    return slow


@pytest.mark.usefixtures("made")
def test_prompts_that_wait_have_numbers_states_and_expectations(begin):
    live = begin()
    assert live.waiting == []
    hear(live, 1)
    wait_until(live, lambda: len(live.ready) == 2)
    numbers = [live.add(text) for text in ("techno", "jazz", "slow", "funk")]
    assert numbers == [1, 2, 3, 4]
    wait_until(live, lambda: len(live.ready) == 2)  # both on the way to techno
    assert queued(live) == [("techno", "made"), ("jazz", "next"), ("slow", "later"), ("funk", "later")]
    assert [each.clips_before for each in live.waiting] == [0, 2, 4, 6]
    assert [each["number"] for each in live.status["waiting"]] == numbers
    json.dumps(live.status)
    seconds = [each.make_s for each in live.waiting]
    assert seconds[0] == 0 and seconds == sorted(seconds)
    assert seconds[2] - seconds[1] == pytest.approx(2 * live.seconds_per_clip)
    live.begin(live.ready[0].number)  # halfway to techno
    assert [text for text, _ in queued(live)] == ["jazz", "slow", "funk"]


def test_the_prompt_that_is_made_says_so_and_can_be_skipped(begin, slow):
    live = begin()
    slow.release()
    hear(live, 1)
    techno, jazz = live.add("techno"), live.add("jazz")
    wait_polling(lambda: live.plan.making and live.plan.making.end.text == "techno")
    assert queued(live) == [("techno", "making"), ("jazz", "next")]
    assert live.waiting[0].clips_before == 0
    live.remove(techno)
    wait_polling(lambda: live.plan.making and live.plan.making.end.text == "jazz")
    assert [(each.number, each.state) for each in live.waiting] == [(jazz, "making")]
    assert live.status["awaited"]
    slow.release(2)
    assert [label for label, *_ in hear(live, 2)] == ["piano → jazz (50%)", "jazz"]
    assert "techno" not in json.dumps(live.recipe)


@pytest.mark.usefixtures("made")
def test_a_prompt_that_is_taken_out_is_not_heard(begin):
    live = begin()
    hear(live, 1)
    numbers = [live.add(text) for text in ("techno", "jazz", "slow")]
    live.remove(numbers[1])
    labels = ["piano → techno (50%)", "techno", "techno → slow (50%)", "slow"]
    assert [label for label, *_ in hear(live, 4)] == labels
    assert live.waiting == []


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("clips_per_prompt", [1, 2, 3])
def test_prompts_change_places_also_with_the_one_that_is_made(begin, clips_per_prompt):
    live = begin(clips_per_prompt=clips_per_prompt)
    hear(live, 1)
    techno, jazz, slow = (live.add(text) for text in ("techno", "jazz", "slow"))
    live.move(slow, 1)
    assert [each.number for each in live.waiting] == [techno, slow, jazz]
    live.move(jazz, 0)
    assert [each.number for each in live.waiting] == [jazz, techno, slow]
    labels = [label for label, *_ in hear(live, 3 * clips_per_prompt)]
    assert [label for label in labels if "→" not in label] == ["jazz", "techno", "slow"]
    assert live.waiting == []


@pytest.mark.usefixtures("made")
def test_prompts_that_do_not_wait_are_neither_moved_nor_taken_out(begin):
    live = begin()
    hear(live, 1)
    number = live.add("techno")
    live.add("jazz")
    before = queued(live)
    for bad in (0, 99, None, "techno"):
        with pytest.raises(ValueError, match="does not wait any more"):
            live.remove(bad)
        with pytest.raises(ValueError, match="does not wait any more"):
            live.move(bad, 0)
    for place in (-1, 2, 0.5, "first"):
        with pytest.raises((TypeError, ValueError), match="place"):
            live.move(number, place)
    assert [text for text, _ in before] == [text for text, _ in queued(live)]
    hear(live, 1)
    with pytest.raises(ValueError, match="does not wait any more"):
        live.remove(number)  # it is heard


@pytest.mark.usefixtures("made")
def test_threads_may_add_move_and_remove_at_once(begin):
    live = begin(clips_per_prompt=1)
    hear(live, 1)
    failed = []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(40):
            try:
                number = live.add(f"techno {random.integers(100)}")
                live.move(number, int(random.integers(3)))
                live.remove(number)
            except ValueError as error:
                if not any(words in str(error) for words in ("already waiting", "does not wait", "place must be")):
                    failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        live.next(WAIT_S)
    for thread in threads:
        thread.join()
    assert failed == []
    hear(live, LONGEST_QUEUE + 4)
    assert live.waiting == [] and live.error is None


@pytest.mark.usefixtures("made")
def test_the_prompt_that_is_heard_goes_on_with_the_next_seed(begin):
    """Else the same clip would be heard twice in a row."""
    live = begin()
    hear(live, 1)
    live.add("piano")
    assert [(start, end) for _, start, end in hear(live, 2)] == [(0, 1), (0, 1)]


# Seeds: hold, wander, next


@pytest.mark.usefixtures("made")
def test_a_seed_that_is_held_goes_round_until_a_prompt_or_the_end_of_holding(begin):
    live = begin()
    hear(live, 1)
    live.hold()
    assert live.status["held"] and live.status["holding"] and not live.status["awaited"]
    first = live.next(WAIT_S)
    assert live.next(WAIT_S) is first
    assert [times for _, times in live.heard] == [3]
    live.add("techno")
    assert [label for label, *_ in hear(live, 2)] == ["piano → techno (50%)", "techno"]
    wait_until(live, lambda: live.status["holding"])
    live.hold(False)
    assert hear(live, 1) == [("techno", 0, 1)]
    with pytest.raises(TypeError, match="on must be"):
        live.hold("yes")


@pytest.mark.usefixtures("made")
def test_the_next_seed_is_a_prompt_that_waits(begin):
    live = begin()
    hear(live, 1)
    live.hold()
    live.next_seed()
    live.next_seed()
    assert [each.prompt.seed for each in live.waiting] == [1, 2]
    assert [(start, end) for _, start, end in hear(live, 4)] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    wait_until(live, lambda: live.status["holding"])


# Nobody listens


def test_a_session_that_nobody_hears_pauses_and_goes_on_when_somebody_asks(begin, slow, monkeypatch):
    monkeypatch.setattr(live_module, "UNHEARD_S", 1.0)
    live = begin(ahead=3)
    live.take()
    wait_polling(lambda: live.plan.making)
    slow.release()
    wait_until(live, lambda: live.n_made == 1)
    wait_polling(lambda: len(slow.points) == 2)
    wait_polling(lambda: live.plan.making is None)  # given up in the middle of the second clip
    assert live.status["paused"]
    slow.release()
    time.sleep(0.2)
    assert live.n_made == 1
    assert [made.number for made in live.take()] == [1]
    wait_until(live, lambda: live.n_made == 2)
    assert not live.status["paused"] or live.status["paused"] is live._is_unheard()
    assert [point.alpha for point in slow.points[:3]] == [0, 0.25, 0.25]  # the one that was given up comes again


def test_next_is_a_listener_however_long_it_waits(begin, slow, monkeypatch):
    monkeypatch.setattr(live_module, "UNHEARD_S", 0.1)
    live = begin()
    threading.Timer(0.6, slow.release).start()
    live.next(WAIT_S)
    assert len(slow.points) <= 2 and slow.points[0].alpha == 0


def test_a_pause_ends_with_the_next_question(begin, slow):
    live = begin()
    slow.release()
    hear(live, 1)
    wait_polling(lambda: live.plan.making)
    live.pause()
    assert live.status["paused"] and live.plan.making is None
    time.sleep(0.1)
    assert live.plan.making is None
    live.take()
    wait_polling(lambda: live.plan.making)
    assert not live.status["paused"]


# A recipe again, and as code


@pytest.mark.usefixtures("made")
def test_a_recipe_is_played_again_in_a_session_and_makes_the_same_recipe(begin):
    live = begin("piano, 94 bpm")
    hear(live, 1)
    live.add("techno, 94 bpm")
    first_ready(live)
    live.begin(1)
    live.begin(live.ready[0].number, cut_s=3 * CLIP_S / 8)
    hear(live, 2)
    recipe = json.loads(json.dumps(live.recipe))
    other = begin("jazz")
    hear(other, 1)
    other.add("slow")
    other.replay(recipe)
    assert other.waiting == []
    other.add("funk")  # heard after it
    n_before = len(other.heard)
    cut_s = None
    for times in [facts["times"] for facts in recipe["heard"]]:  # as a browser does
        made = first_ready(other)
        assert made.times == times
        other.begin(made.number, cut_s=cut_s)
        for _ in range(math.ceil(times) - 1):
            other.begin(made.number)
        cut_s = CLIP_S * (times % 1) or None
    assert other.recipe["heard"][n_before:] == recipe["heard"]
    assert first_ready(other).times is None
    assert hear(other, 2)[-1][0] == "funk"


@pytest.mark.usefixtures("made")
def test_recipes_that_cannot_be_played_are_refused_and_change_nothing(begin):
    live = begin()
    hear(live, 1)
    recipe = live.recipe
    live.add("techno")
    for bad, words in (
        ({"kind": "text_to_audio"}, "not a session's recipe"),
        (recipe | {"heard": []}, "nothing was heard"),
        (recipe | {"num_inference_steps": 99}, "num_inference_steps=99"),
        (recipe | {"source_sha256": "x"}, "seed clip"),
        (recipe | {"heard": [{"start": {}}]}, "missing"),
        (recipe | {"heard": [{}]}, "lacks 'start'"),
        ([], "not a session's recipe"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            live.replay(bad)
    assert [text for text, _ in queued(live)] == ["techno"]


@pytest.mark.usefixtures("made")
def test_the_code_makes_a_session_with_the_same_prompts(begin, pipe):
    live = begin(Prompt("piano's", seed=5), clips_per_prompt=1, clips_per_seed=2)
    hear(live, 1)
    live.add(Prompt("techno", seed=7, guidance_scale=2.0, negative_prompt="drums"))
    hear(live, 4)  # on to other seeds
    live.add("jazz")
    scope = {"pipe": pipe}
    exec(live.code, scope)
    again = scope["session"]
    try:
        assert again.clips_per_prompt == 1 and again.clips_per_seed == 2
        hear(again, 2)  # the code has heard one
        ends = [(point.end.text, point.end.negative_prompt) for point, _ in again.heard]
        assert ends == [("piano's", None), ("techno", "drums"), ("jazz", None)]
        assert "guidance_scale=2.0" in live.code and "strength" not in live.code
    finally:
        again.stop()
