"""The README says what is so: its code runs, and its figures are those that scripts wrote."""

import json
import re
from pathlib import Path

import pytest
import torch

from nflows_mixer.training import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def results(name):
    return json.loads((ROOT / "examples" / "results" / name / "results.json").read_text())


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        assert len([line for line in block.splitlines() if line.strip()]) < 16
    assert len(blocks) == 5
    assert names["loss"].isfinite()
    assert names["bits"].isfinite().all()
    assert names["samples"].shape == (4, 3, 32, 32) and names["samples"].dtype == torch.uint8
    assert sum(p.numel() for p in names["flow"].parameters()) == names["results"]["parameters"]
    assert names["figures"]["images"] == 397 and names["figures"]["mean"] < 4.2
    assert names["tighter"].shape == (8,) and names["cooler"].shape == (4, 1, 8, 8)
    calls = re.findall(r"`(mixerflow\([^`]+\))`", README.replace("\n", " "))
    assert len(calls) == 3
    for call in calls:  # those inside sentences, with the names of the blocks
        eval(call, names)
    call, size = re.search(
        r"`(denseflow\([^`]+\))` is the paper's model, ([\d,]+) ", README
    ).groups()
    with torch.device("meta"):
        parameters = eval(call, names).parameters()
    assert f"{sum(p.numel() for p in parameters):,}" == size


@pytest.mark.parametrize(
    "name, stands_in_readme", [("digits", True), ("cifar10-unshuffled", False)]
)
def test_table_of_results_is_what_the_script_wrote(name, stands_in_readme):
    written = table(results(name))
    assert (ROOT / "examples" / "results" / name / "results.md").read_text() == written
    assert (written in README) == stands_in_readme


def test_figures_of_precision_are_what_the_script_wrote():
    section = README.split("## Precision")[1].split("## Tests")[0]
    rows = re.findall(r"\| `([^`]+)` \| ([\d.e-]+) \| \[.*?\]\((.*?)\) \|", section)
    assert len(rows) == 3
    for command, figure, path in rows:
        written = json.loads((ROOT / path).read_text())
        assert figure == f"{written['round_trip_error']:.1e}"
        for part, flag, value in re.findall(r"--(model|recipe)\.(\w+) (\S+)", command):
            assert str(written[part][flag]) == value


def test_command_of_the_tests_is_that_of_ci():
    install = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]'"
    lines = [line for line in README.splitlines() if re.search(r"\[test\].*pytest", line)]
    assert lines == [f"{install} && .venv/bin/pytest -n auto"]


def test_oldest_versions_are_those_of_setup_cfg():
    setup = (ROOT / "setup.cfg").read_text().split("[options.packages.find]")[0]
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(), re.M))
    floors = dict(re.findall(r"^    (\w+)>=([\d.]+)$", setup, flags=re.M))
    assert set(floors) == {"torch", "nflows", "zuko", "einops"}
    for name, floor in floors.items():
        assert (pinned[name] + ".").startswith(floor + ".")
    assert "python_requires = >=3.10" in setup and "Python 3.10 and torch 2.4 or newer" in README
