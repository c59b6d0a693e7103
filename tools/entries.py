"""Measure the entries of a lesson's file, two side by side, and go on where an earlier run has stopped."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Request = dict[str, Any]
Measure = Callable[[Request], dict[str, Any]]
WORKERS = 2


def measure_entries(file: Path, requests: Sequence[Request], measure: Measure, *, minutes: float) -> int:
    """Write ``{"entries": [request | measures, ...]}``, in the order of the requests, and return how many are missing.

    Parameters
    ----------
    file : path
        What is already in it is kept, as long as it is still asked for.
    requests : sequence of dict
    measure : callable
        From a request to its measures; called in another process, in one thread.
    minutes : float
        No entry is begun after this time.
    """
    found = _saved(file, requests)
    missing = [i for i in range(len(requests)) if i not in found]
    end = time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(
        WORKERS, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {pool.submit(measure, requests[i]): i for i in missing}
        for job in as_completed(jobs):
            try:
                found[jobs[job]] = requests[jobs[job]] | job.result()
            except CancelledError:
                continue
            _save(file, found)
            if time.monotonic() > end:
                for other in jobs:
                    other.cancel()
    return len(requests) - len(found)


def run(description: str | None, file: Path, requests: Sequence[Request], measure: Measure) -> None:
    """`measure_entries` as a command, with ``--minutes``; print how many entries are missing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    missing = measure_entries(file, requests, measure, minutes=parser.parse_args().minutes)
    print(f"{len(requests)} entries, {missing} of them still missing")


def _saved(file: Path, requests: Sequence[Request]) -> dict[int, dict[str, Any]]:
    """Entries of the file by the number of their request."""
    entries = json.loads(file.read_text(encoding="utf-8"))["entries"] if file.is_file() else []
    return {
        i: entry
        for i, request in enumerate(requests)
        for entry in entries
        if request.items() <= _scalars(entry).items()
    }


def _scalars(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if isinstance(value, str | int)}


def _save(file: Path, found: dict[int, dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(found[i], ensure_ascii=False) for i in sorted(found))
    file.write_text(f'{{"entries": [\n{lines}\n]}}\n', encoding="utf-8")
