"""What a training run writes down and shows: a line for each step, snapshots to look at and listen to, a report."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, DisplayHandle, display
from tqdm import tqdm  # not tqdm.auto: notebooks would save its widget

from .. import audio
from .. import display as clip_display
from ..clip import Clip
from ..files import write_whole
from ..plot import description, spectrogram_png
from .config import LoopConfig
from .report import HELD_OUT_CLIPS, budget_text, latest_html, report_html

UPDATE_S = 2.0  # seconds between updates of the view in a notebook


@dataclass(frozen=True)
class Snapshot:
    """A network at one step: how good it is, and what it makes."""

    numbers: dict[str, float] = field(default_factory=dict)  # measures by name
    noise_loss: dict[int, float] = field(default_factory=dict)  # loss at time steps, on clips that are always the same
    measured_on: str = HELD_OUT_CLIPS  # what numbers and losses were measured on
    clips: list[Clip] = field(default_factory=list)  # always from the same prompts and seeds


class Monitor:
    """Keeps ``metrics.jsonl``, ``samples/`` and ``report.html`` of a run, and shows how far it is.

    Parameters
    ----------
    folder : Path
    name : str
        Of the stage.
    config : LoopConfig
    step : int
        Where the run starts. Lines of later steps, which an interrupted run wrote after its last checkpoint, are
        removed: these steps are done again.
    """

    def __init__(self, folder: Path, name: str, config: LoopConfig, step: int) -> None:
        self.folder, self.name = folder, name
        self.metrics = read_metrics(folder, last_step=step)
        _rewrite_metrics(folder, self.metrics)
        self.stream = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)  # a line at a time
        self.settings = config.to_dict()
        self.view = _view(name, self.settings, step)
        self.latest = ""

    def log(self, record: dict[str, Any]) -> None:
        """Write down one step."""
        self.metrics.append(record)
        self.stream.write(json.dumps(record) + "\n")
        self.view.update(record, self._latest_page)

    def show(self, step: int, snapshot: Snapshot) -> None:
        """Write a snapshot and the report, and show both."""
        if snapshot.numbers or snapshot.noise_loss or snapshot.clips:
            self.latest = save_snapshot(self.folder, step, snapshot)
        snapshots = read_snapshots(self.folder, last_step=step)
        page = report_html(self.name, self.metrics, snapshots, self.settings)
        write_whole(self.folder / "report.html", page.encode())
        spent_s = self.metrics[-1]["spent_s"] if self.metrics else 0.0
        self.view.show(budget_text(step, spent_s, self.settings), snapshot.numbers, self._latest_page())

    def _latest_page(self) -> str:
        return latest_html(self.name, self.metrics, self.settings, self.latest)

    def close(self) -> None:
        """Close the file and the display."""
        self.stream.close()
        self.view.close()


def read_metrics(folder: str | Path, *, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` up to a step; an unfinished last line, of a process that was killed, is left out.

    Returns
    -------
    list of dict
        For each step: step (from 1), loss, mean_loss, learning_rate, spent_s (seconds).
    """
    file = Path(folder) / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines[:-1]]  # a finished line ends in a newline
    return [record for record in records if last_step is None or record["step"] <= last_step]


def _rewrite_metrics(folder: Path, metrics: list[dict[str, Any]]) -> None:
    write_whole(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in metrics).encode())


def save_snapshot(folder: Path, step: int, snapshot: Snapshot) -> str:
    """Write a snapshot's pictures (PNG) and sounds (MP3) to ``samples/STEP``; returns its clips as HTML."""
    target = folder / "samples" / f"{step:07d}"
    target.mkdir(parents=True, exist_ok=True)
    clips = []
    for number, clip in enumerate(snapshot.clips):
        write_whole(target / f"{number}.png", spectrogram_png(clip))
        write_whole(target / f"{number}.mp3", audio.encode_mp3(clip.waveform, clip.sample_rate))
        clips.append({"title": clip.title, "caption": clip_display.caption(clip), "description": description(clip)})
    content = {
        "step": step,
        "numbers": snapshot.numbers,
        "noise_loss": snapshot.noise_loss,
        "measured_on": snapshot.measured_on,
        "clips": clips,
    }
    write_whole(target / "snapshot.json", json.dumps(content, ensure_ascii=False).encode())  # last: it is complete
    return "".join(clip_display.clip_html(clip) for clip in snapshot.clips)


def read_snapshots(folder: str | Path, *, last_step: int | None = None) -> list[dict[str, Any]]:
    """What ``samples/`` holds, in the order of steps: step, numbers, noise_loss, measured_on, clips, folder.

    Snapshots of earlier versions do not say what they were measured on.
    """
    snapshots = []
    for file in sorted((Path(folder) / "samples").glob("*/snapshot.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if last_step is None or content["step"] <= last_step:
            snapshots.append(content | {"folder": file.parent})
    return snapshots


class _View:
    """Shows nothing: neither a terminal nor a notebook is there. Prints a line for each snapshot."""

    def __init__(self, name: str) -> None:
        self.name = name

    def update(self, record: dict[str, Any], page: Any) -> None:
        """Show one more step."""

    def show(self, where: str, numbers: dict[str, float], page: str) -> None:  # noqa: ARG002 - other views show the page
        """Show a snapshot; `where` says at which step."""
        measures = "".join(f", {name} {value:.4g}" for name, value in numbers.items())
        print(f"{self.name}: {where}{measures}", flush=True)

    def close(self) -> None:
        """End the display."""


class _Terminal(_View):
    """A progress bar; with a time limit a count of steps beside the minutes, since the last step is not known."""

    def __init__(self, name: str, settings: dict[str, Any], step: int) -> None:
        super().__init__(name)
        self.minutes = settings["minutes"]
        total = settings["steps"] if self.minutes is None else None
        self.bar = tqdm(total=total, initial=step, desc=name, unit="step", mininterval=1)

    def update(self, record: dict[str, Any], page: Any) -> None:  # noqa: ARG002 - shown in a notebook
        shown = {"loss": f"{record['mean_loss']:.4f}"}
        if self.minutes is not None:
            shown["minutes"] = f"{record['spent_s'] / 60:.1f} of {self.minutes:g}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def show(self, where: str, numbers: dict[str, float], page: str) -> None:  # noqa: ARG002
        if numbers:
            self.bar.write(f"{where}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def close(self) -> None:
        self.bar.close()


class _Notebook(_View):
    """A display that is updated in place: its last state is all that a notebook saves."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.handle: DisplayHandle | None = display(HTML(f"<p>{name}: starting …</p>"), display_id=True)
        self.updated = time.monotonic()

    def update(self, record: dict[str, Any], page: Any) -> None:  # noqa: ARG002 - the page has it
        if time.monotonic() - self.updated > UPDATE_S:
            self._put(page())

    def show(self, where: str, numbers: dict[str, float], page: str) -> None:  # noqa: ARG002 - the page has them
        self._put(page)

    def _put(self, page: str) -> None:
        if self.handle is not None:
            self.handle.update(HTML(page))
        self.updated = time.monotonic()


def _view(name: str, settings: dict[str, Any], step: int) -> _View:
    """The view for where this runs."""
    shell = get_ipython()
    if shell is not None and "IPKernelApp" in shell.config:
        return _Notebook(name)
    if sys.stderr.isatty():
        return _Terminal(name, settings, step)
    return _View(name)
