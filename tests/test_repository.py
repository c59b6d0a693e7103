"""The repository agrees with itself: README, Makefile, environment, CI, versions, address, imports."""

import ast
import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import conftest
import external
import frame
import release

ROOT = frame.ROOT
PACKAGE = ROOT / "riffusion_lab"
NOT_OURS = {".venv", ".venv-colab", ".git", "data", "clips", "build", "dist"}
NOT_OURS |= {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
TEXTS = (".md", ".py", ".yml", ".toml", ".cff", ".cfg", ".txt", "Makefile")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def our_files(*suffixes: str) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - NOT_OURS)
        found += [Path(folder, name) for name in sorted(names) if name.endswith(suffixes)]
    return found


# The commands


# What a make around the tests, which may have options of its own, hands on to this one
OF_OUTER_MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
OF_OUTER_MAKE |= {"CONSTRAINTS", "NBVAL", "WORKERS", "TRY_WHEEL", "LAB_OPTIONS"}


def make_commands(target: str) -> list[str]:
    """Return what `make` runs for `target` in a fresh clone on a POSIX system, without the lines that only talk."""
    options = ["OS=", "LAB_OPTIONS=", "CONSTRAINTS=", "NBVAL=--nbval", "PYTHON=python3", "WORKERS=auto", "TRY_WHEEL="]
    environment = {name: value for name, value in os.environ.items() if name not in OF_OUTER_MAKE}
    command = [external.require("make"), "--dry-run", "--always-make", *options, target]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in run.stdout.splitlines() if re.match(r"\S*python3? (-m |tools/)", line)]


def readme_commands(shell: str) -> list[list[str]]:
    """Return the lines of each block of README.md for `shell` that starts by making a virtual environment."""
    blocks = re.findall(rf"^```{shell}\n(.*?)^```", read("README.md"), flags=re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks if "-m venv" in block]


def test_readme_has_the_commands_of_make():
    stages = [make_commands(stage) for stage in ("lint", "types", "unit", "browser", "notebooks-check")]
    installing = stages[0][:2]
    assert all(commands[:2] == installing for commands in stages)
    expected = [make_commands("lab"), installing + [line for commands in stages for line in commands[2:]]]
    assert [len(commands) for commands in expected] == [3, 8]
    assert readme_commands("sh") == expected
    windows = [
        [line.replace("python3", "python").replace(".venv/bin/", ".venv\\Scripts\\") for line in commands]
        for commands in expected
    ]
    assert readme_commands("powershell") == windows


# Stands for python: makes a .venv with itself inside, and has nothing to say but what pip said when it failed.
# A command that holds the text FAILS fails.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"${FAILS:-nothing fails}"*) exit 1 ;;
  "-m venv "*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m pip install"*) if [ -n "$PIP_FAILS" ]; then printf 'ERROR: one\\nERROR: two\\n' >&2; exit 1; fi ;;
esac
"""


def run_make(target: str, folder: Path, python: Path, **variables: str) -> tuple[int, list[str]]:
    """Run `make` for a target in `folder`; return its exit status and the lines that it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_OUTER_MAKE} | variables
    command = [external.require("make"), "--no-print-directory", target, f"PYTHON={python}"]
    run = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return run.returncode, run.stdout.splitlines()


def fake_clone(folder: Path) -> tuple[Path, Path]:
    """Return a folder with what `make` needs of the repository, and a program that stands for Python."""
    clone = folder / "clone"
    (clone / "tests").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "tests/colab_constraints.txt"):
        shutil.copy(ROOT / name, clone / name)
    python = folder / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return clone, python


@pytest.mark.skipif(os.name == "nt", reason="the fake Python is a shell script")
@pytest.mark.parametrize(
    "fails", ["ruff check", "mypy", "not notebooks", "-m browser", "--nbval", "-m build", "test_live"]
)
def test_a_stage_that_fails_keeps_no_other_from_running(tmp_path, fails):
    folder, python = fake_clone(tmp_path)
    status, lines = run_make("test", folder, python, FAILS=fails)
    assert status != 0
    begun = [line for line in lines if re.match(r"\.venv(-colab)?/bin/python -m (ruff check|mypy|pytest|build)", line)]
    assert len(begun) == len(stages()), lines
    assert sum("Error 1" in line and "test]" not in line for line in lines) == 1
    assert run_make("test", folder, python)[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="the fake Python is a shell script")
