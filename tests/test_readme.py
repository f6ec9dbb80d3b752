"""The README says what is so: its code runs, and its figures are those that scripts wrote."""

import re
from pathlib import Path

import torch

from nflows_mixer import denseflow, jet, mixerflow, tarflow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        assert len([line for line in block.splitlines() if line.strip()]) < 16
    assert len(blocks) == 2
    assert names["loss"].isfinite()
    assert names["bits"].isfinite().all() and names["bits"].mean() < 4.087  # uniform, 17 levels
    assert names["samples"].shape == (16, 1, 8, 8) and names["samples"].dtype == torch.uint8


def test_parameter_counts_are_those_of_the_models():
    rows = re.findall(r"^\| (`(?:\w+flow|jet)\(.*) \| ([\d,]+) \|", README, re.M)
    calls = [(call, size) for models, size in rows for call in re.findall(r"`([^`]+)`", models)]
    assert len(calls) == 15
    for call, size in calls:
        # Masked networks of nflows read their masks, which meta tensors cannot.
        with torch.device("cpu" if '"mnist' in call else "meta"):
            flow = eval(
                call,
                {"mixerflow": mixerflow, "denseflow": denseflow, "tarflow": tarflow, "jet": jet},
            )
        assert f"{sum(p.numel() for p in flow.parameters()):,}" == size, call


def test_its_links_lead_to_files():
    for path in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / path).exists(), path


def test_oldest_versions_are_those_of_setup_cfg():
    setup = (ROOT / "setup.cfg").read_text().split("[options.packages.find]")[0]
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(), re.M))
    floors = dict(re.findall(r"^    (\w+)>=([\d.]+)$", setup, flags=re.M))
    assert set(floors) == {"torch", "nflows", "zuko", "einops"}
    for name, floor in floors.items():
        assert (pinned[name] + ".").startswith(floor + ".")
    assert "python_requires = >=3.10" in setup and "Python 3.10 and torch 2.4 or newer" in README
