"""Let earlier versions of riffling play one prompt again, for lesson 10: riffusion_lab/training/data/history/.

The weights of each version are taken from the repository's history into a temporary folder. Beside the sounds,
history.json says what the evaluation of that version measured, with the same classifier for all. Without arguments the
six versions below are played:

    python tools/riffling_history.py [REVISION ...]
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from riffusion_lab import load_pipeline, text_to_audio
from riffusion_lab.audio import encode_mp3

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "riffusion_lab" / "training" / "data" / "history"
WEIGHTS = "riffusion_lab/weights/riffling"
REVISIONS = ("2376941", "9438fc8", "d8cb1df", "e484635", "6c26b0a", "4706e26")
PROMPT, SEED, SECONDS = "trumpet melody, 94 bpm", 1, 2.56


def git(*arguments: str) -> bytes:
    """Return what a git command prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def version(revision: str, folder: Path) -> dict:
    """Play one version; write its sound, and return its facts."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", revision, WEIGHTS))) as archive:
        archive.extractall(folder, filter="data")
    pipe = load_pipeline(folder / WEIGHTS, device="cpu")
    clip = text_to_audio(pipe, PROMPT, seed=SEED)[:SECONDS]
    file = f"{revision}.mp3"
    (FOLDER / file).write_bytes(encode_mp3(clip.waveform, clip.sample_rate))
    report = json.loads((folder / WEIGHTS / "evaluation.json").read_text(encoding="utf-8"))
    right = {name: numbers["generated"] for name, numbers in report["groups"].items()}
    facts = {
        "revision": revision,
        "date": git("show", "-s", "--format=%as", revision).decode().strip(),
        "file": file,
        "n_parameters": sum(weights.numel() for weights in pipe.unet.parameters()),
        "n_clips": report["n_clips"],
        **{name: round(right[name], 3) for name in ("instruments", "styles", "texture")},
        "frechet": round(report["frechet"], 1),
        "frechet_real_real": round(report["frechet_real_real"], 1),
        "mistakes": [[each["label"], each["heard"]] for each in report["prompts"] if each["label"] != each["heard"]],
    }
    print({name: value for name, value in facts.items() if name != "mistakes"}, flush=True)
    return facts


def main(revisions: list[str]) -> None:
    """Play all versions that are named, or the usual ones."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions = []
    for revision in revisions or REVISIONS:
        with TemporaryDirectory() as folder:
            versions.append(version(revision, Path(folder)))
    content = {"prompt": PROMPT, "seed": SEED, "seconds": SECONDS, "versions": versions}
    (FOLDER / "history.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
