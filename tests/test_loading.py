"""The loader benchmark: what it measures, and what is kept of it."""

import json
import runpy
from pathlib import Path

import pytest

from nflows_mixer.training import ImageDataModule

FOLDER = Path(__file__).parents[1] / "benchmarks" / "loading"


def test_loading_is_no_bottleneck_in_the_kept_figures():
    results = json.loads((FOLDER / "results.json").read_text())
    assert set(results["ratio"]) == set(results["loader_images_per_second"])
    for name, speed in results["loader_images_per_second"].items():
        ratio = speed / results["training_images_per_second"]
        assert results["ratio"][name] == pytest.approx(ratio) and ratio > 20


def test_loader_counts_images_that_really_came(tmp_path):
    measure = runpy.run_path(str(FOLDER / "measure.py"))
    measure["sources"].__globals__["IMAGES"] = 300
    data = measure["sources"](tmp_path)
    rows = []
    original = ImageDataModule._loader

    def counted(self, part, batches):
        for batch in original(self, part, batches):
            rows.append(len(batch[0]))
            yield batch

    module = measure["DoNothing"]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDataModule, "_loader", counted)
        for source in data.values():
            rows.clear()
            assert measure["images_per_second"](module, source, 4, 10, "cpu") > 0
            # One batch comes before the clock starts.
            assert sum(rows) >= 50 and set(rows) == {10}
