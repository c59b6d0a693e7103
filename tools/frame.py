"""The generated text in README.md, the model card and the notebooks: address, badges, links, the set-up cell, figures.

Everything follows from five files: pyproject.toml (address), the package's __init__.py (version), course.toml,
colab_setup.txt, and the models' evaluation.json. ``python tools/frame.py`` writes all of it again, the version in
CITATION.cff included, and runs no notebook.
"""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
README = ROOT / "README.md"
CITATION = ROOT / "CITATION.cff"
PACKAGE = ROOT / "riffusion_lab"
MODELS = [PACKAGE / "weights" / name for name in ("riffling", "riffling-turbo")]
BRANCH = "main"


def project() -> dict:
    """Return the ``[project]`` table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version() -> str:
    """Return the version, which stands in ``riffusion_lab/__init__.py``; the package is not imported."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE).group(1)


def address() -> str:
    """Return the repository's address, without a slash at the end."""
    return project()["urls"]["Repository"]


def is_development() -> bool:
    """Return whether the version is one between two releases, such as ``1.0.0.dev0``."""
    return ".dev" in version()


def git_reference() -> str:
    """Return what people get: the branch while the version is a development version, the version's tag in a release."""
    return BRANCH if is_development() else f"v{version()}"


def archive_address() -> str:
    """Return the address of the source archive that GitHub makes of `git_reference`."""
    kind = "heads" if is_development() else "tags"
    return f"{address()}/archive/refs/{kind}/{git_reference()}.zip"


def lessons() -> list[dict[str, str]]:
    """Return the lessons of the course in their order, those that are still to come included."""
    return tomllib.loads((TOOLS / "course.toml").read_text(encoding="utf-8"))["lesson"]


def notebooks() -> list[Path]:
    """Return the path of every notebook, solutions and extras included."""
    paths = (ROOT / "notebooks").rglob("*.ipynb")
    return sorted(path for path in paths if ".ipynb_checkpoints" not in path.parts)


def lesson_path(lesson: dict[str, str]) -> Path:
    """Return where the lesson's notebook is, or will be."""
    return ROOT / "notebooks" / f"{lesson['file']}.ipynb"


def lesson_name(lesson: dict[str, str]) -> str:
    """Return the lesson's number and title, such as ``00 · Start here``."""
    return f"{lesson['file'][:2]} · {lesson['title']}"


def colab_badge(path: Path) -> str:
    """Return the badge, in markdown, that opens the notebook at `path` on Google Colab."""
    repository = address().removeprefix("https://github.com/")
    notebook = path.relative_to(ROOT).as_posix()
    target = f"https://colab.research.google.com/github/{repository}/blob/{git_reference()}/{notebook}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def header(path: Path, title: str) -> str:
    """Return the first cell of the notebook at `path`: title, Colab badge, links to the lessons before and after.

    A lesson takes its title from course.toml; any other notebook keeps `title`.
    """
    present = [lesson for lesson in lessons() if lesson_path(lesson).exists() or lesson_path(lesson) == path]
    here = [lesson_path(lesson) for lesson in present].index(path) if path in map(lesson_path, present) else None
    links = [colab_badge(path)]
    if here is not None:
        title = lesson_name(present[here])
        links += [f"[← {lesson_name(lesson)}]({lesson['file']}.ipynb)" for lesson in present[:here][-1:]]
        links += [f"[{lesson_name(lesson)} →]({lesson['file']}.ipynb)" for lesson in present[here + 1 :][:1]]
    return f"# {title}\n\n" + " &nbsp; ".join(links)


def setup_cell(*, archive: str | None = None) -> str:
    """Return the source of the set-up cell that every notebook has; it installs `archive`, by default GitHub's."""
    template = (TOOLS / "colab_setup.txt").read_text(encoding="utf-8")
    return template.replace("ARCHIVE", archive or archive_address()).strip()


def course_map(*, folder: str = "", badges: bool = False) -> str:
    """Return the table of lessons in markdown, with links that start with `folder`, and Colab badges if wanted."""
    rows = ["| Notebook | The question it answers | Minutes |" + " |" * badges, "|---|---|---|" + "---|" * badges]
    for lesson in lessons():
        path = lesson_path(lesson)
        name = f"[{lesson_name(lesson)}]({folder}{path.name})" if path.exists() else f"{lesson_name(lesson)} *(coming)*"
        badge = f" {colab_badge(path) if path.exists() else ''} |" if badges else ""
        rows.append(f"| {name} | {lesson['question']} | {lesson.get('minutes', '')} |{badge}")
    return "\n".join(rows)


def readme_blocks() -> dict[str, str]:
    """Return the generated parts of README.md by the name that its markers carry."""
    workflow = f"{address()}/actions/workflows/ci.yml"
    folder = address().rsplit("/", 1)[-1]
    return {
        "badges": f"[![ci]({workflow}/badge.svg)]({workflow}) {colab_badge(lesson_path(lessons()[0]))}",
        "clone": f"```sh\ngit clone --depth 1 {address()}\ncd {folder}\nmake lab\n```",
        "course": course_map(folder="notebooks/", badges=True),
    }


