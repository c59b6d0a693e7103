"""Draw what the weights sound like: 12 prompts × 3 seeds, none chosen: ``python tools/contact_sheet.py``.

Writes docs/images/contact_sheet.png (riffling), contact_sheet_turbo.png (riffling-turbo, the same prompts and seeds),
and the picture that README.md begins with.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from diffusers import StableDiffusionPipeline

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


def draw_sheet(pipe: StableDiffusionPipeline, file: Path) -> None:
    """Write the picture of all prompts and seeds."""
    figure, axes = plt.subplots(len(SEEDS), len(PROMPTS), figsize=(24, 6), layout="constrained")
    for prompt, column in zip(PROMPTS, axes.T, strict=True):
        for clip, ax in zip(text_to_audio(pipe, prompt, seed=list(SEEDS)), column, strict=True):
            plot.spectrogram(clip, ax=ax, title=prompt if ax is column[0] else None)
            ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    figure.savefig(file, dpi=72)


def main() -> None:
    """Write the three pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    turbo = load_pipeline("riffling-turbo")
    draw_sheet(load_pipeline("riffling"), IMAGES / "contact_sheet.png")
    draw_sheet(turbo, IMAGES / "contact_sheet_turbo.png")
    first = text_to_audio(turbo, "church bells")  # the first clip of notebook 00
    plot.spectrogram(first).figure.savefig(IMAGES / "first_clip.png", dpi=150)


if __name__ == "__main__":
    main()
