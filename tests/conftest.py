"""Sounds made on the spot: every test knows exactly what it hears."""

from __future__ import annotations

import logging
import math
import warnings

import numpy as np
import pytest

from riffusion_lab import load_pipeline
from tiny import save_tiny_pipeline, state

RATE = 44_100
N_SAMPLES = 441 * 512  # 5.12 s: one clip


def tone(frequency_hz: float, n_samples: int = N_SAMPLES, *, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    """A sine; whole cycles in 5.12 s make it a loop."""
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(n_samples) / rate)).astype(np.float32)


def chirp(low_hz: float, high_hz: float, n_samples: int = N_SAMPLES, *, amplitude: float = 0.5) -> np.ndarray:
    """A sine that rises steadily."""
    t = np.arange(n_samples) / RATE
    slope = (high_hz - low_hz) / (n_samples / RATE)
    return (amplitude * np.sin(2 * np.pi * (low_hz * t + slope * t**2 / 2))).astype(np.float32)


def drum_loop(n_samples: int = N_SAMPLES) -> np.ndarray:
    """Kick and snare, eight each, whose tails wrap around: an exact loop."""
    random = np.random.default_rng(1)
    loop = np.zeros(n_samples)
    for beat in range(16):
        t = np.arange(n_samples // 8) / RATE
        kick = np.sin(2 * np.pi * (50 * t + 10 * (1 - np.exp(-30 * t)))) * np.exp(-8 * t)
        snare = random.standard_normal(len(t)) * np.exp(-20 * t) * 0.4
        at = (beat * n_samples // 16 + np.arange(len(t))) % n_samples
        loop[at] += (kick, snare)[beat % 2]
    return (0.5 * loop / np.abs(loop).max()).astype(np.float32)


def mastered(sound: np.ndarray, crest_db: float) -> np.ndarray:
    """Press a sound's peaks down until they stand `crest_db` above its RMS, as songs are mastered; peak 0.98."""
    low, high = 0.5, 60.0
    for _ in range(40):
        drive = math.sqrt(low * high)
        pressed = np.tanh(drive * sound / np.abs(sound).max())
        pressed *= 0.98 / np.abs(pressed).max()
        is_dense = 20 * math.log10(0.98 / np.sqrt(np.square(pressed).mean())) < crest_db
        low, high = (low, drive) if is_dense else (drive, high)
    return pressed.astype(np.float32)


BROWSER_FIXTURES = {"browser", "page", "lab", "printed"}  # a browser, a page in it, JupyterLab in one, `make lab`


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a browser: ``-m browser`` selects them, see the Makefile."""
    for item in items:
        if BROWSER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def browser():
    """One browser for the pages of a file's tests."""
    from browser import open_browser  # here, for Playwright is not needed where no page is opened

    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One Jupyter server and one browser for the tests of a file."""
    from lab import Lab  # here, for the same reason

    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def music() -> np.ndarray:
    """Chords of decaying harmonics over a drum loop, shape (1, 225792): an exact loop."""
    sound = drum_loop().astype(np.float64)
    t = np.arange(N_SAMPLES // 4) / RATE
    for step, root_hz in enumerate((220.0, 261.6, 196.0, 293.7)):
        at = (step * N_SAMPLES // 4 + np.arange(len(t))) % N_SAMPLES
        for ratio in (1, 1.25, 1.5):
            for harmonic in range(1, 7):
                frequency_hz = root_hz * ratio * harmonic
                sound[at] += 0.1 / harmonic * np.sin(2 * np.pi * frequency_hz * t) * np.exp(-3 * t)
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)[None]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random model of riffling's kind, on disk."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def loaded(folder):
    """The same, loaded; see `pipe`."""
    return load_pipeline(folder, device="cpu")


@pytest.fixture
def pipe(loaded):
    """The loaded pipeline; whatever a test does to make clips, it must be left as it was found."""
    before = state(loaded)
    yield loaded
    assert state(loaded) == before


@pytest.fixture
def news():
    """What diffusers and transformers log; their handlers write to another stderr than the one that pytest captures."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def no_surprising_warnings():
    """Take every warning for an error, unless a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
