"""The measures over many seeds that lesson 06 draws are what the prose says, and can be made again."""

import json

import numpy as np
import pytest

import lesson_holes
import lesson_negatives
from entries import measure_entries
from riffusion_lab.seed_clips import seed_clip


def shipped(tool, part, text):
    entries = json.loads(tool.OUTPUT.read_text(encoding="utf-8"))["entries"]
    return [entry for entry in entries if (entry["part"], entry["text"]) == (part, text)]


@pytest.mark.parametrize("tool", [lesson_negatives])
def test_every_entry_that_a_script_asks_for_is_shipped(tool):
    entries = json.loads(tool.OUTPUT.read_text(encoding="utf-8"))["entries"]
    assert [{name: entry[name] for name in ("part", "text", "seed")} for entry in entries] == tool.REQUESTS


def test_onsets_tell_pieces_with_drums_from_the_same_pieces_without():
    for style in lesson_negatives.STYLES:
        with_drums, without = np.array([entry["onsets"] for entry in shipped(lesson_negatives, "composed", style)]).T
        assert len(without) == 16 and (with_drums > without).all()


def test_words_leave_out_drums_more_often_than_a_negative_prompt():
    """The verdict of lesson 06, at the guidance scale of riffling."""
    for prompt in lesson_negatives.PROMPTS:
        as_it_comes, words, negative, _, _ = np.array(
            [entry["onsets"] for entry in shipped(lesson_negatives, "drums", prompt)]
        ).T
        assert np.mean(words < as_it_comes) > 0.9
        assert np.mean(words < negative) > 0.9


def test_jump_is_large_at_a_hole_filled_with_something_else():
    clip = lesson_holes.darkness(seed_clip("arpeggio"))
    mask = np.zeros((512, 512), bool)
    mask[:, 192:256] = True
    changed = np.where(mask, 255 - clip, clip)
    assert lesson_holes.jump(changed, mask) > 5 * lesson_holes.jump(clip, mask)
    assert lesson_holes.beats_kept(changed, clip, mask) < lesson_holes.beats_kept(clip, clip, mask)
    assert lesson_holes.distance(changed, clip, mask) > lesson_holes.distance(clip, clip, mask)


def test_tempo_and_level_are_found():
    picture = np.zeros((512, 504))
    picture[:, 3::64] = 255  # every 0.64 s
    assert lesson_holes.tempo(picture) == pytest.approx(93.75)
    assert lesson_holes.level_db(picture * 0.5) - lesson_holes.level_db(picture) == pytest.approx(-24.1, abs=0.1)


def test_entries_are_kept_and_the_missing_ones_measured(tmp_path):
    file = tmp_path / "entries.json"
    requests = [{"part": "a", "seed": seed} for seed in range(3)]
    file.write_text(json.dumps({"entries": [requests[1] | {"found": "before"}]}), encoding="utf-8")
    assert measure_entries(file, requests, echo, minutes=1) == 0
    entries = json.loads(file.read_text(encoding="utf-8"))["entries"]
    assert [entry["found"] for entry in entries] == ["now", "before", "now"]


def echo(request):
    return {"found": "now"} | {"echo": [request["seed"]]}


@pytest.mark.slow
def test_entries_of_lesson_06_are_measured_again():
    prompt = lesson_negatives.PROMPTS[0]
    again, saved = lesson_negatives.drums(prompt, 0), shipped(lesson_negatives, "drums", prompt)[0]
    np.testing.assert_allclose(again["onsets"], saved["onsets"], atol=0.05)
    np.testing.assert_allclose(again["distance"], saved["distance"], atol=1)