def test_make_lab_says_little_but_why_it_failed(tmp_path):
    """A line for each step, so that with JupyterLab's seven it is ten; pip's errors in full."""
    folder, python = fake_clone(tmp_path)
    status, lines = run_make("lab", folder, python, PIP_FAILS="yes")
    assert status != 0 and lines[2:4] == ["ERROR: one", "ERROR: two"]
    status, lines = run_make("lab", folder, python)
    assert (status, [line.split()[0] for line in lines]) == (0, ["Installing", "Opening"])
    status, lines = run_make("lab", folder, python)
    assert (status, [line.split()[0] for line in lines]) == (0, ["Opening"])
    shutil.rmtree(folder / ".venv")
    status, lines = run_make("lab", folder, python)
    assert (status, [line.split()[0] for line in lines]) == (0, ["Making", "Installing", "Opening"])


def workflow(name: str) -> dict:
    """Return a workflow; YAML takes its key `on` for True."""
    content = yaml.safe_load(read(f".github/workflows/{name}.yml"))
    return {"on" if key is True else key: value for key, value in content.items()}


def make_targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)[0].split()) - {"$(STAGES)"} | set(
        stages()
    )


def stages() -> list[str]:
    """Return the stages of `make test`, in their order."""
    return re.search(r"^STAGES = (.*)$", read("Makefile"), flags=re.MULTILINE).group(1).split()


def targets_of(command: str) -> list[str]:
    """Return the targets that a line of a workflow has made; what else it may run is refused."""
    words = shlex.split(command.partition(" > ")[0])
    assert words[0] in (".ci/run", "make"), command
    return [word for word in words[1:] if "=" not in word and not word.startswith("-")]


def commands_of(job: dict) -> list[str]:
    """Return what a job runs, for each of the jobs that its matrix lists."""
    commands = [step["run"] for step in job["steps"] if "run" in step]
    rows = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    return [
        re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match, row=row: row[match[1]], c) for row in rows for c in commands
    ]


def test_workflows_run_only_targets_of_make():
    jobs = [*workflow("ci")["jobs"].values(), workflow("release")["jobs"]["build"]]
    targets = [target for job in jobs for command in commands_of(job) for target in targets_of(command)]
    assert len(targets) > 10
    assert set(targets) <= make_targets()


def test_every_push_runs_every_stage():
    """What the jobs of a push do together is what `make test` does, each stage once."""
    jobs = workflow("ci")["jobs"].values()
    commands = [command for job in jobs if "!= 'schedule'" in job.get("if", "") for command in commands_of(job)]
    assert sorted(target for command in commands for target in targets_of(command)) == sorted(stages())
    assert set(make_commands("test")) == {command for stage in stages() for command in make_commands(stage)}
    everything = read(".ci/run").partition("\nelse\n")[2]
    named = re.findall(r"^  (?:make|run) ([\w -]+)", everything, flags=re.MULTILINE)
    assert sorted(" ".join(named).split()) == sorted(stages())


