"""The documentation says what is so: its code runs, its API is whole, and it builds."""

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.training import plain

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["index", "quickstart", "training", "data", "denseflow", "mixerflow", "transformers"]
PAGES += ["evaluation", "extending", "clients", "performance"]
ROOMS = [
    "adapters",
    "core",
    "data",
    "distributions",
    "evaluation",
    "flows",
    "nn",
    "numerics",
    "training",
    "transforms",
]
MODULES = ["likelihood", "noise"]


@pytest.mark.slow
@plain
@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch):
    text = (DOCS / f"{page}.md").read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M))
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    for block in blocks:
        before = text.count("\n", 0, block.start(1))  # so that an error names the line of the page
        exec(compile("\n" * before + block[1], str(DOCS / f"{page}.md"), "exec"), names)


def documented():
    """What the API pages describe: the name it is given, and the object."""
    for page in sorted((DOCS / "api").glob("*.md")):
        pattern = r"^\.\. auto(?:class|function|data):: (\S+)$"
        for name in re.findall(pattern, page.read_text(), re.M):
            module, attribute = name.rsplit(".", 1)
            yield name, getattr(importlib.import_module(module), attribute)


def public():
    """Every public class and function of every room, with a name of it."""
    for room in ROOMS:
        module = importlib.import_module(f"nflows_mixer.{room}")
        for name in module.__all__:
            yield f"{room}.{name}", getattr(module, name)
    for name in MODULES:
        module = importlib.import_module(f"nflows_mixer.{name}")
        for attribute, value in vars(module).items():
            ours = getattr(value, "__module__", None) == module.__name__
            if ours and not attribute.startswith("_") and callable(value):
                yield f"{name}.{attribute}", value


def test_api_pages_have_every_public_name_once():
    found = list(documented())
    for name, value in public():
        assert sum(value is other for _, other in found) == 1, name
    of_public = [value for _, value in public()]
    for name, value in found:
        assert any(value is other for other in of_public), name


def test_every_package_is_a_room():
    packages = {path.parent.name for path in (ROOT / "nflows_mixer").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "nflows_mixer").glob("[!_]*.py")}
    assert packages == set(ROOMS) and modules == {*MODULES, "cli"}
    index = (DOCS / "api" / "index.md").read_text()
    for name in (*ROOMS, *MODULES):
        assert f"({name}.md)" in index


def test_every_example_has_a_tutorial():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = "".join(path.read_text() for path in (DOCS / "tutorials").glob("*.md"))
    included = re.findall(r"literalinclude} \.\./\.\./examples/(\w+)\.py", pages)
    assert sorted(included) == sorted(scripts)


def test_command_lines_of_the_pages_are_understood():
    """Flags that the pages name are flags of the command, or arguments of a builder."""
    from nflows_mixer.cli import build_parser, train_parser
    from nflows_mixer.flows import denseflow, jet, mixerflow, tarflow

    known = set(re.findall(r"--([\w.]+)", train_parser().format_help()))
    for builder in (mixerflow, denseflow, tarflow, jet):
        known |= {f"model.{name}" for name in inspect.signature(builder).parameters}
    known |= set(vars(build_parser().parse_args(["evaluate", "--weights=w"]).evaluate))
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text().replace("\\\n", "")
        for line in re.findall(r"^\$ nflows-mixer (?:train|evaluate)(.*)$", text, re.M):
            assert set(re.findall(r"--([\w.-]+)", line.split("#")[0])) <= known, line


@pytest.mark.slow
def test_it_builds_without_warnings(tmp_path):
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="pip install 'nflows-mixer[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    packed = (tmp_path / "html" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    assert {name for name, _ in documented()} <= names
    pages = [path.read_text() for path in (tmp_path / "html").glob("**/*.html")]
    assert len(pages) > 20
    for page in pages:
        assert not re.search(r"<p>(\|.*\||.*``.*|.*\]\(.*)</p>", page)  # Markdown left as it was


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("pages")


def test_every_kept_run_is_in_the_results(pages):
    runs = pages.find_runs()
    files = (ROOT / "examples/results").glob("*/*.json")
    kept = {path.parent.name for path in files if path.name != "evaluation.json"}
    assert {run["name"].split("/")[0] for run in runs} == kept
    text = pages.overview([{**run, "pictures": []} for run in runs])
    for run in runs:
        figures, line = run["figures"], f"[{run['name']}](#{pages.anchor(run)})"
        (row,) = [row for row in text.splitlines() if row.startswith(f"| {line} |")]
        value = figures.get("log_density", pages.bits_of(figures)[0])
        assert f" {value:.3f} " in row and f" {figures['parameters']:,} " in row
        assert pages.command(run) in text


def test_every_kept_measurement_is_on_a_page(pages, tmp_path):
    including = "".join(path.read_text() for path in DOCS.glob("*.md"))
    benchmarks = ROOT / "benchmarks"
    shown = set()
    for name, patterns in pages.BENCHMARKS.items():
        assert f"{{include}} /_generated/{name}.md" in including
        text = pages.benchmark(name, tmp_path)
        for path in (path for each in patterns for path in benchmarks.glob(each)):
            shown.add(path)
            if path.suffix == ".png":
                assert f"pictures/{name}-{path.name}" in text
                assert (tmp_path / f"{name}-{path.name}").read_bytes() == path.read_bytes()
            else:
                assert path.read_text().strip() in text
    kept = {path for path in benchmarks.rglob("*.*") if path.suffix in (".md", ".png")}
    assert shown == kept - {benchmarks / "README.md"}
