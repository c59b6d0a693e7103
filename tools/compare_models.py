"""Compare two models by their evaluations: ``python tools/compare_models.py a/evaluation.json b/evaluation.json``.

Both must have been evaluated on the same captions with the same seeds, for instance by
``python -m riffusion_lab.training evaluate --model MODEL --set halves=[0,1] --set seeds=[0,1,2] --to FOLDER``. Prints a
table in Markdown: accuracies, the difference with its 95 % interval (bootstrap over captions, since the clips of one
caption are not independent), and what is measured for each run as a whole, with the difference and its standard error.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

POOLED = ("styles", "instruments", "drums", "effects")
MEASURES = ("frechet", "frechet_means", "frechet_real_real", "diversity", "seam", "steps")
N_BOOTSTRAP = 4000


def runs_of(file: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The runs of an evaluation by half and seed."""
    report = json.loads(file.read_text(encoding="utf-8"))
    runs = report.get("runs", [{"half": 0, "seed": 0} | report])
    return {(run["half"], run["seed"]): run for run in runs}


def paired_answers(
    ours: dict[tuple[int, int], dict[str, Any]], theirs: dict[tuple[int, int], dict[str, Any]]
) -> dict[str, dict[str, list[tuple[bool, bool]]]]:
    """For each group and caption, whether each model's answers are right."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other runs: {sorted(ours)} and {sorted(theirs)} (half, seed)")
    answers: dict[str, dict[str, list[tuple[bool, bool]]]] = defaultdict(lambda: defaultdict(list))
    for key, run in ours.items():
        for a, b in zip(run["prompts"], theirs[key]["prompts"], strict=True):
            if (a["prompt"], a["seed"]) != (b["prompt"], b["seed"]):
                raise SystemExit(f"other requests: {a['prompt']!r}, seed {a['seed']}, and {b['prompt']!r}, {b['seed']}")
            for group, is_right in a["right"].items():
                pair = (is_right, b["right"][group])
                for name in {group, "labels, pooled" if group in POOLED else group}:
                    answers[name][f"{key[0]} {a['prompt']}"].append(pair)
    return answers


def interval(pairs: dict[str, list[tuple[bool, bool]]], rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the difference of accuracies, by drawing captions with replacement."""
    sums = np.array([(len(each), sum(b for _, b in each) - sum(a for a, _ in each)) for each in pairs.values()])
    drawn = rng.integers(0, len(sums), (N_BOOTSTRAP, len(sums)))
    n, difference = sums[drawn].sum(axis=1).T
    low, high = np.quantile(difference / n, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="evaluation.json of one model")
    parser.add_argument("b", type=Path, help="evaluation.json of the other")
    options = parser.parse_args()
    ours, theirs = runs_of(options.a), runs_of(options.b)
    rng = np.random.default_rng(0)
    print("| right answers | n | a | b | b − a (95 %) |\n|---|---|---|---|---|")
    for group, pairs in paired_answers(ours, theirs).items():
        marks = np.array([pair for each in pairs.values() for pair in each], float)
        low, high = interval(pairs, rng)
        a, b = marks.mean(axis=0)
        print(f"| {group} | {len(marks)} | {a:.3f} | {b:.3f} | {b - a:+.3f} ({low:+.3f} to {high:+.3f}) |")
    print("\n| of each run | a | b | b − a ± standard error |\n|---|---|---|---|")
    for name in MEASURES:
        values = np.array([(run[name], theirs[key][name]) for key, run in ours.items()])
        difference = values[:, 1] - values[:, 0]
        error = f" ± {difference.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
        a, b = values.mean(axis=0)
        print(f"| {name} | {a:.2f} | {b:.2f} | {difference.mean():+.2f}{error} |")


if __name__ == "__main__":
    main()
