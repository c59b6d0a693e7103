"""Make `riffusion_lab/weights/held_out.safetensors`: the composer's held-out clips, judged by the shipped classifier.

Only the held-out clips of the data set are rendered, which takes minutes; needs FluidSynth and its soundfont. Run it again when
the classifier changes: ``python tools/held_out_clips.py``.
"""

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

import riffusion_lab
from riffusion_lab.training.classifier import load_classifier
from riffusion_lab.training.dataset import Dataset, make_shard, plan
from riffusion_lab.training.reference import make_reference

FILE = Path(riffusion_lab.__file__).parent / "weights" / "held_out.safetensors"


class HeldOutClips(Dataset):
    """The composer's data set with none but the held-out clips rendered."""
