"""The check of Riffusion v1, run on a small random model laid out like it; and lessons, run with other prompts."""

import json
import shutil

import pytest
from diffusers import UNet2DConditionModel

import frame
import notebooks as tool
from notebook_lane import AsyncOwnFilesKernelManager
from riffusion_lab.models import SETTINGS_FILE, WEIGHTS
from tiny import save_tiny_pipeline

pytestmark = pytest.mark.notebooks

# What a reader is likely to change, and what to: every notebook must run through with it. How well the music sounds
# does not matter here, so lessons that choose their steps take fewer.
FEW_STEPS = ("DRAFT, GOOD = 4, 6", "DRAFT, GOOD = 2, 3")
CHANGES = {
    "00_start_here": [
        ('"church bells"', '"techno"'),
        ('"jazz with piano", seed=[1, 2, 3, 4]', '"rain", seed=[5, 6, 7, 8]'),
        ('"tropical jazz with steel drums", seed=4', '"slow rock with flute", seed=40'),
    ],
    "01_sound_to_picture": [("default_rng(0)", "default_rng(5)"), ("[69, 72, 76, 81, 79, 76, 72, 71]", "[60] * 8")],
    "02_picture_to_sound": [
        ("default_rng(0)", "default_rng(5)"),
        ('"piano", seed=1', '"waves", seed=2'),
        ('NAME = "RIFF"', 'NAME = "ANNA"'),
    ],
    "03_text_to_music": [('"piano, slow", 7', '"harsh funk, 94 bpm", 8'), ("[11, 12]", "[0, 1]")],
    "04_interpolation": [
        ('"jazz with piano, 94 bpm", seed=1', '"harp, slow, 117 bpm", seed=7'),
        ('"techno, 94 bpm", seed=2', '"rock, 117 bpm", seed=8'),
        ("SEED, FIRST, SECOND = 4,", "SEED, FIRST, SECOND = 9,"),
        ('seed_clip("beat")', 'seed_clip("melody")'),
        FEW_STEPS,
    ],
    "05_inpainting": [
        ('"rock band with drums, 94 bpm", 3, 11', '"slow choir", 8, 2'),
        ('"church organ, 94 bpm"', '"techno"'),
        ('"drum solo, fast", seed=10', '"rain", seed=4'),
        ("(1.87, 3.25)", "(2, 3)"),
    ],
    "06_negative_prompts": [
        ('PROMPT, SEED = "jazz with piano", 1', 'PROMPT, SEED = "rock, 117 bpm", 7'),
        ('"drums only"', '"church organ"'),
        ('"jazz with (piano:1.3), (drums:0.5)"', '"[slow] ((techno)) (flute:0)"'),
        ('"slow jazz trio with piano, warm double bass, no drums, "', '"funk with saxophone, "'),
        FEW_STEPS,
    ],
    "07_audio_to_audio": [
        ('(seed_clip("arpeggio") * 2)[:5.76]', 'seed_clip("melody")[:3.1]'),
        ('STYLE = "church organ"', 'STYLE = "techno"'),
        ('"electric piano, 94 bpm"', '"rain"'),
        ('"music box", "choir"', '"techno", "rain"'),
    ],
    "08_live": [
        ('"piano, 94 bpm"', '"slow choir"'),
        ('"techno, 94 bpm"', '"rain, 117 bpm"'),
        ("FIRST, SECOND = 1, 2", "FIRST, SECOND = 8, 3"),
    ],
    "09_inside_the_networks": [
        ('"jazz with drums and saxophone", 1, 500', '"slow techno", 7, 700'),
        ('"church bells", "jazz with saxophone"', '"rain", "harp"'),
        ('"church organ, slow"', '"funk, slow"'),
    ],
    "10_train_riffling": [
        ("SEED = 0", "SEED = 7"),
        ("N_STEPS = 320", "N_STEPS = 24"),
        ("one_clip, 150,", "one_clip, 10,"),
        ("nonzero()[5]", "nonzero()[8]"),
        ("N_EACH = 16", "N_EACH = 2"),
    ],
}


def run_changed(path, changes, folder):
    """Run a notebook with some of its text replaced, and return it."""
    notebook = tool.read(path)
    for old, new in changes:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        assert cells, f"{path.name} holds no {old!r}"
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    tool.execute(notebook, folder, kernel_manager_class=AsyncOwnFilesKernelManager)
    return notebook


def test_every_lesson_is_tried_with_another_prompt():
    assert {f"{name}.ipynb" for name in CHANGES} == {path.name for path in (frame.ROOT / "notebooks").glob("*.ipynb")}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """riffling with a narrow, random U-Net that takes two steps: an eighth of the work."""
    folder = tmp_path_factory.mktemp("models") / "riffling"
    shutil.copytree(WEIGHTS / "riffling", folder)
    config = UNet2DConditionModel.load_config(folder / "unet")
    narrow = UNet2DConditionModel.from_config(config, block_out_channels=(8, 16, 24, 24), norm_num_groups=8)
    narrow.save_pretrained(folder / "unet")
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    (folder / SETTINGS_FILE).write_text(json.dumps(settings | {"num_inference_steps": 2}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_lesson_runs_with_another_seed_and_prompt(name, tmp_path, quick):
    path = frame.ROOT / "notebooks" / f"{name}.ipynb"
    code = "\n".join(cell.source for cell in tool.read(path).cells if cell.cell_type == "code")
    loads = [call for call in ("load_pipeline()", 'load_pipeline("riffling-turbo")') if call in code]
    run_changed(path, CHANGES[name] + [(call, f"load_pipeline({str(quick)!r})") for call in loads], tmp_path)


def test_check_of_riffusion_v1_makes_its_report(tmp_path):
    folder = save_tiny_pipeline(tmp_path / "model", settings=None)
    path = frame.ROOT / "notebooks" / "extras" / "check_riffusion_v1.ipynb"
    notebook = run_changed(path, [('"riffling"', repr(str(folder))), ("42, 50", "42, 2")], tmp_path)
    report = notebook.cells[-1].outputs[0].text
    for line in ("same seed, same picture: True", "other seed, other picture: True", "on: cpu, torch.float32"):
        assert f"- {line}\n" in report
