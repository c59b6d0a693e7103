"""The report of a training run as one HTML page that needs no other file: curves, and samples to look at and hear."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from ..plot import STYLE

MAX_SNAPSHOTS = 12  # in the page, which would grow beyond a few megabytes; samples/ has all of them
HELD_OUT_CLIPS = "held-out clips"
SMOOTHING = 0.02  # the curve is a running mean over this share of the run,
MIN_SMOOTHED = 10  # but over no fewer steps than this
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font-family: system-ui, sans-serif; line-height: 1.45; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1e21; background: white; }}
img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #d5d8dc; }}
td.sample {{ width: 16rem; }}
audio {{ width: 15rem; height: 2rem; }}
figcaption {{ font-size: .8rem; color: #4a4f55; }}
figure {{ margin: 0; }}
.scroll {{ overflow-x: auto; }}
</style></head><body>
{body}
</body></html>
"""


def report_html(
    name: str, metrics: Sequence[dict[str, Any]], snapshots: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> str:
    """The whole page.

    Parameters
    ----------
    name : str
        Of the stage.
    metrics : sequence of dict
        As `progress.read_metrics` gives them.
    snapshots : sequence of dict
        As `progress.read_snapshots` gives them.
    settings : dict
        Of the run: its budget is "steps", and "minutes" if there is a time limit.
    """
    parts = [f"<h1>Training: {html.escape(name)}</h1>", f"<p>{_summary(metrics, settings)}</p>"]
    if metrics:
        parts.append("<h2>Loss</h2>" + loss_figure(metrics))
    parts += [_numbers(snapshots), _noise_loss(snapshots), _samples(snapshots), _settings(settings)]
    return PAGE.format(title=html.escape(f"Training: {name}"), body="\n".join(part for part in parts if part))


def latest_html(name: str, metrics: Sequence[dict[str, Any]], settings: dict[str, Any], samples: str) -> str:
    """What a notebook shows while a run goes on: the loss, and the latest samples as HTML."""
    curve = loss_figure(metrics) if metrics else ""
    return f"<p><b>{html.escape(name)}</b>: {_summary(metrics, settings)}</p>{curve}{samples}"


def budget_text(step: int, spent_s: float, settings: dict[str, Any]) -> str:
    """How far a run is: "step 3 of 40", or with a time limit "step 3 (40 at most), 0.5 of 60 minutes".

    Parameters
    ----------
    step : int
    spent_s : float
        Seconds.
    settings : dict
        Of the run: "steps", and "minutes" if there is a time limit. The run ends at whichever comes first.
    """
    if settings.get("minutes") is None:
        return f"step {step:,} of {settings['steps']:,}"
    return f"step {step:,} ({settings['steps']:,} at most), {spent_s / 60:.1f} of {settings['minutes']:g} minutes"


def _summary(metrics: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    if not metrics:
        where = _capitalized(budget_text(0, 0.0, settings))
        return f"{where}: the network is untrained, or as it was before."
    last = metrics[-1]
    where = _capitalized(budget_text(last["step"], last["spent_s"], settings))
    pace = f"{last['spent_s'] / last['step']:.2f} s a step"
    if settings.get("minutes") is None:
        pace = f"{last['spent_s'] / 60:.1f} minutes, {pace}"
    return f"{where}; loss {last['mean_loss']:.4f} (mean over about the last hundred steps); {pace}."


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def loss_figure(metrics: Sequence[dict[str, Any]]) -> str:
    """Loss of each step, and its running mean."""
    step = np.array([record["step"] for record in metrics])
    loss = np.array([record["loss"] for record in metrics])
    smooth = running_mean(loss, max(MIN_SMOOTHED, round(SMOOTHING * len(loss))))

    def draw(ax: Axes) -> None:
        ax.plot(step, loss, color="#c8cdd3", linewidth=0.6, label="each step")
        ax.plot(step, smooth, label="running mean")
        ax.set(xlabel="step", ylabel="loss")
        if loss.min() > 0:
            _logarithmic(ax)
        ax.legend()

    text = f"Loss over {len(loss):,} steps: running mean {smooth[0]:.4g} at the start, {smooth[-1]:.4g} at the end"
    return figure_html(draw, text)


def _logarithmic(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at its ticks."""
    ax.set_yscale("log")
    for axis_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))


def running_mean(values: np.ndarray, n: int) -> np.ndarray:
    """Mean of each value and those before it, `n` in all or as many as there are [shape as values]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - n)
    mean: np.ndarray = (total[end] - total[start]) / (end - start)
    return mean


def figure_html(draw: Callable[[Axes], None], text: str, *, size: tuple[float, float] = (8, 3)) -> str:
    """A figure (`size` in inches) as an image within the page; `text` is for readers who cannot see it."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=size)
        canvas = FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        file = io.BytesIO()
        canvas.print_png(file)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _numbers(snapshots: Sequence[dict[str, Any]]) -> str:
    measured = [snapshot for snapshot in snapshots if snapshot["numbers"]]
    if not measured:
        return ""
    names = list(measured[0]["numbers"])
    rows = [["step", *names]] + [
        [f"{snapshot['step']:,}", *(f"{snapshot['numbers'][name]:.4g}" for name in names)] for snapshot in measured
    ]
    title = f"<h2>Measured on {_measured_on(measured)}</h2>"
    return title + html_table([[html.escape(cell) for cell in row] for row in rows])


def _measured_on(snapshots: Sequence[dict[str, Any]]) -> str:
    """What the numbers of snapshots were measured on."""
    named = dict.fromkeys(snapshot.get("measured_on", HELD_OUT_CLIPS) for snapshot in snapshots)
    return html.escape(" or ".join(named))


def _noise_loss(snapshots: Sequence[dict[str, Any]]) -> str:
    measured = [snapshot for snapshot in snapshots if snapshot["noise_loss"]]
    if not measured:
        return ""
    steps = [snapshot["step"] for snapshot in measured]
    timesteps = list(measured[0]["noise_loss"])

    def draw(ax: Axes) -> None:
        colours = matplotlib.colormaps["magma"](np.linspace(0.85, 0.1, len(timesteps)))
        for timestep, colour in zip(timesteps, colours, strict=True):
            losses = [snapshot["noise_loss"][timestep] for snapshot in measured]
            ax.plot(steps, losses, color=colour, marker="o", markersize=2.5, label=f"time step {timestep}")
        ax.set(xlabel="step", ylabel="loss")
        _logarithmic(ax)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    first, last = measured[0]["noise_loss"], measured[-1]["noise_loss"]
    ranges = "; ".join(f"time step {t}: {first[t]:.3g} to {last[t]:.3g}" for t in timesteps)
    return (
        f"<h2>Loss by noise level</h2><p>On {_measured_on(measured)}, with noise that is always the same and the "
        "averaged weights. A small time step means little noise, 999 pure noise; dark curves are the noisy ones.</p>"
        + figure_html(draw, f"Loss by noise level from step {steps[0]} to {steps[-1]}. {ranges}")
    )


def _samples(snapshots: Sequence[dict[str, Any]]) -> str:
    heard = [snapshot for snapshot in snapshots if snapshot["clips"]]
    if not heard:
        return ""
    shown = [heard[i] for i in np.unique(np.linspace(0, len(heard) - 1, MAX_SNAPSHOTS).round().astype(int))]
    titles = [clip["title"] or f"clip {k + 1}" for k, clip in enumerate(shown[0]["clips"])]
    rows = [["step", *(html.escape(title) for title in titles)]]
    for snapshot in shown:
        cells = [_sample(snapshot["folder"], number, clip) for number, clip in enumerate(snapshot["clips"])]
        rows.append([f"{snapshot['step']:,}", *cells])
    note = "" if len(shown) == len(heard) else f"{len(shown)} of {len(heard)} snapshots; all of them are in samples/. "
    text = f"<p>{note}Prompts and seeds are the same at each step, so that samples can be compared.</p>"
    return f'<h2>Samples</h2>{text}<div class="scroll">{html_table(rows, cell_class="sample")}</div>'


def _sample(folder: Path, number: int, clip: dict[str, str]) -> str:
    title = html.escape(clip["title"] or f"clip {number + 1}")
    png = base64.b64encode((folder / f"{number}.png").read_bytes()).decode()
    mp3 = base64.b64encode((folder / f"{number}.mp3").read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(clip["description"])}" src="data:image/png;base64,{png}">'
        f'<audio controls preload="none" aria-label="{title}" src="data:audio/mpeg;base64,{mp3}">'
        f"</audio><figcaption>{html.escape(clip['caption'])}</figcaption></figure>"
    )


def _settings(settings: dict[str, Any]) -> str:
    rows = [["setting", "value"]] + [[html.escape(name), html.escape(str(value))] for name, value in settings.items()]
    return f"<details><summary>Settings</summary>{html_table(rows)}</details>"


def html_table(rows: Sequence[Sequence[str]], cell_class: str = "") -> str:
    """A table whose first row and first column are headings; cells are HTML."""
    attribute = f' class="{cell_class}"' if cell_class else ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in rows[0])
    lines = [f"<tr>{head}</tr>"]
    for first, *others in rows[1:]:
        cells = "".join(f"<td{attribute}>{cell}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"
