"""What an evaluation measured, as JSON and as one HTML page that needs no other file."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..files import write_whole
from .report import PAGE, figure_html, html_table

MEASURES = {
    "frechet": "Fréchet distance from the real clips",
    "frechet_means": "of it between the means",
    "frechet_real_real": "between two sets of real clips",
    "diversity": "diversity, as a share of the real clips'",
    "seam": "step over the seam, as a share of the real clips'",
    "steps": "mean step between columns, as a share of the real clips'",
}


def save_report(report: Mapping[str, Any], folder: str | Path) -> None:
    """Write what `evaluate` returned as ``evaluation.json`` and ``evaluation.html`` in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_whole(Path(folder) / "evaluation.json", content.encode())
    write_whole(Path(folder) / "evaluation.html", report_page(report).encode())


def report_page(report: Mapping[str, Any]) -> str:
    """The whole HTML page."""
    runs = report.get("runs", [report])
    requests = [request for run in runs for request in run["prompts"]]
    parts = [
        "<h1>Evaluation</h1>",
        f"<p>{report['n_clips']} clips in each of {len(runs)} run(s); the model's weights have the hash "
        f"{html.escape(report['weights_sha256'][:12])}…{_device(report)}.</p>",
        "<h2>Accuracy</h2><p>How often a classifier hears what the caption names, in generated and in real clips; "
        f"adherence is the quotient.</p>{_accuracies(report)}",
        f"<h2>Distribution</h2>{_measures(report)}",
        f"<h2>Confusion matrix</h2>{_confusion_matrix(requests)}",
        f"<details><summary>Settings</summary>{_settings(report['settings'])}</details>",
    ]
    return PAGE.format(title="Evaluation", body="\n".join(parts))


def _device(report: Mapping[str, Any]) -> str:
    """On what the clips were generated; evaluations of earlier versions, all on the CPU, do not say."""
    if "device" not in report:
        return ""
    return html.escape(f"; generated on {report['device']} in {report['dtype']}")


def _number(value: float, spread: float | None) -> str:
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _accuracies(report: Mapping[str, Any]) -> str:
    spread = report.get("spread", {}).get("groups", {})
    rows = [["group", "clips", "generated", "real", "adherence"]]
    for name, group in report["groups"].items():
        numbers = [_number(group[key], spread.get(name, {}).get(key)) for key in ("generated", "real", "adherence")]
        rows.append([html.escape(name), f"{group['n']:.0f}", *numbers])
    return html_table(rows)


def _measures(report: Mapping[str, Any]) -> str:
    spread = report.get("spread", {})
    rows = [["measure", "value"]]
    rows += [[text, _number(report[name], spread.get(name))] for name, text in MEASURES.items() if name in report]
    if "memorization" in report:
        similar = report["memorization"]
        rows.append(["highest correlation with a training clip, median", f"{similar['generated']:.3f}"])
        rows.append(["the same of held-out clips", f"{similar['held_out']:.3f}"])
        rows.append(["above the 99th percentile of held-out clips", f"{similar['above']:.1%}"])
    note = "<p>± is the standard deviation over runs.</p>" if spread else ""
    return html_table(rows) + note


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [["setting", "value"]]
    return html_table(rows + [[html.escape(name), html.escape(str(value))] for name, value in settings.items()])


def confusion_matrix(requests: Sequence[Mapping[str, Any]]) -> tuple[list[str], np.ndarray]:
    """How often clips of one label were heard as another.

    Parameters
    ----------
    requests : sequence of dict
        With "label" and "heard", as under "prompts" in what `evaluate` returns. Those without a label do not count.

    Returns
    -------
    labels : list of str
    counts : np.ndarray [shape=(labels, labels), int64]
        Rows are what was asked for, columns what the classifier heard.
    """
    pairs = Counter((request["label"], request["heard"]) for request in requests if request["label"] is not None)
    labels = sorted({label for pair in pairs for label in pair})
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for (label, heard), n in pairs.items():
        counts[labels.index(label), labels.index(heard)] = n
    return labels, counts


def _confusion_matrix(requests: Sequence[Mapping[str, Any]]) -> str:
    labels, counts = confusion_matrix(requests)
    if not labels:
        return "<p>The clips have no labels.</p>"

    def draw(ax: Axes) -> None:
        ax.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Greys", vmin=0, vmax=1)
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        ax.set_yticks(range(len(labels)), labels, fontsize=6)
        ax.set(xlabel="heard", ylabel="asked for")
        ax.grid(visible=False)

    right, total = int(np.trace(counts)), int(counts.sum())
    text = f"Confusion matrix of {len(labels)} labels: {right} of {total} clips are heard as what was asked for"
    return f"<p>{text}.</p>" + figure_html(draw, text, size=(8, 7))
