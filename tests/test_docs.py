"""The documentation says what is so: its code runs, its API is whole, and it builds."""

import importlib
import inspect
import math
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from nflows_mixer.transforms import LULinear, ReversibleCompositeTransform

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["index", "quickstart", "training", "data", "denseflow"]
PAGES += ["evaluation", "extending", "performance"]
ROOMS = [
    "adapters",
    "core",
    "data",
    "evaluation",
    "flows",
    "nn",
    "numerics",
    "training",
    "transforms",
]
MODULES = ["distributions", "likelihood", "noise"]


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


def test_warning_of_inexact_inverses_is_quoted():
    """Of one transform, whose numbers are another's."""
    torch.manual_seed(0)
    linear = LULinear(4)
    with torch.no_grad():
        # Scales from 1 to 1e-5, of which float32 does not keep enough.
        linear.packed.copy_(torch.diag(torch.linspace(0, math.log(1e-5), 4)))
        linear.packed += torch.randn(4, 4).triu(1) + torch.randn(4, 4).tril(-1)
    flow = ReversibleCompositeTransform([linear])
    with pytest.warns(RuntimeWarning) as caught:
        flow(torch.randn(20, 4))[0].sum().backward()
    (quotation,) = re.findall(r"(?:^> .*\n)+", (DOCS / "performance.md").read_text(), re.M)
    shown = " ".join(line.removeprefix("> ") for line in quotation.splitlines())
    number = r"\d[\d.e+-]*(?=[,;) ])"
    listed = r"at '.*\);"
    (said,) = (re.sub(listed, "at 'name' (number);", str(warning.message)) for warning in caught)
    shown = re.sub(listed, "at 'name' (number);", shown)
    assert re.sub(number, "number", said) == re.sub(number, "number", shown)


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
    assert packages == set(ROOMS) and modules == set(MODULES)
    index = (DOCS / "api" / "index.md").read_text()
    for name in (*ROOMS, *MODULES):
        assert f"({name}.md)" in index


def test_every_example_has_a_tutorial():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    pages = "".join(path.read_text() for path in (DOCS / "tutorials").glob("*.md"))
    included = re.findall(r"literalinclude} \.\./\.\./examples/(\w+)\.py", pages)
    assert sorted(included) == sorted(scripts)


def test_command_line_of_the_pages_is_understood():
    """Flags that the pages name are flags of the command, or arguments of a builder."""
    pytest.importorskip("jsonargparse")
    from nflows_mixer.cli import train_parser
    from nflows_mixer.flows import denseflow, mixerflow

    known = set(re.findall(r"--([\w.]+)", train_parser().format_help()))
    for builder in (mixerflow, denseflow):
        known |= {f"model.{name}" for name in inspect.signature(builder).parameters}
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text().replace("\\\n", "")
        for line in re.findall(r"^\$ nflows-mixer train(.*)$", text, re.M):
            flags = re.findall(r"--([\w.-]+)", line.split("#")[0])
            assert set(flags) <= known, line


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


def test_tables_and_pictures_of_several_devices(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "BENCHMARKED", tmp_path)
    assert pages.benchmark("speed", tmp_path) == "No measurement is kept yet.\n"
    (tmp_path / "speed/results").mkdir(parents=True)
    for device in ("cuda", "cpu"):
        (tmp_path / f"speed/results/speed-{device}.md").write_text(f"| on {device} |\n")
    (tmp_path / "speed/results/speed-cpu.json").write_text("{}")
    (tmp_path / "speed/results/speed-cpu.png").write_bytes(b"picture")
    file = "speed/results/speed-cpu.json"
    assert pages.benchmark("speed", tmp_path).split("\n\n") == [
        "| on cpu |",
        f"(All figures: {{download}}`{file} </../{file}>`.)",
        "| on cuda |",
        "![speed-cpu](/_generated/pictures/speed-speed-cpu.png)\n",
    ]
    assert (tmp_path / "speed-speed-cpu.png").read_bytes() == b"picture"


def test_runs_that_differ_in_the_shuffle_alone_stand_side_by_side(pages, tmp_path, monkeypatch):
    from nflows_mixer.cli import run as run_command

    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    monkeypatch.setattr(pages, "RUNS", {})
    quick = ["--model.num_layers=1", "--recipe.steps=0", "--evaluation_images=20"]
    quick += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    for name, flags in {"a": [], "b": ["--shuffle=global"], "c": ["--seed=1"]}.items():
        run_command(["train", *quick, *flags, f"--out={tmp_path / name}"])
    runs = pages.find_runs()
    for run in runs:
        run["pictures"] = pages.copy_pictures(run, tmp_path)
        assert run["pictures"] == [f"{run['name']}-samples.png"]
    text = pages.shuffles(runs)
    bits = [run["figures"]["bits_per_dim"]["test"] for run in runs]
    assert re.findall(r"\| (none|global) \| ([\d.]+) \|", text) == [
        ("none", f"{bits[0]:.3f}"),
        ("global", f"{bits[1]:.3f}"),
    ]
    assert [line for line in text.splitlines() if line.startswith("$")] == [
        f"$ nflows-mixer train --config {name}/config.yaml" for name in "ab"
    ]
