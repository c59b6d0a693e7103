"""What a training run shows: a report that stands alone, and a view in a notebook that leaves one output."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from conftest import tone
from riffusion_lab import Clip
from riffusion_lab.training import progress
from riffusion_lab.training.loop import run_loop
from riffusion_lab.training.progress import Snapshot, read_metrics, read_snapshots, save_snapshot
from riffusion_lab.training.report import MAX_SNAPSHOTS, report_html, running_mean
from toy_task import CONFIG, ToyTask

METRICS = [
    {"step": k + 1, "loss": 1 / (k + 1), "mean_loss": 1 / (k + 1), "spent_s": 0.5 * (k + 1), "learning_rate": 1e-3}
    for k in range(40)
]


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def snapshot(loss: float, n_clips: int = 2) -> Snapshot:
    clips = [Clip.from_audio(tone(440 * (k + 1))[None], sample_rate=44_100) for k in range(n_clips)]
    return Snapshot(numbers={"psnr": 30 - loss}, noise_loss={30: loss, 990: 2 * loss}, clips=clips)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for step in (0, 20, 40):
        save_snapshot(folder, step, snapshot(1 / (step + 1)))
    return report_html("denoiser", METRICS, read_snapshots(folder), {"steps": 40, "text": "<b>&"})


def test_the_report_needs_no_other_file(page):
    sources = [tag["src"] for tag in (*Tags(page).of("img"), *Tags(page).of("audio"))]
    assert len(sources) == 2 + 3 * 2 * 2  # two figures; three snapshots of two clips, each seen and heard
    assert all(source.startswith(("data:image/png;base64,", "data:audio/mpeg;base64,")) for source in sources)
    assert not Tags(page).of("script") and not Tags(page).of("link")
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)


def test_the_report_can_be_read_without_seeing_it(page):
    tags = Tags(page)
    assert all(len(tag["alt"]) > 30 for tag in tags.of("img"))
    assert all(tag["aria-label"] for tag in tags.of("audio"))
    assert any("running mean 1 at the start" in tag["alt"] for tag in tags.of("img"))
    assert any("time step 990: 2 to 0.0488" in tag["alt"] for tag in tags.of("img"))
    assert {tag.get("scope") for tag in tags.of("th")} == {"col", "row"}
    assert tags.of("html") == [{"lang": "en"}]
    assert "Step 40 of 40; loss 0.0250" in page and "0.50 s a step" in page
    assert "&lt;b&gt;&amp;" in page  # settings are text


def test_a_long_run_keeps_its_report_small(tmp_path):
    save_snapshot(tmp_path, 0, snapshot(1.0, n_clips=1))
    first = tmp_path / "samples" / "0000000"
    for step in range(10, 300, 10):
        copy = Path(shutil.copytree(first, first.with_name(f"{step:07d}"))) / "snapshot.json"
        copy.write_text(json.dumps(json.loads(copy.read_text()) | {"step": step}))
    snapshots = read_snapshots(tmp_path)
    assert len(snapshots) == 30 and len(read_snapshots(tmp_path, last_step=100)) == 11
    page = report_html("denoiser", METRICS, snapshots, {"steps": 300})
    assert len(Tags(page).of("audio")) == MAX_SNAPSHOTS
    assert f"{MAX_SNAPSHOTS} of 30 snapshots" in page
    assert '<th scope="row">0</th><td class="sample">' in page and '<th scope="row">290</th><td class="sample">' in page


def test_an_unfinished_snapshot_is_left_out(tmp_path):
    save_snapshot(tmp_path, 5, snapshot(1.0))
    (tmp_path / "samples" / "0000010").mkdir()
    (tmp_path / "samples" / "0000010" / "0.png").write_bytes(b"half")
    assert [each["step"] for each in read_snapshots(tmp_path)] == [5]


def test_a_report_before_the_first_step():
    page = report_html("denoiser", [], [], {"steps": 40})
    assert "Step 0 of 40" in page and not Tags(page).of("img")


def test_a_run_with_a_time_limit_says_what_is_known_of_both_budgets():
    settings = {"steps": 2200, "minutes": 0.5}
    page = report_html("denoiser", METRICS, [], settings)
    assert "Step 40 (2,200 at most), 0.3 of 0.5 minutes; loss 0.0250" in page
    assert "of 2,200" not in page
    assert "Step 0 (2,200 at most), 0.0 of 0.5 minutes: the" in report_html("denoiser", [], [], settings)


def test_what_is_printed_of_a_run_with_a_time_limit(tmp_path, capsys):
    """The bar of a terminal shows no end, which nobody knows."""
    config = CONFIG.override(["steps=1000000", "minutes=0.004", "sample_every=0"])
    task = ToyTask(config)
    task.pause_s = 0.05
    run_loop(task, config, tmp_path)
    n_steps = len(read_metrics(tmp_path))
    assert re.fullmatch(
        rf"toy: step {n_steps} \(1,000,000 at most\), 0\.0 of 0\.004 minutes\n", capsys.readouterr().out
    )
    bar = progress._Terminal("toy", config.to_dict(), 3)
    bar.update({"mean_loss": 1.0, "spent_s": 0.12}, None)
    bar.bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "4step" in shown and "minutes=0.0 of 0.004" in shown and "1000000" not in shown and "%" not in shown


def test_the_report_says_what_was_measured():
    """Where no clip is held out, it is clips to train on; snapshots of earlier versions do not say."""
    measured = {"step": 3, "numbers": {"psnr": 30.0}, "noise_loss": {"30": 0.5, "990": 0.9}, "clips": []}
    trained_on = "16 clips to train on, since none is held out"
    page = report_html("denoiser", METRICS, [measured | {"measured_on": trained_on}], {"steps": 40})
    assert f"<h2>Measured on {trained_on}</h2>" in page and f"On {trained_on}, with noise" in page
    assert "held-out" not in page
    page = report_html("denoiser", METRICS, [measured], {"steps": 40})
    assert "<h2>Measured on held-out clips</h2>" in page and "On held-out clips, with noise" in page


def test_running_mean():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1, 2, 4, 6]
    assert running_mean(values, 100).tolist() == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_view_in_a_notebook_is_one_output_without_widgets(tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from toy_task import CONFIG, ToyTask
from riffusion_lab.training import progress
from riffusion_lab.training.loop import run_loop
progress.UPDATE_S = 0.1
config = CONFIG.override(["sample_every=6", "steps=30"])
task = ToyTask(config)
task.pause_s = 0.02
run_loop(task, config, {str(tmp_path / "run")!r})
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert "widgets" not in notebook.metadata
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    texts = [output for output in notebook.cells[0].outputs if output.output_type == "stream"]
    assert len(shown) == 1 and not texts, json.dumps(texts)
    assert "Step 30 of 30" in shown[0].data["text/html"]
    assert all("alt" in tag for tag in Tags(shown[0].data["text/html"]).of("img"))
