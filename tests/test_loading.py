"""The loader benchmark: what it measures, and what is kept of it."""

import json
from pathlib import Path

import pytest

from benchmarks.loading import measure

FOLDER = Path(measure.__file__).parent


def test_loading_is_no_bottleneck_in_the_kept_figures():
    results = json.loads((FOLDER / "results.json").read_text())
    assert set(results["ratio"]) == set(results["loader_images_per_second"])
    for name, speed in results["loader_images_per_second"].items():
        ratio = speed / results["training_images_per_second"]
        assert results["ratio"][name] == pytest.approx(ratio) and ratio > 20


def test_loader_gives_batches_of_every_source(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "IMAGES", 300)
    for part in measure.sources(tmp_path).values():
        batches = measure.batches_of(part, 10)
        assert [next(batches)[0].shape for _ in range(31)] == 31 * [(10, 3, 32, 32)]