def fill(text: str, blocks: dict[str, str]) -> str:
    """Return `text` with what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` made anew.

    Raises
    ------
    ValueError
        If a block's markers are missing from `text`, or stand there more than once.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if (text.count(begin), text.count(end)) != (1, 1):
            raise ValueError(f"the text must hold {begin!r} and {end!r} once each")
        text = re.sub(f"{begin}.*?{end}", lambda _, new=f"{begin}\n{content}\n{end}": new, text, flags=re.DOTALL)
    return text


def evaluation_table(model: Path) -> str:
    """Return what a model's evaluation found, in markdown; of several runs, the means."""
    report = json.loads((model / "evaluation.json").read_text(encoding="utf-8"))
    rows = ["| What is heard | Clips | Generated, right | Rendered, right | Adherence |", "|---|---|---|---|---|"]
    for name, found in report["groups"].items():
        rows.append(
            f"| {name} | {found['n']:g} | {found['generated']:.2f} | {found['real']:.2f} | {found['adherence']:.2f} |"
        )
    distances = (
        f"Fréchet distance {report['frechet']:.1f}, of it between the means {report['frechet_means']:.1f}; "
        f"between rendered clips {report['frechet_real_real']:.1f}"
    )
    sentences = [
        "Texture, mode and tempo count where the prompt tells them.",
        "Tempo: of clips with drums; right is within 3 % of the bpm that the prompt names, up to octaves.",
        f"{distances} (N = {report['n_clips']}).",
        *([f"All are means over {len(report['runs'])} runs."] if "runs" in report else []),
        f"Clips of one class differ by {report['diversity']:.2f} of what rendered ones do.",
        f"The step of grey over a loop's seam is {report['seam']:.2f} times a rendered loop's, "
        f"the mean step between columns {report['steps']:.2f} times.",
        *comparison_with_data(report),
        f"Commonest mistakes: {', '.join(common_mistakes(report))}.",
    ]
    return "\n".join([*rows, "", *sentences])


def common_mistakes(report: dict) -> list[str]:
    """Return the twelve commonest mistakes of all runs, with how often they were made."""
    counts = Counter()
    for run in report.get("runs", [report]):
        for mistake in run["confusions"]:
            name, count = mistake.rsplit(": ", 1)
            counts[name] += int(count)
    return [f"{name}: {count}" for name, count in counts.most_common(12)]


def comparison_with_data(report: dict) -> list[str]:
    """Return what an evaluation found that had a data set at hand."""
    if "memorization" not in report:
        return []
    alike, alone = report["memorization"], report["autoencoder"]
    return [
        "The rendered clips, by the autoencoder there and back:",
        f"{alone['psnr']:.1f} dB PSNR, spectral convergence of the mel amplitudes {alone['convergence']:.3f};",
        f"Fréchet distance {alone['frechet']:.1f}, of it between the means {alone['frechet_means']:.1f};",
        f"step over the seam {alone['seam']:.2f} times, mean step {alone['steps']:.2f} times theirs.",
        "Correlation with the training clip that is most alike, however turned, in the middle:",
        f"{alike['generated']:.2f} for generated clips, {alike['held_out']:.2f} for held-out ones;",
        f"{alike['above']:.1%} of the generated ones lie above the 99th percentile of those.",
    ]


def pages() -> dict[Path, dict[str, str]]:
    """Return the pages with generated parts, and these parts."""
    cards = {model / "README.md": {"evaluation": evaluation_table(model)} for model in MODELS}
    return {README: readme_blocks()} | cards


def citation() -> str:
    """Return what CITATION.cff holds, with the version of now."""
    text = CITATION.read_text(encoding="utf-8")
    return re.sub(r"^version: .*$", f"version: {version()}", text, flags=re.MULTILINE)


def write_pages() -> None:
    """Write the generated parts of the pages again, and the version into CITATION.cff."""
    CITATION.write_text(citation(), encoding="utf-8")
    for page, blocks in pages().items():
        page.write_text(fill(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")


def write_cells(notebook: dict, path: Path) -> None:
    """Write the generated cells of `notebook`, in place: the first cell, the set-up cell and the course map.

    `notebook` is the content of the file at `path`; its outputs stay as they are.
    """
    first = notebook["cells"][0]
    title = "".join(first["source"]).partition("\n")[0].removeprefix("# ")
    first["source"] = header(path, title)
    setup = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    setup["source"] = setup_cell()
    setup["metadata"]["jupyter"] = {"source_hidden": True}  # JupyterLab folds it
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and "<!-- begin course -->" in text:
            cell["source"] = fill(text, {"course": course_map()})


def write_notebooks() -> None:
    """Write the generated cells of every notebook again, and nothing else: no notebook is run."""
    for path in notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        write_cells(notebook, path)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)  # as nbformat writes it
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_pages()
    write_notebooks()
