"""Draw what the weights sound like: 12 prompts × 3 seeds, none chosen: ``python tools/contact_sheet.py``.

Writes docs/images/contact_sheet.png and the picture that README.md begins with.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from riffusion_lab import load_pipeline, plot, text_to_audio

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PROMPTS = (
    "church bells",
    "piano, slow, minor",
    "music box",
    "distorted guitar chords",
    "violin melody",
    "techno, 141 bpm",
    "drums only, rock",
    "jazz with saxophone",
    "bossa nova",
    "ambient pad",
    "tropical dance with steel drums",
    "typing on a keyboard",
)
SEEDS = (0, 1, 2)


def main() -> None:
    """Write both pictures."""
    pipe = load_pipeline()
    figure, axes = plt.subplots(len(SEEDS), len(PROMPTS), figsize=(24, 6), layout="constrained")
    for prompt, column in zip(PROMPTS, axes.T, strict=True):
        for clip, ax in zip(text_to_audio(pipe, prompt, seed=list(SEEDS)), column, strict=True):
            plot.spectrogram(clip, ax=ax, title=prompt if ax is column[0] else None)
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / "contact_sheet.png", dpi=72)
    first = text_to_audio(pipe, "church bells")  # the first clip of notebook 00
    plot.spectrogram(first).figure.savefig(IMAGES / "first_clip.png", dpi=150)


if __name__ == "__main__":
    main()
