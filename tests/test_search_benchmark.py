"""The search: its variants are as large as each other, and its command runs and goes on."""

import json

import pytest

from benchmarks import search
from benchmarks.sizes import parameters_of
from nflows_mixer.flows import mixerflow


@pytest.mark.parametrize("name", search.CIFAR10)
def test_variants_are_no_larger_than_the_models_of_the_tables(name):
    arguments = search.scaled_down("cifar10") | dict(search.CIFAR10[name].arguments)
    count = parameters_of(mixerflow(image_shape=(3, 16, 16), **arguments))
    assert 0.98 * 455_131 < count < 1.01 * 455_131


def test_command_trains_what_has_no_result(tmp_path, capsys):
    given = {"smoke": True, "out": str(tmp_path), "data": ["cifar10"]}
    search.main(only=["preset"], **given)
    before = json.loads((tmp_path / "search.json").read_text())["runs"]
    search.main(only=["preset", "no whitening"], **given)
    after = json.loads((tmp_path / "search.json").read_text())["runs"]
    assert after[0] == before[0] and [run["variant"] for run in after] == ["preset", "no whitening"]
    assert after[0]["validation"] != after[1]["validation"]
    assert "no whitening" in (tmp_path / "search.md").read_text()
