"""The short clips that lesson 10 trains on, and the results that it and lesson 09 show, are what they say of them."""

import json

import numpy as np
import pytest
import torch

import lesson_networks
from riffusion_lab import load_pipeline
from riffusion_lab.training.lesson import DATA, LEVELS_PER_UNIT, load_lesson_clips, save_latents


def test_saved_latents_come_back_rounded(tmp_path):
    latents = torch.randn((6, 4, 64, 16), generator=torch.Generator().manual_seed(0))
    save_latents(latents, np.arange(6) % 2, ("a", "b"), file=tmp_path / "data" / "clips.npz")
    clips = load_lesson_clips(tmp_path / "data" / "clips.npz")
    assert clips.prompts == ("a", "b") and clips.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (clips.latents - latents).abs().max() <= 0.5 / LEVELS_PER_UNIT + 1e-6  # float32's own rounding


def test_shipped_clips_are_balanced_and_their_split_is_clean():
    clips = load_lesson_clips()
    assert clips.latents.shape == (300, 4, 64, 16)
    assert clips.labels.bincount().tolist() == [100, 100, 100]
    assert clips.labels[clips.held_out].bincount().tolist() == [10, 10, 10]
    assert sorted([*clips.training.tolist(), *clips.held_out.tolist()]) == list(range(300))


def test_shipped_clips_are_riffling_latents():
    """Nearly whitened, as the autoencoder is trained to make them, and nothing cut off at the ends of 8 bits."""
    clips = load_lesson_clips()
    for label in range(3):
        assert 0.5 < clips.latents[clips.labels == label].std() < 1.5
    assert clips.latents.abs().max() < 127 / LEVELS_PER_UNIT


def test_shipped_curves_bear_out_the_lesson():
    curves = json.loads((DATA / "lesson_10_curves.json").read_text(encoding="utf-8"))

    def counts(target, dropout, scale):
        return [r["recognized"][scale] for r in curves["runs"] if (r["target"], r["dropout"]) == (target, dropout)]

    assert curves["real_recognized"] == curves["n_real"]  # the judge is fit for such short clips
    assert min(counts("v", 0.1, "2")) > max(counts("v", 0.0, "2"))  # guidance needs caption dropout
    assert min(counts("v", 0.1, "2")) > max(counts("x0", 0.1, "2")) > max(counts("epsilon", 0.1, "2"))


def test_history_has_every_sound_and_says_how_good_it_is():
    history = json.loads((DATA / "history" / "history.json").read_text(encoding="utf-8"))
    versions = history["versions"]
    assert [version["date"] for version in versions] == sorted(version["date"] for version in versions)
    for version in versions:
        assert (DATA / "history" / version["file"]).is_file()
        assert 0 < len(version["mistakes"]) < version["n_clips"]
    assert versions[-1]["frechet"] < versions[1]["frechet"]


@pytest.fixture(scope="module")
def measured():
    return json.loads((DATA / "lesson_09.json").read_text(encoding="utf-8"))


def test_shipped_measures_bear_out_lesson_09(measured):
    """Perturbed attention makes steps between columns larger, the static noise makes takes differ more."""
    found = {(each["way"], each["prompt"]): each for each in measured["ways"]}
    prompts = {prompt for _, prompt in found}
    assert len(prompts) == 3 and {len(each["steps"]) for each in found.values()} == {measured["seeds"]} == {16}
    for prompt in prompts:
        as_it_is = found["as it is", prompt]
        assert np.mean(as_it_is["steps"]) > np.mean(found["no perturbed attention", prompt]["steps"])
        by_gain = [found["static noise × 1", prompt], as_it_is, found["static noise × 1.5", prompt]]
        assert by_gain == sorted(by_gain, key=lambda each: each["diversity"])


def test_shipped_paths_bear_out_lesson_09(measured):
    """riffling-turbo gets nearer to riffling's clip than riffling does in as few steps, whatever the seed."""
    for found in measured["few_steps"]:
        errors = {name: np.array(path["errors"]) for name, path in found["paths"].items()}
        assert errors["riffling"].shape == (16, 13) and errors["riffling-turbo"].shape == (16, 4)
        assert (errors["riffling-turbo"][:, -1] < errors["riffling in three steps"][:, -1]).all()
        assert (errors["riffling-turbo"][:, 0] < errors["riffling"][:, 0]).all()  # even by their first estimates


@pytest.mark.slow
def test_lesson_09_is_measured_again(measured, monkeypatch):
    """One seed of one prompt; another processor calculates a little differently, and steps add that up."""
    monkeypatch.setattr(lesson_networks, "SEEDS", [0])
    saved = measured["few_steps"][0]
    again = lesson_networks.measure_few_steps(load_pipeline(), load_pipeline("riffling-turbo"), saved["prompt"])
    for name, path in again["paths"].items():
        np.testing.assert_allclose(path["errors"][0], saved["paths"][name]["errors"][0], atol=0.01)
