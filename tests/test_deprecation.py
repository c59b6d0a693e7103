"""Old paths and names work for one more release, and say where to find what they lead to."""

from importlib import import_module

import pytest

MOVED = {
    ("riffusion_lab.denoise", "begins_in_the_middle"): ("riffusion_lab.sampling", "img2img_scheduler"),
    ("riffusion_lab.denoise", "draw_noise"): ("riffusion_lab.sampling", "draw_noise"),
    ("riffusion_lab.denoise", "first_noise"): ("riffusion_lab.sampling", "scale_static_noise"),
    ("riffusion_lab.denoise", "perturbed_attention"): ("riffusion_lab.networks", "perturbed_attention"),
    ("riffusion_lab.generate", "replay"): ("riffusion_lab.replaying", "replay"),
    ("riffusion_lab.loops", "circular_time"): ("riffusion_lab.networks", "circular_time"),
    ("riffusion_lab.loops", "decode"): ("riffusion_lab.latents", "decode"),
    ("riffusion_lab.loops", "encode"): ("riffusion_lab.latents", "encode"),
    ("riffusion_lab.loops", "sliding_windows"): ("riffusion_lab.networks", "sliding_windows"),
    ("riffusion_lab.loops", "windows"): ("riffusion_lab.networks", "windows"),
    ("riffusion_lab.masks", "latent_mask"): ("riffusion_lab.latents", "latent_mask"),
    ("riffusion_lab.prompts", "of_one_length"): ("riffusion_lab.prompts", "pad_to_same_length"),
    ("riffusion_lab.seeds", "SEEDS"): ("riffusion_lab.seed_clips", "SEED_CLIPS"),
    ("riffusion_lab.seeds", "seed_clip"): ("riffusion_lab.seed_clips", "seed_clip"),
    ("riffusion_lab.seeds", "seed_masks"): ("riffusion_lab.seed_clips", "seed_masks"),
    ("riffusion_lab.widgets", "Session"): ("riffusion_lab.live", "Session"),
    ("riffusion_lab.widgets", "replay_session"): ("riffusion_lab.live", "replay_session"),
}


@pytest.mark.parametrize(("old", "new"), MOVED.items(), ids=lambda place: ".".join(place))
def test_old_names_lead_to_the_new_ones(old, new):
    old_module, new_module = import_module(old[0]), import_module(new[0])
    with pytest.warns(DeprecationWarning, match=f"{old[0]}.{old[1]} is deprecated: take {new[1]} from {new[0]}"):
        found = getattr(old_module, old[1])
    assert found is getattr(new_module, new[1])


def test_what_never_was_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module("riffusion_lab.loops").nothing
