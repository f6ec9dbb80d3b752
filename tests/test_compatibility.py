"""Every row of the compatibility table, in both places; its correctness columns are asserted."""

import inspect
import json
from pathlib import Path

import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nflows_transforms

if not hasattr(zuko.flows, "RealNVP"):
    pytest.skip("the table is of zuko 1.6", allow_module_level=True)

from benchmarks.compatibility.catalogue import CATALOGUE
from benchmarks.compatibility.run import errors, logabsdet_error, mixer, settle
from tests.jacobian import jacobian_logabsdet

ROWS = [(library, name) for library, rows in CATALOGUE.items() for name in rows]
TABLE = Path(__file__).parents[1] / "benchmarks/compatibility/results.json"
# Old parts of torch that nflows and normflows still call.
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@quiet
@pytest.mark.parametrize("place", ["channel", "patch"])
@pytest.mark.parametrize("library, name", ROWS)
def test_row(library, name, place):
    row = CATALOGUE[library][name]
    if row.refused:
        with pytest.raises((ValueError, TypeError), match="(?s)expected .*got .*; "):
            mixer(row, place, (1, 4, 6), 2)
        return
    layer = settle(row, mixer(row, place, (1, 4, 6), 2).double())
    for kind, error in errors(row, layer, torch.float64).items():
        assert error <= row.precision, kind
    assert logabsdet_error(row, layer, jacobian_logabsdet) <= row.precision
    assert errors(row, layer, torch.float32)["round_trip"] <= 1e-3


def classes(module, base, exclude=()):
    found = {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }
    return found - set(exclude)


def test_no_class_of_the_libraries_is_left_out():
    named = {library: {name.split(",")[0] for name in rows} for library, rows in CATALOGUE.items()}
    of_nflows = classes(nflows_transforms, nflows_transforms.Transform)
    assert of_nflows <= named["nflows"]
    bases = {"LazyTransform", "LazyInverse", "LazyDistribution", "Flow"}
    wrappers = {"UnconditionalTransform", "UnconditionalDistribution"}
    of_zuko = classes(zuko.flows, torch.nn.Module, bases | wrappers)
    assert of_zuko <= named["zuko"]
    assert classes(nf.flows, nf.flows.Flow) <= named["normflows"]


def test_the_committed_table_is_of_this_catalogue():
    written = json.loads(TABLE.read_text())
    rows = written["rows"]
    assert sorted((row["library"], row["name"]) for row in rows) == sorted(ROWS)
    for row in rows:
        entry = CATALOGUE[row["library"]][row["name"]]
        assert row["works"] == (not entry.refused)
        if row["works"]:
            for place in ("channel", "patch"):
                assert row[place]["float64"]["round_trip"] <= entry.precision
                assert row[place]["logabsdet"] <= entry.precision
                assert row["context"] == entry.context
