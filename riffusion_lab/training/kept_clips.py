"""Generated clips that stay on disk until an evaluation is finished: one that was interrupted need not begin again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_whole


class KeptClips:
    """Pictures of generated clips as PNG files, each named by a hash of all that decides the clip.

    Parameters
    ----------
    folder : Path or None
        Made when the first clip is kept. None: nothing is kept.
    origin : mapping
        What decides a clip beside its prompt and seed, such as the hash of the model's weights and the number of steps.
    """

    def __init__(self, folder: Path | None, origin: Mapping[str, Any]) -> None:
        self.folder, self.origin = folder, dict(origin)
        self.files: set[Path] = set()  # that were read or written here

    def file(self, folder: Path, prompt: str, seed: int) -> Path:
        """Where in the folder a clip is, or would be."""
        content = json.dumps([self.origin, prompt, seed], sort_keys=True, default=repr)
        return folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.png"

    def read(self, prompt: str, seed: int) -> Image.Image | None:
        """The picture of a clip; None if it is not kept, or damaged, as after a power cut."""
        if self.folder is None:
            return None
        file = self.file(self.folder, prompt, seed)
        if not file.exists():
            return None
        self.files.add(file)
        try:
            picture = Image.open(io.BytesIO(file.read_bytes()))
            picture.load()
        except (OSError, SyntaxError):  # Pillow's errors for what is no PNG, and for a broken one
            return None
        return picture

    def write(self, prompt: str, seed: int, picture: Image.Image) -> None:
        """Keep the picture of a clip."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.file(self.folder, prompt, seed)
        content = io.BytesIO()
        picture.save(content, format="PNG")
        write_whole(file, content.getvalue())
        self.files.add(file)

    def remove(self) -> None:
        """Delete the clips that were read or written here, and the folder if it is empty then."""
        for file in self.files:
            file.unlink(missing_ok=True)
        if self.folder is not None and self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()
