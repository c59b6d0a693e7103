"""What a release needs: ``python tools/release.py COMMAND``; CONTRIBUTING.md says when.

check-tag TAG        fail unless TAG is `v` and the version, and the version is no development version
notes                print what CHANGELOG.md says of the version
try-wheel            check the archives in dist/, install the wheel elsewhere, and make a clip with it
try-wheel --clean    the same in a new virtual environment, with the dependencies that pip chooses there
floors               print the oldest versions that pyproject.toml allows, as constraints for pip
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import frame

DIST = frame.ROOT / "dist"
# What the sdist holds beside the package, and what setuptools adds to it
SDIST_FILES = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
ADDED_TO_SDIST = re.compile(r"PKG-INFO|setup\.cfg|riffusion_lab\.egg-info/.*")
ADDED_TO_WHEEL = re.compile(r"riffusion_lab-[^/]*\.dist-info/.*")
SMOKE = """
import sys
from importlib.metadata import version
from pathlib import Path

import riffusion_lab
from riffusion_lab import load_pipeline, text_to_audio

folder = Path(riffusion_lab.__file__).parents[1].resolve()
assert folder == Path(sys.argv[1]).resolve(), f"imported from {folder}, not from where the wheel was installed"
assert riffusion_lab.__version__ == version("riffusion-lab") == sys.argv[2], version("riffusion-lab")
clip = text_to_audio(load_pipeline(device="cpu"), "piano", seed=1, num_inference_steps=2)
assert clip.image.size == (512, 512) and clip.waveform.std() > 0.001, clip
print(f"The wheel makes {clip}.")
"""


def check_tag(tag: str) -> None:
    """Raise ValueError unless a tag is the one of this version, and the version is a release."""
    if frame.is_development():
        raise ValueError(f"{frame.version()} is a development version: a release needs one without .dev")
    if tag != f"v{frame.version()}":
        raise ValueError(f"the tag is {tag!r}, the version {frame.version()!r}: the tag must be 'v{frame.version()}'")


def notes() -> str:
    """Return what stands in CHANGELOG.md under the heading of this version.

    Raises
    ------
    ValueError
        If it has no such heading.
    """
    changes = (frame.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(frame.version())}\][^\n]*\n"
    found = re.search(rf"{heading}(.*?)(?=^## \[|^\[.*\]: |\Z)", changes, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no heading '## [{frame.version()}]'")
    return found.group(1).strip()


def package_files() -> set[str]:
    """Return the files of the package by their paths in the repository."""
    paths = (path for path in frame.PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(frame.ROOT).as_posix() for path in paths}


def wrong_files(names: set[str], wanted: set[str], added: re.Pattern[str]) -> list[str]:
    """Return what an archive lacks of what is wanted, and what it holds beside that and what setuptools added."""
    missing = [f"{name} is missing" for name in sorted(wanted - names)]
    return missing + [f"{name} is too much" for name in sorted(names - wanted) if not added.fullmatch(name)]


def check_archives(folder: Path) -> Path:
    """Raise ValueError unless the only sdist and wheel in a folder hold what they should; return the wheel's path."""
    stem = f"riffusion_lab-{frame.version()}"
    sdist = folder / f"{stem}.tar.gz"
    wheel = folder / f"{stem}-py3-none-any.whl"
    found = sorted(path.name for path in folder.iterdir())
    if found != sorted([sdist.name, wheel.name]):
        raise ValueError(f"{folder} holds {found}, not {sdist.name} and {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.removeprefix(f"{stem}/") for member in archive if member.isfile()}
    problems = [f"wheel: {text}" for text in wrong_files(in_wheel, package_files(), ADDED_TO_WHEEL)]
    problems += [f"sdist: {text}" for text in wrong_files(in_sdist, package_files() | SDIST_FILES, ADDED_TO_SDIST)]
    if problems:
        raise ValueError("\n".join(problems))
    return wheel


def install(wheel: Path, folder: Path, *, clean: bool) -> tuple[Path, Path]:
    """Install a wheel below a folder; return the Python that finds it, and the folder that it is in.

    Its dependencies are those of this Python, unless a clean environment is wanted.
    """
    if not clean:
        target = folder / "installed"
        options = ["--no-deps", "--no-index", f"--target={target}"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
        return Path(sys.executable), target
    venv.create(folder / "clean", with_pip=True)
    python = folder / "clean" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", str(wheel)], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return python, Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())


def try_wheel(*, clean: bool) -> None:
    """Check the archives in dist/, install the wheel into a temporary folder, and make a clip of two steps with it."""
    wheel = check_archives(DIST)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, installed = install(wheel, folder, clean=clean)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if not clean:
            environment["PYTHONPATH"] = str(installed)
        smoke = [python, "-c", SMOKE, str(installed), frame.version()]
        if subprocess.run(smoke, cwd=folder, env=environment, check=False).returncode:
            raise ValueError(f"{wheel.name} does not work: see above")


def floors() -> str:
    """Return the oldest versions that pyproject.toml allows for what the lab needs, tests apart."""
    extras = frame.project()["optional-dependencies"]
    requirements = [*frame.project()["dependencies"], *extras["lab"], *extras["train"]]
    return "\n".join(text.replace(">=", "==") for text in requirements)


def main(arguments: list[str]) -> None:
    """Run a command; end with its message if it finds something wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check-tag").add_argument("tag")
    commands.add_parser("notes")
    commands.add_parser("try-wheel").add_argument("--clean", action="store_true")
    commands.add_parser("floors")
    given = parser.parse_args(arguments)
    try:
        if given.command == "check-tag":
            check_tag(given.tag)
        elif given.command == "notes":
            print(notes())
        elif given.command == "try-wheel":
            try_wheel(clean=given.clean)
        else:
            print(floors())
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