def test_workflows_may_do_little():
    """Only what publishes a release may write, and it runs no code of the repository."""
    for name in ("ci", "release"):
        assert workflow(name)["permissions"] == {"contents": "read"}
        assert workflow(name)["concurrency"]["group"]
    writers = {
        name: job
        for workflow_name in ("ci", "release")
        for name, job in workflow(workflow_name)["jobs"].items()
        if "permissions" in job
    }
    assert list(writers) == ["publish"]
    assert writers["publish"]["permissions"] == {"contents": "write"}
    uses = [step["uses"].partition("@")[0] for step in writers["publish"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact"]


def test_contributing_names_every_target():
    named = re.findall(r"^\| `make ([\w-]+)` \|", read("CONTRIBUTING.md"), flags=re.MULTILINE)
    assert named == [*stages(), "test", "test-fast"]
    for page in ("CONTRIBUTING.md", "README.md"):
        assert set(re.findall(r"`make ([a-z-]+)", read(page))) <= make_targets(), page


def test_weekly_runs_meet_every_system_and_the_oldest_versions():
    jobs = workflow("ci")["jobs"]
    assert workflow("ci")["on"]["schedule"]
    systems = jobs["newest"]["strategy"]["matrix"]["os"]
    assert {system.partition("-")[0] for system in systems} == {"ubuntu", "macos", "windows"}
    assert "CONSTRAINTS=floors.txt" in commands_of(jobs["oldest"])[0]
    for name in ("newest", "oldest"):
        assert "== 'schedule'" in jobs[name]["if"]


def test_every_test_belongs_to_one_stage():
    """Tests marked `notebooks` are in files that `make notebooks-check` names; `unit` and `browser` take the rest."""
    unit, browser, notebooks = (make_commands(stage)[-1] for stage in ("unit", "browser", "notebooks-check"))
    assert unit.endswith('-m "not browser and not notebooks"')
    assert browser.endswith("-m browser")
    marked = {path.name for path in (ROOT / "tests").glob("test_*.py") if "mark.notebooks" in path.read_text("utf-8")}
    assert {Path(word).name for word in notebooks.split() if word.endswith(".py")} == marked - {Path(__file__).name}
    assert "notebooks" in notebooks.split()


def opens_a_browser(function: ast.FunctionDef) -> bool:
    """Tell whether the body of a function starts a browser or JupyterLab."""
    calls = {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return bool({"open_browser", "open_page", "Lab", "sync_playwright"} & calls)


def test_whatever_opens_a_browser_is_a_browser_test():
    """It is a fixture that conftest.py knows, or asks for one: else it would run in the midst of the unit tests."""
    openers = []
    for path in (ROOT / "tests").glob("test_*.py"):
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef) and opens_a_browser(function):
                openers.append(function.name)
                asked = {argument.arg for argument in function.args.args}
                assert conftest.BROWSER_FIXTURES & {function.name, *asked}, f"{path.name}: {function.name}"
    assert len(openers) > 5


def test_browser_tests_are_marked(request):
    fixtures = {"by itself": ["page"], "by another fixture": ["shown", "lab"], "no page": ["tmp_path", "pipe"]}
    items = [pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None) for name in fixtures]
    for item, names in zip(items, fixtures.values(), strict=True):
        item.fixturenames = names
    conftest.pytest_collection_modifyitems(items)
    marked = [item.name for item in items if item.get_closest_marker("browser")]
    assert marked == ["by itself", "by another fixture"]


def test_ci_leaves_nothing_out():
    """CI sets the strict variable and installs every program that a test may ask for."""
    script = read(".ci/run")
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)
    assert f"export {external.STRICT_VARIABLE}=1" in script
    packages = re.search(r"^packages=\((.*)\)", script, flags=re.MULTILINE).group(1).split()
    advice = [program.how_to_get for program in external.EXTERNALS.values()]
    wanted = {re.search(r"apt-get install ([\w-]+)", text).group(1) for text in advice}
    assert set(packages) == wanted


def test_missing_program_is_skipped_or_fails(monkeypatch):
    monkeypatch.setitem(external.EXTERNALS, "anvil", external.External(lambda: None, "forge one"))
    monkeypatch.delenv(external.STRICT_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="anvil is missing. forge one"):
        external.require("anvil")
    monkeypatch.setenv(external.STRICT_VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="anvil is missing. forge one"):
        external.require("anvil")
    monkeypatch.setitem(external.EXTERNALS, "anvil", external.External(lambda: "/bin/anvil", "forge one"))
    assert external.require("anvil") == "/bin/anvil"


# Releases


def test_tag_must_be_the_version(monkeypatch):
    monkeypatch.setattr(frame, "version", lambda: "1.2.3")
    release.check_tag("v1.2.3")
    with pytest.raises(ValueError, match="the tag must be 'v1.2.3'"):
        release.check_tag("v1.2.4")
    monkeypatch.setattr(frame, "version", lambda: "1.2.3.dev0")
    with pytest.raises(ValueError, match="without .dev"):
        release.check_tag("v1.2.3.dev0")


def test_notes_of_a_release_are_its_part_of_the_changelog(tmp_path, monkeypatch):
    text = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n- One\n- Two\n\n## [1.2.2]\n\n- Old\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    monkeypatch.setattr(frame, "version", lambda: "1.2.3")
    assert release.notes() == "- One\n- Two"
    monkeypatch.setattr(frame, "version", lambda: "1.2")
    with pytest.raises(ValueError, match=r"no heading '## \[1.2\]'"):
        release.notes()


def make_archives(folder: Path, names: set[str], *, sdist_also: set[str] = release.SDIST_FILES) -> None:
    """Write a wheel and an sdist that hold files of these names."""
    stem = f"riffusion_lab-{frame.version()}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for name in {*names, f"{stem}.dist-info/METADATA"}:
            archive.writestr(name, "")
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as archive:
        for name in {*names, *sdist_also, "PKG-INFO"}:
            archive.addfile(tarfile.TarInfo(f"{stem}/{name}"))


