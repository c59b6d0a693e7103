"""Checkpoints of a training run: written whole or not at all, and resumed only with the same settings and data."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from .config import LoopConfig
from .dataset import Dataset

FORMAT = 2  # the first one had minutes as its budget, and could not be resumed exactly


class HasState(Protocol):
    """What a checkpoint can hold: modules, optimizers, averages."""

    def state_dict(self) -> dict[str, Any]:
        """What to save."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore what was saved."""


def save_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, then rename it.

    Raises
    ------
    OSError
        If it cannot be written, for instance because the disk is full. The last one then stays as it is.
    """
    temporary = file.with_name(f".{file.name}.part")
    try:
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:
        # torch's own end of the file may fail after the disk's error, and hide it
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        kept = f"the last one, {file}, is kept" if file.exists() else "there is none yet"
        raise OSError(
            f"the checkpoint of step {content['step']} cannot be written ({cause.strerror or cause}); {kept}. Free "
            "some space, then run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(file: Path, config: LoopConfig, data_id: str) -> dict[str, Any] | None:
    """Read a checkpoint, or return None if there is none yet.

    Parameters
    ----------
    file : Path
    config : LoopConfig
        Of the run that is to go on.
    data_id : str
        Of its data and first weights; see `data_id`. Or the beginning of it, of the data alone.

    Raises
    ------
    ValueError
        If it was made with other settings, by another version, or from other data, or if it cannot be read.
    """
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{file} is no checkpoint, or is damaged: delete it to train from the beginning") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} was written by another version: delete it to train from the beginning")
    _check_settings(file, content["config"], config)
    if not content["data_id"].startswith(data_id):
        raise ValueError(
            f"{file} was trained on other data or from another model: pass the same ones, use another folder, or "
            "delete the file to train from the beginning"
        )
    return content


def _check_settings(file: Path, saved: dict[str, Any], config: LoopConfig) -> None:
    wanted = config.fixed()
    differing = [
        f"{name} is {wanted.get(name)!r} but was {saved.get(name)!r}"
        for name in sorted(wanted.keys() | saved.keys())
        if wanted.get(name) != saved.get(name)
    ]
    if differing:
        raise ValueError(
            f"{file} was trained with other settings: {'; '.join(differing)}. Use the same settings, use another "
            "folder, or delete the file to train from the beginning"
        )


def state_of(parts: Mapping[str, HasState]) -> dict[str, dict[str, Any]]:
    """The state of each part, by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(parts: Mapping[str, HasState], states: Mapping[str, dict[str, Any]]) -> None:
    """Give each part its saved state."""
    for name, part in parts.items():
        part.load_state_dict(states[name])


def weights_id(network: nn.Module) -> str:
    """Hash of the weights of a network."""
    digest = hashlib.sha256()
    for name, weights in network.state_dict().items():
        digest.update(name.encode())
        digest.update(weights.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def data_id(dataset: Dataset, *networks: nn.Module) -> str:
    """Hash of clips, facts and the weights that a run starts from."""
    facts = hashlib.sha256(json.dumps(dataset.facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return "-".join([dataset.fingerprint(), facts, *map(weights_id, networks)])
