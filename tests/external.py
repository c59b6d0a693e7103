"""Programs that some tests need and Python does not bring: a test that needs one starts with ``require("chromium")``.

Where the program is missing the test is skipped, and the line says how to get it. With ``RIFFUSION_LAB_STRICT=1``, as
CI sets it, leaving out is a failure.
"""

import ctypes.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

STRICT_VARIABLE = "RIFFUSION_LAB_STRICT"
SOUNDFONTS = (Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"), Path("/usr/share/soundfonts/FluidR3_GM.sf2"))


class External(NamedTuple):
    """Something to be found on this machine: how to find it, and how to get it."""

    find: Callable[[], str | None]
    how_to_get: str


def find_program(*names: str) -> Callable[[], str | None]:
    """Return a function that looks for the first program on the path among `names`."""
    return lambda: next((path for path in map(shutil.which, names) if path), None)


def find_soundfont() -> str | None:
    """Return the path of the FluidR3 GM soundfont, or None."""
    return next((str(path) for path in SOUNDFONTS if path.exists()), None)


EXTERNALS = {
    "fluidsynth": External(
        lambda: ctypes.util.find_library("fluidsynth"),
        "Debian/Ubuntu: apt-get install fluidsynth; macOS: brew install fluid-synth; Windows: choco install fluidsynth",
    ),
    "soundfont": External(
        find_soundfont,
        "Debian/Ubuntu: apt-get install fluid-soundfont-gm; elsewhere it is searched for as "
        + " and ".join(map(str, SOUNDFONTS)),
    ),
    "chromium": External(
        find_program("chromium", "chromium-browser", "google-chrome"),
        "Debian/Ubuntu: apt-get install chromium; macOS: brew install chromium",
    ),
    "ffmpeg": External(find_program("ffmpeg"), "Debian/Ubuntu: apt-get install ffmpeg; macOS: brew install ffmpeg"),
    "git": External(find_program("git"), "Debian/Ubuntu: apt-get install git; macOS: xcode-select --install"),
    "make": External(find_program("make"), "Debian/Ubuntu: apt-get install make; macOS: xcode-select --install"),
}


def require(name: str) -> str:
    """Return where the program called `name` is; skip the test if it is missing, or fail it in the strict lane.

    Works inside a test and at the top of a test module.
    """
    external = EXTERNALS[name]
    found = external.find()
    if found:
        return found
    reason = f"{name} is missing. {external.how_to_get}"
    if os.environ.get(STRICT_VARIABLE) == "1":
        pytest.fail(f"{reason} ({STRICT_VARIABLE}=1: nothing may be left out)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