def test_archives_hold_the_package_and_nothing_else(tmp_path):
    files = release.package_files()
    assert {"riffusion_lab/weights/classifier.safetensors", "riffusion_lab/widgets/static/live.js"} < files
    make_archives(tmp_path, files)
    assert release.check_archives(tmp_path).suffix == ".whl"
    make_archives(tmp_path, {*files, "tests/test_clip.py"} - {"riffusion_lab/widgets/static/live.js"})
    with pytest.raises(ValueError) as error:
        release.check_archives(tmp_path)
    wrong = ["riffusion_lab/widgets/static/live.js is missing", "tests/test_clip.py is too much"]
    assert str(error.value).splitlines() == [f"{kind}: {text}" for kind in ("wheel", "sdist") for text in wrong]
    make_archives(tmp_path, files, sdist_also=release.SDIST_FILES - {"CHANGELOG.md"})
    with pytest.raises(ValueError, match="^sdist: CHANGELOG.md is missing$"):
        release.check_archives(tmp_path)
    (tmp_path / "riffusion_lab-0.0.1.tar.gz").touch()
    with pytest.raises(ValueError, match="riffusion_lab-0.0.1.tar.gz"):
        release.check_archives(tmp_path)


def test_floors_are_those_of_pyproject():
    lines = release.floors().splitlines()
    wanted = [*PYPROJECT["project"]["dependencies"], *EXTRAS["lab"], *EXTRAS["train"]]
    assert [line.replace("==", ">=") for line in lines] == wanted


# What is installed


