"""Make `riffusion_lab/weights/held_out.safetensors`: the composer's held-out clips as the shipped classifier sees them.

Only the held-out clips are rendered, which takes minutes and needs FluidSynth with its soundfont. Run it again when the
classifier changes: ``python tools/held_out_clips.py``.
"""

import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

import riffusion_lab
from riffusion_lab.training.classifier import load_classifier
from riffusion_lab.training.dataset import Dataset, make_shard, plan
from riffusion_lab.training.reference import make_reference
from riffusion_lab.training.vocabulary import FUSION

FILE = Path(riffusion_lab.__file__).parent / "weights" / "held_out.safetensors"


def render_held_out(folder: Path) -> Dataset:
    """The composer's data set in which only the held-out clips of one class have a picture and facts."""
    jobs = plan()
    places = np.zeros((len(jobs), 2), np.int64)
    dataset = Dataset([folder / "pixels.npy"], places, [{} for _ in jobs])
    indices = [int(i) for i in dataset.split()[1] if jobs[i][0] != FUSION]
    pixels = []
    for row, i in enumerate(tqdm(indices, desc="clips")):
        (picture,), (dataset.facts[i],) = make_shard([jobs[i]], i)
        pixels.append(picture)
        places[i, 1] = row
    np.save(folder / "pixels.npy", np.stack(pixels))
    return dataset


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make_reference(render_held_out(Path(folder)), load_classifier()).save(FILE)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB")
