"""How the modules of the package build on one another: no import cycles, and a core that stands alone."""

import ast
import re
from pathlib import Path

import pytest

import riffusion_lab

PACKAGE = Path(riffusion_lab.__file__).parent
ROOT = PACKAGE.parent
OUTER = ("riffusion_lab.widgets", "riffusion_lab.training")


def module_name(path: Path, root: Path) -> str:
    """Full name of the module in a file; a package's name for its __init__.py."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def absolute_name(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Full name of the module that a `from ... import` names, whether with leading dots or without."""
    if node.level == 0:
        return node.module or ""
    parents = module.split(".")
    n_dropped = node.level - 1 if is_package else node.level
    base = parents[: len(parents) - n_dropped]
    return ".".join([*base, node.module] if node.module else base)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return for each module of a package which others of it are imported, anywhere in its text."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = absolute_name(node, module, is_package=path.name == "__init__.py")
                for alias in node.names:
                    member = f"{base}.{alias.name}"
                    named.add(member if member in files else base)
        graph[module] = named & files.keys()
    return graph


def find_cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import one another, directly or through others."""
    reachable = {module: reach(graph, module) for module in graph}
    groups: list[set[str]] = []
    for module in graph:
        group = {other for other in reachable[module] if module in reachable[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return all modules that importing `start` imports; `start` itself only if a cycle leads back to it."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for module in graph[waiting.pop()] - found:
            found.add(module)
            waiting.append(module)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph(PACKAGE)


def test_all_modules_are_seen(graph):
    assert {"riffusion_lab", "riffusion_lab.clip", "riffusion_lab.widgets.studio"} <= graph.keys()
    assert "riffusion_lab.clip" in graph["riffusion_lab.join"]
    assert "riffusion_lab.display" in graph["riffusion_lab.clip"]  # inside a function


def test_imports_form_no_cycle(graph):
    assert [sorted(group) for group in find_cycles(graph)] == []


def test_core_imports_neither_widgets_nor_training(graph):
    core = {module for module in graph if not module.startswith(OUTER)}
    outward = {(module, other) for module in core for other in graph[module] if other.startswith(OUTER)}
    assert outward == set()


@pytest.mark.parametrize(
    "text",
    [
        "from .b import x",
        "from . import b",
        "import pack.b",
        "from pack import b",
        "from pack.b import x",
        "def f():\n    from .b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import x",
    ],
)
def test_a_cycle_is_found_however_it_is_written(tmp_path, text):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "__init__.py").touch()
    (root / "a.py").write_text(text)
    (root / "b.py").write_text("from .c import y")
    (root / "c.py").write_text("from .a import z")
    assert [sorted(group) for group in find_cycles(import_graph(root))] == [["pack.a", "pack.b", "pack.c"]]
    (root / "c.py").write_text("import math")
    assert find_cycles(import_graph(root)) == []


def test_imports_of_packages_are_found(tmp_path):
    root = tmp_path / "pack"
    (root / "inner").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "a.py").touch()
    (root / "inner" / "__init__.py").write_text("from .b import x\nfrom .. import a")
    (root / "inner" / "b.py").write_text("from ..a import y\nfrom . import __name__")
    assert import_graph(root) == {
        "pack": set(),
        "pack.a": set(),
        "pack.inner": {"pack.inner.b", "pack.a"},
        "pack.inner.b": {"pack.a", "pack.inner"},
    }


@pytest.mark.parametrize("package", ["riffusion_lab", "riffusion_lab.training"])
def test_the_layout_names_every_module_after_those_that_it_imports(graph, package):
    """docs/architecture.md lists the modules in an order in which each imports only those before it."""
    core, training = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Training\n")
    tables = re.findall(r"^\| (`.*?`) \|", training if package.endswith("training") else core, re.MULTILINE)
    listed = [f"{package}.{name}" for row in tables for name in re.findall(r"`(\w+)`", row)]
    aliases = {"riffusion_lab.denoise", "riffusion_lab.loops", "riffusion_lab.seeds"}
    modules = {name for name in graph if re.fullmatch(rf"{re.escape(package)}\.\w+", name)}
    assert sorted(listed) == sorted(modules - aliases - set(OUTER))
    for place, name in enumerate(listed):
        imported = {other for other in graph[name] if other in listed}
        assert imported <= set(listed[:place]), (name, imported - set(listed[:place]))