def test_conda_environment_equals_pyproject():
    *conda, pip = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert conda == [f"python{PYPROJECT['project']['requires-python']}", "pip"]
    assert pip["pip"] == [*PYPROJECT["project"]["dependencies"], *EXTRAS["lab"], "-e ."]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line for line in read(file).splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def all_requirements() -> list[Requirement]:
    texts = [*PYPROJECT["project"]["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [Requirement(text) for text in texts]


def installed_with(requirements: list[Requirement]) -> dict[str, str]:
    """Return name and version of every distribution that `requirements` bring into this Python."""
    found: dict[str, str] = {}
    waiting = [(requirement.name, frozenset(requirement.extras)) for requirement in requirements]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        found[canonicalize_name(name)] = importlib.metadata.version(name)
        for needed in map(Requirement, importlib.metadata.requires(name) or []):
            marker, key = needed.marker, (needed.name, frozenset(needed.extras))
            applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
            if applies and key not in seen:
                seen.add(key)
                waiting.append(key)
    return found


def test_pins_satisfy_the_floors():
    versions = pins()
    for requirement in all_requirements():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_setup_cell_brings_peft():
    """What loads a LoRA stands in an extra; the set-up cell installs the lab without extras."""
    (peft,) = [text for text in EXTRAS["train"] if text.startswith("peft")]
    assert f'"{peft}"' in frame.setup_cell()


def test_colab_has_what_the_lab_needs():
    """Each dependency has a version of Colab's to be tested with, and that satisfies its floor."""
    versions = pins("tests/colab_constraints.txt") | pins("tests/colab_torch.txt")
    for requirement in map(Requirement, PYPROJECT["project"]["dependencies"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.skipif(os.environ.get(external.STRICT_VARIABLE) != "1", reason="only the strict lane has pinned versions")
def test_strict_lane_runs_the_pinned_versions():
    installed = installed_with(all_requirements())
    assert len(installed) > 100
    assert wrong_versions(installed, pins()) == {}


def wrong_versions(installed: dict[str, str], wanted: dict[str, str]) -> dict[str, str]:
    """Return what is not installed as pinned; PyTorch's build without CUDA, 2.14.1+cpu, is 2.14.1."""
    return {name: version for name, version in installed.items() if version.removesuffix("+cpu") != wanted.get(name)}


def test_wrong_versions_are_found():
    wanted = {"torch": "2.14.1", "numpy": "2.4.6"}
    assert wrong_versions({"torch": "2.14.1+cpu", "numpy": "2.4.6"}, wanted) == {}
    for name, version in {"torch": "2.13.0+cpu", "numpy": "2.5", "scipy": "1.17.1"}.items():
        assert wrong_versions({name: version}, wanted) == {name: version}


def test_package_data_are_packaged():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["riffusion_lab"]
    patterns = [pattern.replace("**/*", "*") for pattern in patterns]  # in fnmatch * goes through folders
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


# What is written


def test_versions_agree():
    import riffusion_lab

    version = frame.version()
    assert riffusion_lab.__version__ == version
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    headings = re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), flags=re.MULTILINE)
    if frame.is_development():
        assert headings[0] == "Unreleased" and Version(headings[1]) < Version(version)
    else:
        assert next(heading for heading in headings if heading != "Unreleased") == version


@pytest.mark.parametrize(
    ("version", "archive", "branch"),
    [
        ("0.2.0.dev0", "/archive/refs/heads/main.zip", "/blob/main/"),
        ("0.2.0", "/archive/refs/tags/v0.2.0.zip", "/blob/v0.2.0/"),
        ("1.0rc1", "/archive/refs/tags/v1.0rc1.zip", "/blob/v1.0rc1/"),
    ],
)
def test_tag_is_used_only_in_a_release(monkeypatch, version, archive, branch):
    """A tag exists only once a version is released: until then people get the branch."""
    monkeypatch.setattr(frame, "version", lambda: version)
    addresses = re.findall(r'"(https://[^"]*)"', frame.setup_cell())
    assert addresses == [frame.address() + archive]
    assert branch in frame.header(frame.lesson_path(frame.lessons()[0]), "")
    assert branch in frame.readme_blocks()["badges"]
    assert branch in frame.course_map(badges=True)


def test_version_stands_once(monkeypatch):
    """By hand the version stands in the package only: the wheel takes it from there, CITATION.cff by tools/frame.py."""
    assert "version" not in PYPROJECT["project"] and PYPROJECT["project"]["dynamic"] == ["version"]
    version = frame.version()
    files = [path for path in our_files(*TEXTS) if path.parent.name != "tests"]
    assert [path.name for path in files if version in path.read_text(encoding="utf-8")] == [
        "CITATION.cff",
        "__init__.py",
    ]
    monkeypatch.setattr(frame, "version", lambda: "1.2.3")
    assert yaml.safe_load(frame.citation())["version"] == "1.2.3"


def test_setuptools_reads_the_version_without_importing(tmp_path):
    """A package that cannot be imported has a version all the same: no torch is needed to build."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "riffusion_lab").mkdir()
    (tmp_path / "riffusion_lab" / "__init__.py").write_text('import no_such_module\n\n__version__ = "1.2.3"\n')
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "--version"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "1.2.3"


def test_generated_text_is_current():
    assert frame.citation() == read("CITATION.cff"), "CITATION.cff is out of date: run `python tools/frame.py`"
    for page, blocks in frame.pages().items():
        text = page.read_text(encoding="utf-8")
        assert frame.fill(text, blocks) == text, f"{page.name} is out of date: run `python tools/frame.py`"


def test_address_stands_once(monkeypatch):
    """By hand the address stands in pyproject.toml only; whatever else has it follows when it changes."""
    address = frame.address()
    name = address.removeprefix("https://github.com/")
    assert read("pyproject.toml").count(name) == 1
    texts = {path: path.read_text(encoding="utf-8") for path in our_files(*TEXTS)}
    assert [path.name for path, text in texts.items() if name in text] == ["README.md", "pyproject.toml"]
    monkeypatch.setattr(frame, "address", lambda: "https://example.org/other/name")
    assert name not in frame.fill(read("README.md"), frame.readme_blocks())
    first = frame.lesson_path(frame.lessons()[0])
    assert name not in frame.setup_cell() + frame.header(first, "") + frame.course_map(badges=True)


def test_fill_refuses_text_without_markers():
    with pytest.raises(ValueError, match="<!-- begin a -->"):
        frame.fill("nothing", {"a": "b"})


def test_navigation_follows_the_course(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    monkeypatch.setattr(frame, "address", lambda: "https://github.com/a/b")
    monkeypatch.setattr(frame, "version", lambda: "0.2.0.dev0")
    names = [lesson["file"] for lesson in frame.lessons()[:4]]
    paths = [tmp_path / "notebooks" / f"{name}.ipynb" for name in names]
    paths[0].parent.mkdir()
    for path in (paths[0], paths[1], paths[3]):
        path.touch()
    title, _, links = frame.header(paths[1], "?").splitlines()
    assert title == "# 01 · Sound to picture"
    assert re.findall(r"\]\(([^)]*ipynb)\)", links) == [
        f"https://colab.research.google.com/github/a/b/blob/main/notebooks/{names[1]}.ipynb",
        f"{names[0]}.ipynb",
        f"{names[3]}.ipynb",  # 02 is still to come
    ]
    assert frame.header(tmp_path / "notebooks" / "extras" / "more.ipynb", "More").startswith("# More\n")
    assert frame.course_map().count("*(coming)*") == len(frame.lessons()) - 3


@pytest.mark.parametrize("path", our_files(".md"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match("https?://|#", target)]
    assert [target for target in targets if not (path.parent / target.partition("#")[0]).exists()] == []


# The code


def imported(path: Path) -> set[str]:
    """Return the full names of the modules that the module at `path` imports, and of what it takes from them."""
    names = set()
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "riffusion_lab" / "a.py"
    module.parent.mkdir()
    for line in ("from . import widgets", "from .widgets import x", "import riffusion_lab.widgets.y"):
        module.write_text(line)
        assert any(name.startswith("riffusion_lab.widgets") for name in imported(module)), line


def third_party(names: set[str]) -> set[str]:
    """Return the top-level names that neither Python nor this package brings."""
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"riffusion_lab"}


def notebook_imports() -> set[str]:
    """Return the names of the modules that the notebooks' cells import."""
    names = set()
    for path in our_files(".ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                names |= set(re.findall(r"^\s*(?:import|from) ([\w.]+)", "".join(cell["source"]), flags=re.MULTILINE))
    return names


def declared(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_every_import_is_declared_and_everything_declared_is_imported():
    """Extras stand for programs (lab, test) and for training."""
    distributions = importlib.metadata.packages_distributions()
    modules = set().union(*map(imported, PACKAGE.rglob("*.py")))
    assert {"torch", "numpy", "diffusers"} <= third_party(modules)
    found = {canonicalize_name(distributions[name][0]) for name in third_party(modules)}
    dependencies = declared(PYPROJECT["project"]["dependencies"])
    optional = declared(EXTRAS["train"])
    assert found - dependencies - optional == set(), "imported, but not declared"
    by_notebooks = {canonicalize_name(distributions[name][0]) for name in third_party(notebook_imports())}
    assert dependencies <= found, "declared, but not imported"
    assert optional <= found
    assert by_notebooks <= dependencies, "imported by a notebook, but not declared"


def private_names(path: Path) -> set[str]:
    """Return the names with an underscore that a module imports from libraries."""
    names = {name for name in imported(path) if third_party({name})}
    return {name for name in names if any(part.startswith("_") for part in name.split("."))}


def test_only_public_names_of_libraries_are_imported():
    assert {path.name: found for path in PACKAGE.rglob("*.py") if (found := private_names(path))} == {}


def test_private_names_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "riffusion_lab" / "a.py"
    module.parent.mkdir()
    for line in ("from torch import _dynamo", "import torch._dynamo", "from torch._dynamo import x"):
        module.write_text(line)
        assert private_names(module), line
    module.write_text("from . import __version__, _x\nfrom torch import nn")
    assert not private_names(module)


# Prints what a process can be changed in for good, before and after all modules of the package are imported.
LOOK_AT_THE_PROCESS = """
import json, logging, os, pkgutil, sys, warnings
from importlib import import_module

import diffusers, matplotlib.pyplot, numpy, torch, transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
import anywidget, ipywidgets, librosa, scipy.signal, torchaudio
import fluidsynth

def look():
    return {
        "warnings": repr(warnings.filters),
        "environment": dict(os.environ),
        "matplotlib": repr(matplotlib.rcParams),
        "logging": repr([logging.root.level, logging.root.handlers, logging.root.filters]),
        "talkers": repr([diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()]),
        "filters": repr({name: logging.getLogger(name).filters for name in ("diffusers", "transformers", "torch")}),
        "torch": repr([torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()]),
        "cuda": repr([torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark]),
        "random": repr([torch.get_rng_state().sum(), numpy.random.get_state()[1].sum()]),
        "numpy": repr(numpy.geterr()),
        "path": sys.path,
    }

before = look()
import riffusion_lab
for module in pkgutil.walk_packages(riffusion_lab.__path__, "riffusion_lab."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
after = look()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


@pytest.mark.slow
def test_importing_changes_nothing_of_the_process():
    pytest.importorskip("fluidsynth", reason="training imports it", exc_type=ImportError)
    run = subprocess.run(
        [sys.executable, "-c", LOOK_AT_THE_PROCESS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == []
