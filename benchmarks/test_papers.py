"""The rows of the papers' tables as tests.

    pytest benchmarks/ -m gpu                              # published sizes, 1,000 steps each
    pytest benchmarks/ -m gpu --budget paper -k mixerflow-1-  # as long as published
    pytest benchmarks/ -m cpu --seeds 0,1,2                # scaled down, minutes for each row
    pytest benchmarks/ --budget smoke                      # that every command runs

A row is trained, or goes on where it was stopped, or is read where there is its result. What is
tested is that all figures are finite; the order of the rows of a table is a test of its own, which
is reported as an expected failure where a claim is not shown: where it comes out the other way,
where seeds do not decide it, or where there is one seed alone. Without -n it runs after the rows.
"""

from math import isfinite

import pytest
import torch

from benchmarks.papers.figures import figure_of, with_figure
from benchmarks.papers.images import SMALL, Absent, first_images, images_of, noise_images
from benchmarks.papers.kept import columns, read
from benchmarks.papers.rows import ROWS_OF
from benchmarks.papers.run import Job

MARKS = {"paper": pytest.mark.gpu, "small": pytest.mark.cpu}
CASES = [
    pytest.param(size, row, id=row.name + ("" if size == "paper" else "-small"), marks=MARKS[size])
    for size, rows in ROWS_OF.items()
    for row in rows
]
COLUMNS = [
    pytest.param(size, column, id=f"{column.name}-{size}", marks=MARKS[size])
    for size in ROWS_OF
    for column in columns(size)
]


@pytest.mark.parametrize("size, row", CASES)
def test_row(size, row, seed, folders, pytestconfig):
    option = pytestconfig.getoption
    budget, (out, scratch) = option("--budget"), folders
    if size == "small" and budget == "paper":
        pytest.skip("what is scaled down has no published budget: --budget short or long")
    if size == "paper" and budget != "smoke" and not torch.cuda.is_available():
        pytest.skip("models of published sizes need CUDA: -m cpu runs them scaled down")
    if row.figure == "fid" and not option("--inception"):
        pytest.skip("the FID needs --inception FILE, see nflows_mixer.evaluation.fid.WEIGHTS")
    height = SMALL[row.run.data] if size == "small" else None
    try:
        images = images_of(row.run.data, option("--root"), row.run.shuffle, height, row.version)
        if budget == "smoke":
            images = first_images(images, 64, 16)
    except Absent as absent:
        if budget != "smoke":
            pytest.skip(str(absent))
        images = noise_images(row.run.data, height)
    accelerator = "auto" if size == "paper" else "cpu"
    job = Job(
        row.run, size, budget, seed, images, out, scratch, accelerator, option("--accumulate")
    )
    job.result()
    result = with_figure(row, job, option("--inception"))
    figure = figure_of(row, result)
    print(f"{row.name}: {figure:.4f}, published {row.published}")
    assert isfinite(figure)


@pytest.mark.parametrize("size, column", COLUMNS)
def test_order(size, column, folders, pytestconfig):
    budget = pytestconfig.getoption("--budget")
    if budget == "smoke":
        pytest.skip("two steps order nothing")
    kept = [k for k in read(folders[0]) if (k.size, k.budget) == (size, budget)]
    claims = column.claims(kept[0]) if kept else []
    if not claims:
        pytest.skip("expected results of two rows or more, got fewer: run the rows first")
    assert not [claim.words for claim in claims if claim.verdict == "not finite"]
    other = [c for c in claims if c.verdict not in ("as published", "as expected")]
    if other:
        lines = [f"{c.words}: {c.verdict} ({c.mean:+.4f}, published {c.published})" for c in other]
        pytest.xfail(f"{len(other)} of {len(claims)} claims: " + "; ".join(lines))
